//! From the columns of a driver to what the engine knows.

use std::sync::Arc;

use bytes::Bytes;

use super::backend::{Found, Head, Lease, LogScan, Logged, Row, Rows};
use super::tables::{LEASED, OWN, log_kind};
use crate::store::{Line, Record};
use crate::types::{Change, Epoch, Event, EventBatch, KeyValue, LeaseId, Revision};

/// A row as its driver has it. Columns are counted from 0.
pub(super) trait Columns {
    /// A column is not there, or not of this type.
    type Error;

    /// A number, of whatever width.
    fn int(&self, column: usize) -> Result<i64, Self::Error>;

    /// A number that may be missing.
    fn maybe_int(&self, column: usize) -> Result<Option<i64>, Self::Error>;

    /// Bytes; none where they are missing.
    fn bytes(&self, column: usize) -> Result<Bytes, Self::Error>;

    /// A text.
    fn text(&self, column: usize) -> Result<String, Self::Error>;
}

/// Reads the columns of [`super::text::Texts::head`].
pub(super) fn head_of<C: Columns>(row: &C) -> Result<Head, C::Error> {
    let claims = row.int(8)? != 0;
    let base = Revision(row.int(9)?);
    Ok(Head {
        revision: Revision(row.int(0)?),
        compacted: Revision(row.int(1)?),
        swept: Revision(row.int(2)?),
        origin: Revision(row.int(3)?),
        unnumbered: row.int(4)?,
        at_ms: row.int(5)?,
        fenced: row.int(6)? != 0,
        line: row.maybe_int(7)?.map(|epoch| Line {
            epoch: Epoch(epoch.cast_unsigned()),
            claims,
            base,
        }),
    })
}

/// Reads the columns of [`super::text::row_columns`].
pub(super) fn row_of<C: Columns>(row: &C) -> Result<Row, C::Error> {
    Ok(Row {
        kv: KeyValue {
            key: row.bytes(0)?,
            value: row.bytes(1)?,
            create_revision: Revision(row.int(2)?),
            mod_revision: Revision(row.int(3)?),
            version: row.int(4)?,
            lease: LeaseId(row.int(5)?),
        },
        live: row.int(6)? != 0,
        logged: match row.int(7)? {
            0 => Logged::No,
            leased if leased == i64::from(LEASED) => Logged::Leased,
            own if own == i64::from(OWN) => Logged::Own,
            _ => Logged::Yes,
        },
    })
}

/// Reads the columns of [`super::text::Texts::lease`].
pub(super) fn lease_of<C: Columns>(row: &C) -> Result<Lease, C::Error> {
    Ok(Lease {
        id: LeaseId(row.int(0)?),
        ttl_s: row.int(1)?,
        deadline_ms: row.int(2)?,
    })
}

/// Reads the columns of [`super::text::Texts::record`].
pub(super) fn record_of<C: Columns>(row: &C) -> Result<Record, C::Error> {
    Ok(Record {
        name: row.text(0)?,
        value: row.bytes(1)?,
        version: row.int(2)?,
    })
}

/// Puts entries of the log together to changes in whole revisions, until there are enough.
///
/// Entries are taken in the order of revisions, with these columns: revision, key, kind, value,
/// create revision, version, lease and previous revision of the entry, then kind, value, create
/// revision, version and lease of the one that it superseded.
pub(super) struct Batches<'a> {
    scan: &'a LogScan,
    head: &'a Head,
    whole: Vec<Arc<EventBatch>>,
    open: Option<EventBatch>,
    /// Where the brief entries of the open batch are.
    brief: Vec<usize>,
    reached: Revision,
    bytes: usize,
    events: usize,
}

impl<'a> Batches<'a> {
    pub(super) fn new(scan: &'a LogScan, head: &'a Head) -> Self {
        Self {
            scan,
            head,
            whole: Vec::new(),
            open: None,
            brief: Vec::new(),
            reached: scan.to.min(head.revision),
            bytes: 0,
            events: 0,
        }
    }

    /// The last revision that entries are wanted of.
    pub(super) fn to(&self) -> Revision {
        self.scan.to.min(self.head.revision)
    }

    /// Takes one entry; answers whether more are wanted.
    pub(super) fn take<C: Columns>(&mut self, row: &C) -> Result<bool, C::Error> {
        let revision = Revision(row.int(0)?);
        // What was replayed is history, and no event of this store: it lies behind the revision, and up to
        // the origin once the store goes on.
        if revision > self.to() {
            return Ok(false);
        }
        if revision <= self.head.origin {
            return Ok(true);
        }
        let key = row.bytes(1)?;
        if !self.scan.parts.iter().any(|part| part.contains(&key)) {
            return Ok(true);
        }
        if let Some(whole) = self.open.take_if(|batch| batch.revision < revision) {
            self.whole.push(Arc::new(whole));
            self.brief.clear();
            if self.bytes >= self.scan.max_bytes || self.events >= self.scan.max_events {
                self.reached = Revision(revision.0 - 1);
                return Ok(false);
            }
        }
        // What a change at or below the compacted revision superseded is gone or going.
        let prev = if self.scan.prev_kv && revision > self.head.compacted {
            prev_of(row, &key)?
        } else {
            None
        };
        let kind = row.int(2)?;
        let version = row.int(5)?;
        // A brief entry is of either kind; what was put has a version.
        let change = if kind == log_kind::DELETE || (kind == log_kind::BRIEF && version == 0) {
            Change::Delete { key, revision }
        } else {
            Change::Put(KeyValue {
                key,
                value: row.bytes(3)?,
                create_revision: Revision(row.int(4)?),
                mod_revision: revision,
                version,
                lease: LeaseId(row.int(6)?),
            })
        };
        let event = Event { change, prev };
        self.bytes += event.bytes();
        self.events += 1;
        let batch = self.open.get_or_insert_with(|| EventBatch {
            revision,
            events: Vec::with_capacity(1),
        });
        if kind == log_kind::BRIEF {
            self.brief.push(batch.events.len());
        } else {
            // The pair before a revision is named only by the last of its entries of the key.
            for index in &self.brief {
                let earlier = &mut batch.events[*index];
                if earlier.key() == event.key() {
                    earlier.prev.clone_from(&event.prev);
                }
            }
        }
        batch.events.push(event);
        Ok(true)
    }

    /// Notes that entries behind `reached`, or some of them, were not looked at.
    pub(super) fn end_at(&mut self, reached: Revision) {
        self.reached = self.reached.min(reached);
    }

    /// All changes up to where the scan came. The last revision is whole: there are no more entries,
    /// or [`Self::take`] said that it wants none.
    pub(super) fn finish(mut self) -> Found {
        self.whole.extend(self.open.map(Arc::new));
        Found::Log {
            batches: self.whole,
            reached: self.reached,
        }
    }
}

/// The pair before a change, from the columns behind it.
fn prev_of<C: Columns>(row: &C, key: &Bytes) -> Result<Option<KeyValue>, C::Error> {
    Ok(match row.maybe_int(8)? {
        None | Some(log_kind::DELETE) => None,
        Some(_) => Some(KeyValue {
            key: key.clone(),
            value: row.bytes(9)?,
            create_revision: Revision(row.int(10)?),
            mod_revision: Revision(row.int(7)?),
            version: row.int(11)?,
            lease: LeaseId(row.int(12)?),
        }),
    })
}

/// Rows so far, and how many more are wanted.
pub(super) struct Taken {
    /// In key order.
    pub(super) rows: Vec<Row>,
    /// Rows that are still wanted.
    pub(super) left: usize,
    /// Bytes that are still wanted.
    bytes: usize,
    /// Live rows that are still wanted with their values.
    pub(super) values: usize,
}

impl Taken {
    /// None so far of those that `want` wants.
    pub(super) fn new(want: &Rows) -> Self {
        Self {
            rows: Vec::new(),
            left: want.limit.unwrap_or(usize::MAX),
            bytes: want.bytes.unwrap_or(usize::MAX),
            values: want.values,
        }
    }

    /// Whether no more are wanted. If they are, there are no more.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0 || self.bytes == 0
    }

    pub(super) fn take(&mut self, mut row: Row, with_value: bool) {
        self.left -= 1;
        if !with_value {
            row.kv.value = Bytes::new();
        }
        if with_value && row.live {
            self.values -= 1;
        }
        self.bytes = self.bytes.saturating_sub(row.kv.weight());
        self.rows.push(row);
    }
}
