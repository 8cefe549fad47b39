//! Reads: each from one snapshot that includes the head row, in one round trip as a rule.
//!
//! | what | how |
//! | --- | --- |
//! | keys, one by one | those that wait go together in one statement, head row included |
//! | one range | one statement, head row and count included |
//! | the rest | a transaction that only reads, all statements in one flight |
//!
//! A read that loses its connection is asked again: it changes nothing.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio_postgres::{Error, Row as Answer};

use super::conn::{Behind, Conn, Step};
use super::error::{Failure, failure, not_done};
use super::pool::Pool;
use super::prefetch::{self, by_key, span_step};
use super::text::{CHANGES_TYPES, HEAD_COUNT, HEAD_NOW_MS, NOW_MS_COLUMN, RowsText, Sql, Values};
use crate::store::gather::Gather;
use crate::store::sql::backend::{Found, Head, LogScan, Query, Read, Row, Rows, Snapshot};
use crate::store::sql::rows::{Batches, Columns as _, Taken, head_of, lease_of, record_of, row_of};
use crate::store::{Result, StoreError};
use crate::types::{KeyRange, LeaseId, Revision};

/// How often a read is asked in all.
const TRIES: u32 = 3;

/// Reads of single keys that go together.
const TOGETHER: usize = 128;

/// Keys in a read that goes together with others.
const POINTS_MAX: usize = 64;

/// Entries of the log that are read at a time, at most.
const LOG_ENTRIES_MAX: usize = 20_000;

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The way to the data.
pub(super) struct Reader {
    sql: Arc<Sql>,
    pool: Pool,
    points: Gather<Arc<Snapshot>, Result<Read>>,
}

/// A failure of a read, as it is decided what to do about it.
enum Failed {
    /// Of a statement.
    Sql(Error),
    /// Of something else, or after all.
    Store(StoreError),
}

impl From<Error> for Failed {
    fn from(err: Error) -> Self {
        Self::Sql(err)
    }
}

impl From<StoreError> for Failed {
    fn from(err: StoreError) -> Self {
        Self::Store(err)
    }
}

impl Failed {
    /// Says whether the read is to be asked once more, or why not.
    fn unless_repeatable(self, tries: &mut u32) -> Result<()> {
        *tries += 1;
        match self {
            Self::Sql(err) if *tries < TRIES && failure(&err) != Failure::Statement => Ok(()),
            Self::Sql(err) => Err(not_done(&err)),
            Self::Store(err) => Err(err),
        }
    }
}

impl Reader {
    pub(super) fn new(sql: Arc<Sql>, pool: Pool) -> Self {
        Self {
            sql,
            pool,
            points: Gather::new(TOGETHER),
        }
    }

    /// See [`crate::store::sql::backend::Backend::read`].
    pub(super) async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        if is_points(&snapshot) {
            let ask = |asked| self.ask_points(asked);
            return self.points.ask(Arc::new(snapshot), ask).await;
        }
        let mut tries = 0;
        loop {
            let read = match one_span(&snapshot) {
                Some((rows, span)) => self.read_span(&snapshot, rows, span).await,
                None => self.read_all(&snapshot).await,
            };
            match read {
                Ok(read) => return Ok(read),
                Err(failed) => failed.unless_repeatable(&mut tries)?,
            }
        }
    }

    async fn ask_points(&self, asked: Vec<Arc<Snapshot>>) -> Vec<Result<Read>> {
        let mut tries = 0;
        loop {
            let failed = match self.read_points(&asked).await {
                Ok(reads) => return reads,
                Err(failed) => failed,
            };
            if let Err(err) = failed.unless_repeatable(&mut tries) {
                return asked.iter().map(|_| Err(err.clone())).collect();
            }
        }
    }

    /// Reads all keys that several snapshots ask for.
    async fn read_points(&self, asked: &[Arc<Snapshot>]) -> Result<Vec<Result<Read>>, Failed> {
        let mut keys: Vec<Bytes> = asked
            .iter()
            .flat_map(|snapshot| keys_of(snapshot))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let lent = self.pool.lend(true).await?;
        let answers = lent.conn()?.query(by_key(&self.sql.points, &keys)).await?;
        let Answered {
            head, now_ms, rows, ..
        } = Answered::of(&answers, keys.len())?;
        let mut rows = rows;
        rows.sort_unstable_by(|a, b| a.kv.key.cmp(&b.kv.key));
        let read = |snapshot: &Arc<Snapshot>| {
            snapshot.admit(&head)?;
            let found = snapshot.queries.iter().map(|query| match query {
                Query::Rows(want) => Ok(points_of(want, &rows)),
                _ => Err(unasked()),
            });
            Ok(Read {
                head,
                now_ms,
                found: found.collect::<Result<_>>()?,
            })
        };
        Ok(asked.iter().map(read).collect())
    }

    /// Reads the rows of one span.
    async fn read_span(
        &self,
        snapshot: &Snapshot,
        want: &Rows,
        span: &KeyRange,
    ) -> Result<Read, Failed> {
        let text = text_of(want, span, snapshot.at);
        // A page that comes out full needs the count of the rest, unless that is known.
        let mut counted = want.count && want.limit.is_some() && want.known.is_none();
        let lent = self.pool.lend(snapshot.is_small()).await?;
        loop {
            let step = span_step(
                self.sql.span_with_head(text, counted),
                span,
                want.limit,
                snapshot.at,
                want.values,
                want.bytes,
            );
            let answers = lent.conn()?.query(step).await?;
            let answered = Answered::of(&answers, answers.len())?;
            snapshot.admit(&answered.head)?;
            let weights = answered.rows.iter().map(|row| row.kv.weight());
            let full = want.limit.is_some_and(|limit| answered.rows.len() >= limit)
                || want
                    .bytes
                    .is_some_and(|bytes| weights.sum::<usize>() >= bytes);
            let count = if !want.count {
                0
            } else if !full {
                answered.rows.iter().filter(|row| row.live).count()
            } else if let Some(count) = answered.count {
                count
            } else if let Some(known) = want
                .known
                .and_then(|known| known.holds(snapshot.at, &answered.head))
            {
                known
            } else {
                counted = true;
                continue;
            };
            return Ok(Read {
                head: answered.head,
                now_ms: answered.now_ms,
                found: vec![Found::Rows {
                    rows: answered.rows,
                    count,
                }],
            });
        }
    }

    /// Reads anything, in a transaction.
    async fn read_all(&self, snapshot: &Snapshot) -> Result<Read, Failed> {
        let mut lent = self.pool.lend(snapshot.is_small()).await?;
        let conn = lent.transaction()?;
        let begun = conn
            .flight(&[Step::of(BEGIN), Step::of(&self.sql.head)])
            .await?;
        let mut answers = all(begun)?;
        let (head, now_ms) = match answers.pop().as_deref() {
            Some([row]) => (head_of(row)?, row.int(NOW_MS_COLUMN)?),
            _ => return Err(no_head().into()),
        };
        snapshot.admit(&head)?;
        let place = Place {
            conn,
            sql: &self.sql,
            snapshot,
            head: &head,
            now_ms,
        };
        // Each sends its statements when it begins, and so all of them are in one flight.
        let found = join_all(snapshot.queries.iter().map(|query| place.query(query))).await;
        Ok(Read {
            head,
            now_ms,
            found: found.into_iter().collect::<Result<_, _>>()?,
        })
    }
}

/// Where a query is answered: within a snapshot.
struct Place<'a> {
    conn: &'a Conn,
    sql: &'a Sql,
    snapshot: &'a Snapshot,
    head: &'a Head,
    now_ms: i64,
}

impl Place<'_> {
    async fn query(&self, query: &Query) -> Result<Found, Error> {
        let Self { conn, sql, .. } = self;
        Ok(match query {
            Query::Rows(want) => self.rows(want).await?,
            Query::Prefetch(want) => {
                let answers = all(conn.flight(&prefetch::steps(sql, want)).await?)?;
                let found = prefetch::found(sql, want, *self.head, self.now_ms, answers)?;
                Found::Prefetched(found)
            }
            Query::Lease { id, keys } => self.lease(*id, *keys).await?,
            Query::Leases => Found::Leases(ids(&conn.query(Step::of(&sql.texts.leases)).await?)?),
            Query::Due(most) => {
                let step = Step::with(&sql.texts.leases_due, vec![Box::new(*most)]);
                let leases = conn.query(step).await?;
                Found::Due(leases.iter().map(lease_of).collect::<Result<_, _>>()?)
            }
            Query::Records(prefix) => {
                let step = Step::with(&sql.texts.records, vec![Box::new(prefix)]);
                let records = conn.query(step).await?;
                Found::Records(records.iter().map(record_of).collect::<Result<_, _>>()?)
            }
            Query::Log(scan) => self.log(scan).await?,
            Query::Any => {
                let any = conn.query(Step::of(&sql.any)).await?;
                let any = any.first().map_or(Ok(0), |row| row.int(0))?;
                Found::Any(any != 0)
            }
            Query::Sizes => {
                let sizes = conn.query(Step::of(&sql.sizes)).await?;
                let size = |column| -> Result<u64, Error> {
                    let size = sizes.first().map_or(Ok(0), |row| row.int(column))?;
                    Ok(u64::try_from(size).unwrap_or_default())
                };
                Found::Sizes(size(0)?, size(1)?)
            }
        })
    }

    /// Rows of several parts, and what is left of their values.
    async fn rows(&self, want: &Rows) -> Result<Found, Error> {
        let at = self.snapshot.at;
        let spans = want.parts.iter().map(|part| {
            let text = text_of(want, part, at);
            let sql = self.sql.span(text);
            span_step(sql, part, want.limit, at, want.values, want.bytes)
        });
        let spans: Vec<_> = spans.collect();
        let mut taken = Taken::new(want);
        for answers in all(self.conn.flight(&spans).await?)? {
            for row in &answers {
                if !taken.is_full() {
                    let with_value = taken.values > 0;
                    taken.take(row_of(row)?, with_value);
                }
            }
        }
        let known = want.known.and_then(|known| known.holds(at, self.head));
        let count = if !want.count {
            0
        } else if !taken.is_full() {
            taken.rows.iter().filter(|row| row.live).count()
        } else if let Some(known) = known {
            known
        } else {
            let counts = want.parts.iter().map(|part| {
                let text = text_of(want, part, at);
                span_step(self.sql.count(text), part, None, at, 0, None)
            });
            let counts: Vec<_> = counts.collect();
            let mut sum = 0;
            for answers in all(self.conn.flight(&counts).await?)? {
                let count = answers.first().map_or(Ok(0), |row| row.int(0))?;
                sum += usize::try_from(count).unwrap_or_default();
            }
            sum
        };
        Ok(Found::Rows {
            rows: taken.rows,
            count,
        })
    }

    async fn lease(&self, id: LeaseId, keys: bool) -> Result<Found, Error> {
        let sql = self.sql;
        let steps = [
            Step::with(&sql.texts.lease, vec![Box::new(id.0)]),
            Step::with(&sql.texts.keys_attached, vec![Box::new(id.0)]),
        ];
        let asked = if keys { &steps[..] } else { &steps[..1] };
        let mut answers = all(self.conn.flight(asked).await?)?.into_iter();
        let lease = answers.next().unwrap_or_default();
        let Some(lease) = lease.first() else {
            return Ok(Found::Lease(None));
        };
        let keys = answers.next().unwrap_or_default();
        let keys = keys.iter().map(|row| row.bytes(0));
        Ok(Found::Lease(Some((
            lease_of(lease)?,
            keys.collect::<Result<_, _>>()?,
        ))))
    }

    /// Changes in whole revisions, until there are enough.
    async fn log(&self, scan: &LogScan) -> Result<Found, Error> {
        let batches = Batches::new(scan, self.head);
        let (Some(first), Some(last)) = (scan.parts.first(), scan.parts.last()) else {
            return Ok(batches.finish());
        };
        let end = last.end();
        let range = KeyRange::span(first.start().clone(), end.clone());
        let text = RowsText::of(&range, false, true, Values::All);
        let text = self.sql.changes(text, scan.prev_kv);
        let to = batches.to().0;
        let max_bytes = i64::try_from(scan.max_bytes).unwrap_or(i64::MAX);
        // One more than is wanted tells that a revision is whole.
        let mut limit = scan.max_events.saturating_add(1).min(LOG_ENTRIES_MAX);
        loop {
            let step = Step::typed(
                text.clone(),
                CHANGES_TYPES,
                vec![
                    Box::new(&first.start()[..]),
                    Box::new(end.as_deref()),
                    Box::new(scan.from.0),
                    Box::new(to),
                    Box::new(i64::try_from(limit).unwrap_or(i64::MAX)),
                    Box::new(max_bytes),
                ],
            );
            let entries = self.conn.query(step).await?;
            if let Some(found) = put_together(scan, self.head, &entries, limit)? {
                return Ok(found);
            }
            // One revision alone has more entries than that.
            limit = limit.saturating_mul(8);
        }
    }
}

/// Puts the first entries of the log together. As many as `limit` means that there may be more, and
/// that the last revision may not be whole; nothing is answered if there is no other.
fn put_together(
    scan: &LogScan,
    head: &Head,
    entries: &[Answer],
    limit: usize,
) -> Result<Option<Found>, Error> {
    let mut batches = Batches::new(scan, head);
    let Some(last) = entries.last() else {
        return Ok(Some(batches.finish()));
    };
    let last = last.int(0)?;
    let mut bytes = 0;
    let cut = entries.len() >= limit;
    for entry in entries {
        if cut && entry.int(0)? == last {
            if entries[0].int(0)? == last {
                return Ok(None);
            }
            batches.end_at(Revision(last - 1));
            break;
        }
        bytes +=
            entry.bytes(1)?.len() + entry.try_get::<_, Option<&[u8]>>(3)?.map_or(0, <[u8]>::len);
        if !batches.take(entry)? {
            return Ok(Some(batches.finish()));
        }
    }
    if !cut && bytes >= scan.max_bytes {
        batches.end_at(Revision(last));
    }
    Ok(Some(batches.finish()))
}

/// The head row and the rows that came with it.
struct Answered {
    head: Head,
    now_ms: i64,
    count: Option<usize>,
    rows: Vec<Row>,
}

impl Answered {
    fn of(answers: &[Answer], capacity: usize) -> Result<Self, Failed> {
        let mut head = None;
        let mut rows = Vec::with_capacity(capacity);
        for answer in answers {
            if answer.try_get::<_, Option<&[u8]>>(0)?.is_none() {
                head = Some(answer);
            } else {
                rows.push(row_of(answer)?);
            }
        }
        let head = head.ok_or_else(no_head)?;
        let count = head.maybe_int(HEAD_COUNT)?;
        Ok(Self {
            now_ms: head.int(HEAD_NOW_MS)?,
            count: count.and_then(|count| usize::try_from(count).ok()),
            head: head_of(&Behind(head, 2))?,
            rows,
        })
    }
}

/// Whether only single keys are asked for, and not too many.
fn is_points(snapshot: &Snapshot) -> bool {
    snapshot.at.is_none()
        && !snapshot.queries.is_empty()
        && keys_of(snapshot).count() <= POINTS_MAX
        && snapshot.queries.iter().all(|query| match query {
            Query::Rows(rows) => {
                let one = |part: &KeyRange| matches!(part, KeyRange::One(_));
                rows.parts.iter().all(one)
            }
            _ => false,
        })
}

fn keys_of(snapshot: &Snapshot) -> impl Iterator<Item = Bytes> + '_ {
    snapshot.queries.iter().flat_map(|query| {
        let parts = match query {
            Query::Rows(rows) => &rows.parts[..],
            _ => &[],
        };
        parts.iter().map(|part| part.start().clone())
    })
}

/// What a read of single keys finds among `rows`, which are sorted.
fn points_of(want: &Rows, rows: &[Row]) -> Found {
    let mut taken = Taken::new(want);
    let mut count = 0;
    for part in &want.parts {
        let Ok(index) = rows.binary_search_by(|row| row.kv.key.cmp(part.start())) else {
            continue;
        };
        let row = &rows[index];
        count += usize::from(row.live && want.count);
        if (row.live || want.whiteouts) && !taken.is_full() {
            let with_value = taken.values > 0;
            taken.take(row.clone(), with_value);
        }
    }
    Found::Rows {
        rows: taken.rows,
        count,
    }
}

/// The span that is all that is asked for, if it is.
fn one_span(snapshot: &Snapshot) -> Option<(&Rows, &KeyRange)> {
    match &snapshot.queries[..] {
        [Query::Rows(rows)] => match &rows.parts[..] {
            [span] => Some((rows, span)),
            _ => None,
        },
        _ => None,
    }
}

fn text_of(want: &Rows, span: &KeyRange, at: Option<Revision>) -> RowsText {
    let values = match want.values {
        0 => Values::None,
        values if want.limit.unwrap_or(usize::MAX) <= values => Values::All,
        _ => Values::First,
    };
    RowsText {
        bounded: want.bytes.is_some(),
        ..RowsText::of(span, at.is_some(), want.whiteouts, values)
    }
}

fn ids(rows: &[Answer]) -> Result<Vec<LeaseId>, Error> {
    rows.iter().map(|row| row.int(0).map(LeaseId)).collect()
}

/// The answers of a flight, if none failed.
pub(super) fn all(answers: Vec<Result<Vec<Answer>, Error>>) -> Result<Vec<Vec<Answer>>, Error> {
    answers.into_iter().collect()
}

pub(super) fn no_head() -> StoreError {
    StoreError::Broken(
        "PostgreSQL: the head row of Segue's tables is gone; restore a backup".into(),
    )
}

fn unasked() -> StoreError {
    StoreError::Broken("single keys were read for something else".into())
}
