//! A table that an application has made itself, as the store that the data comes from. Only ever
//! read.
//!
//! - `shape`: the table as statements need it. Built by each database's module from its catalog:
//!   what an operator has written is looked up there, and never put into a statement.
//! - `rows`: from rows to pairs and rejects, pure.
//! - `prints`: what the table held when it was last looked at, in short, pure; `foreign`: looking
//!   again and again for what others change.
//! - `postgres`, `mysql`, `sqlite`: catalog, types and connections of each.
//!
//! Keys are compared and ordered as bytes, whatever collation the table has: each database is asked
//! to make bytes of them first. That order has no index where keys are text, so that a page of a
//! scan costs a pass over the table; reads of single keys go by the table's own index, with the
//! table's own idea of equality, and what is only equal by that idea is sorted out here.
//!
//! A table can neither fence nor watch, and has no history: all writers have to go through Segue, and
//! those that do not are only found by looking.
//! Without a column for it, every key shows revision 1.

mod foreign;
mod mysql;
mod postgres;
mod prints;
mod rows;
mod shape;
mod sqlite;

use std::collections::HashMap;
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;

use self::foreign::Lookout;
use self::rows::{Judged, Row};
use self::shape::Shape;
use super::foreign::{Bookmark, ForeignChanges};
use super::mark::Mark;
use super::url::{Table, Within};
use super::{OldLease, OldStore, Page, PageSize, Result, StoreError};
use crate::types::{Content, KeyRange, KeyValue, Reserved, Revision};

/// Most rows of a page, whatever is asked for and however small they are: they are held in memory.
const PAGE_ROWS: usize = 10_000;
/// Keys that are looked up in one statement.
const GET_KEYS: usize = 64;

/// What is different from database to database once the table is known.
#[async_trait]
trait Source: Send + Sync + 'static {
    /// Runs a statement with the five columns of a [`Row`], and hands the rows over as they come, until
    /// `take` breaks off: what is left is not read then.
    async fn each(&self, statement: String, take: Take<'_>) -> Result<()>;

    /// The same, but answers all rows.
    async fn fetch(&self, statement: String) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut take = |row| {
            rows.push(row);
            Continue(())
        };
        self.each(statement, &mut take).await?;
        Ok(rows)
    }
}

/// Takes a row, and says whether it wants another one.
type Take<'a> = &'a mut (dyn FnMut(Row) -> ControlFlow<()> + Send);

/// An existing table as an old store.
#[derive(Clone)]
pub struct PlainTable {
    shape: Arc<Shape>,
    source: Arc<dyn Source>,
    reserved: Reserved,
    /// Whoever looks out for foreign changes has it for as long.
    lookout: Arc<Mutex<Lookout>>,
}

impl PlainTable {
    /// Connects, and finds table and columns in the database's catalog.
    ///
    /// Fails with [`super::RequestError::Unacceptable`] if they are not there or are of a type that
    /// cannot be what they are named for, with what there is instead.
    pub async fn open(table: &Table, reserved: Reserved) -> Result<Self> {
        let (shape, source): (Shape, Arc<dyn Source>) = match &table.within {
            Within::Sqlite(path) => {
                let (shape, source) = sqlite::open(path, &table.columns).await?;
                (shape, Arc::new(source))
            }
            Within::Postgres(database) => {
                let (shape, source) = postgres::open(database, &table.columns).await?;
                (shape, Arc::new(source))
            }
            Within::Mysql(database) => {
                let (shape, source) = mysql::open(database, &table.columns).await?;
                (shape, Arc::new(source))
            }
        };
        Ok(Self {
            shape: Arc::new(shape),
            source,
            reserved,
            lookout: Arc::default(),
        })
    }

    /// A number: the answer to a statement that has one row with it.
    async fn number(&self, statement: String) -> Result<i64> {
        let rows = self.source.fetch(statement).await?;
        Ok(rows
            .first()
            .and_then(|row| row.revision)
            .unwrap_or_default())
    }

    /// The rows of some keys, as far as the table's own idea of equality goes and further.
    async fn candidates(&self, keys: &[Bytes]) -> Result<Vec<Row>> {
        match self.shape.lookup(keys) {
            Some(statement) => self.source.fetch(statement).await,
            None => Ok(Vec::new()),
        }
    }

    /// What becomes of the rows of some keys; nothing of a key that has none.
    async fn judged(&self, keys: &[Bytes]) -> Result<HashMap<Bytes, Judged>> {
        let mut rows = self.candidates(keys).await?;
        rows.retain(|row| row.key.as_ref().is_some_and(|key| keys.contains(key)));
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        let judged = rows::judge(&self.shape, rows, true);
        Ok(judged.map(|one| (one.key().clone(), one)).collect())
    }

    /// The first rows in key order, and whether there may be more behind them: then the last one is one
    /// more than is wanted, which says whether the key before it is whole.
    async fn first(
        &self,
        keys: &KeyRange,
        size: PageSize,
        values: bool,
    ) -> Result<(Vec<Row>, bool)> {
        if let KeyRange::One(key) = keys {
            let mut rows = self.candidates(std::slice::from_ref(key)).await?;
            rows.retain(|row| row.key.as_ref() == Some(key));
            return Ok((rows, false));
        }
        let statement = self.shape.page(keys, size.pairs + 1, values);
        let (mut rows, mut bytes, mut more) = (Vec::new(), 0, false);
        let mut take = |row: Row| {
            more = rows.len() == size.pairs || bytes >= size.bytes;
            bytes += row.weight();
            rows.push(row);
            if more { Break(()) } else { Continue(()) }
        };
        self.source.each(statement, &mut take).await?;
        Ok((rows, more))
    }

    /// Rows that have no key at all, or one that cannot be put in order, stand where the empty key
    /// would.
    async fn left_out(&self, keys: &KeyRange) -> Result<Option<(Bytes, String)>> {
        if !keys.contains(b"") {
            return Ok(None);
        }
        let rows = self.source.fetch(self.shape.count_left_out()).await?;
        let counted = rows.first();
        let why = [
            (
                counted.and_then(|row| row.revision),
                "no key: NULL or empty".to_owned(),
            ),
            (
                counted.and_then(|row| row.ttl_s),
                format!(
                    "a key of more than {} bytes, which this database does not sort",
                    self.shape.key_bytes_max.unwrap_or_default()
                ),
            ),
        ];
        let why = why.into_iter().filter_map(|(rows, what)| match rows? {
            0 => None,
            1 => Some(format!("one row has {what}")),
            rows => Some(format!("{rows} rows have {what}")),
        });
        let why: Vec<String> = why.collect();
        Ok((!why.is_empty()).then(|| (Bytes::new(), why.join("; "))))
    }

    /// The time, by the database's clock, if rows expire.
    async fn now_s(&self) -> Result<i64> {
        match self.shape.now() {
            Some(statement) => self.number(statement).await,
            None => Ok(0),
        }
    }

    /// A page of what is not `hidden`.
    async fn page(
        &self,
        keys: KeyRange,
        size: PageSize,
        content: Content,
        hidden: impl Fn(&[u8]) -> bool + Send + Sync,
    ) -> Result<Page> {
        let mut page = Page::default();
        if content == Content::CountOnly || keys.is_empty() {
            return Ok(page);
        }
        page.rejects.extend(self.left_out(&keys).await?);
        let size = PageSize {
            pairs: size.pairs.clamp(1, PAGE_ROWS),
            bytes: size.bytes.max(1),
        };
        let values = content == Content::Full;
        let mut rest = Some(keys);
        while let Some(keys) = rest.take() {
            let (mut rows, more) = self.first(&keys, size, values).await?;
            if more {
                rows::drop_last_key(&mut rows);
            }
            let last = rows.last().and_then(|row| row.key.clone());
            for judged in rows::judge(&self.shape, rows, values) {
                match judged {
                    _ if hidden(judged.key()) => {}
                    Judged::Pair(kv) => page.kvs.push(kv),
                    Judged::Reject(key, reason) => page.rejects.push((key, reason)),
                }
            }
            let (true, Some(last)) = (more, last) else {
                return Ok(page);
            };
            // Those that are hidden make no page.
            if page.last_key().is_some() {
                page.more = true;
                return Ok(page);
            }
            rest = keys.after(&last);
        }
        Ok(page)
    }
}

#[async_trait]
impl OldStore for PlainTable {
    async fn identity(&self) -> Result<String> {
        Ok(self.shape.identity.clone())
    }

    /// The greatest revision of a row, so it does not grow with deletes; 1 where there is no column.
    async fn revision(&self) -> Result<Revision> {
        match self.shape.greatest_revision() {
            Some(statement) => Ok(Revision(self.number(statement).await?.max(1))),
            None => Ok(Revision(1)),
        }
    }

    async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
        let mut found: HashMap<Bytes, Judged> = HashMap::new();
        for some in keys.chunks(GET_KEYS) {
            found.extend(self.judged(some).await?);
        }
        let answer = |key: &Bytes| match found.get(key) {
            _ if self.reserved.contains(key) => Ok(None),
            None => Ok(None),
            Some(Judged::Pair(kv)) => Ok(Some(kv.clone())),
            Some(Judged::Reject(key, reason)) => Err(StoreError::Broken(format!(
                "the old store's key {} cannot be read: {reason}",
                key.escape_ascii()
            ))),
        };
        keys.iter().map(answer).collect()
    }

    async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
        self.page(keys, size, content, |key| self.reserved.contains(key))
            .await
    }

    async fn scan_reserved(&self, keys: KeyRange, size: PageSize) -> Result<Page> {
        self.page(keys, size, Content::KeysOnly, |_| false).await
    }

    async fn count(&self, keys: KeyRange) -> Result<usize> {
        let count = self.number(self.shape.count(&keys)).await?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    async fn leases(&self) -> Result<Vec<OldLease>> {
        let Some(statement) = self.shape.expiring() else {
            return Ok(Vec::new());
        };
        let rows = self.source.fetch(statement).await?;
        let ttl_of = |row: &Row| Some((row.key.clone()?, row.ttl_s?));
        let ttls: HashMap<Bytes, i64> = rows.iter().filter_map(ttl_of).collect();
        let mut leases: Vec<OldLease> = rows::judge(&self.shape, rows, true)
            .filter_map(|judged| match judged {
                Judged::Pair(kv) if kv.lease.is_some() && !self.reserved.contains(&kv.key) => {
                    Some(OldLease {
                        id: kv.lease,
                        ttl_s: *ttls.get(&kv.key)?,
                        keys: vec![kv.key],
                    })
                }
                _ => None,
            })
            .collect();
        leases.sort_unstable_by_key(|lease| lease.id);
        Ok(leases)
    }

    async fn foreign(&self, seen: Bookmark) -> Result<Option<ForeignChanges>> {
        foreign::changes(self.clone(), seen).await
    }

    /// Reads the whole table.
    async fn mark(&self, before: Option<&Mark>) -> Result<Option<Mark>> {
        let since_s = match before {
            Some(before) => before.since_s(),
            None => self.now_s().await?,
        };
        let mut mark = Mark::since(since_s);
        let mut take = |row: Row| {
            let Some(key) = row.key.as_ref() else {
                return Continue(());
            };
            if !self.reserved.contains(key) {
                let until_s = row.ttl_s.filter(|_| row.expires);
                mark.add(prints::whole(key, &row), until_s);
            }
            Continue(())
        };
        self.source.each(self.shape.walk(), &mut take).await?;
        mark.taken(self.now_s().await?);
        Ok(Some(mark))
    }
}
