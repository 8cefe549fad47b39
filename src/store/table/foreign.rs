//! What others change in a table. Segue only reads there, so all changes are.
//!
//! A table cannot tell, so it is looked at: again and again a *walk* reads all of it, in one statement
//! and in whatever order is cheapest, and compares what it sees with what the walk before has seen
//! (see [`super::prints`]). Of several changes of one key between two walks only what came of them is
//! seen.
//!
//! A column with revisions is no short cut. Whoever changes a row by hand may leave it as it is, a
//! transaction that takes the next number may commit after one that takes the number behind it, and
//! rows that are gone have none.
//!
//! What happened while nobody looked cannot be named: the first walk only learns how things are. But
//! their *mark* is written down with what was seen, so that it is known whether anything happened. What
//! happens before the very first walk is left to the verification, which compares what was copied.

use std::collections::VecDeque;
use std::ops::ControlFlow::Continue;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::prints::Prints;
use super::rows::{self, Judged, Row};
use super::{GET_KEYS, PlainTable};
use crate::store::foreign::{Bookmark, ForeignBatch, ForeignChange, ForeignChanges};
use crate::store::{Result, StoreError};
use crate::types::{Change, Event, KeyValue, LeaseId, Revision};

/// The least time from one walk to the next.
const PAUSE: Duration = Duration::from_secs(1);
/// How much longer than a walk itself the pause behind it is: the database has nine tenths of its
/// time for others.
const REST: u32 = 9;
/// Changed keys of one walk that are remembered. The next one, which sees those that are left, begins
/// when they are told.
const CHANGED_MAX: usize = 10_000;
/// Keys that are watched over at most: of 30 bytes each, they take 575 MB.
const KEYS_MAX: usize = 4_000_000;

/// What a process knows of the table, beyond what one asks and another one asks again.
#[derive(Default)]
pub(super) struct Lookout {
    prints: Prints,
    /// What was taken of what was told; nothing before the first walk.
    taken: Option<Bookmark>,
    /// The keys of the last batch, and what is seen once it is taken.
    told: Option<(Vec<Bytes>, Bookmark)>,
    /// The last number of a change. None is used twice, also if a change is told again.
    number: Revision,
    /// Keys that have changed and are to be told.
    changed: VecDeque<Bytes>,
    /// When the next walk may begin.
    due: Option<Instant>,
}

/// The changes behind what was `seen`; nothing, if the table is too large.
pub(super) async fn changes(table: PlainTable, seen: Bookmark) -> Result<Option<ForeignChanges>> {
    let mut lookout = table.lookout.clone().lock_owned().await;
    let Some(missed) = lookout.go_on(&table, seen).await? else {
        warn!(
            "the table has more than {KEYS_MAX} keys: writes past the proxies will not be noticed"
        );
        *lookout = Lookout::default();
        return Ok(None);
    };
    let first = ForeignBatch {
        changes: Vec::new(),
        missed,
        through: seen.through,
        mark: Some(lookout.prints.mark()),
    };
    let first = stream::iter([Ok(first)]);
    Ok(Some(first.chain(rest(table, lookout)).boxed()))
}

fn rest(table: PlainTable, lookout: OwnedMutexGuard<Lookout>) -> ForeignChanges {
    let changes = stream::unfold(Some((table, lookout)), |state| async {
        let (table, mut lookout) = state?;
        match lookout.next(&table).await {
            Ok(batch) => Some((Ok(batch), Some((table, lookout)))),
            Err(error) => Some((Err(error), None)),
        }
    });
    changes.boxed()
}

impl Lookout {
    /// Goes on from what was seen, or begins anew; answers whether there was something in between that
    /// is not known, or nothing if there are too many keys.
    async fn go_on(&mut self, table: &PlainTable, seen: Bookmark) -> Result<Option<bool>> {
        self.number = self.number.max(seen.through);
        self.changed.clear();
        match self.told.take() {
            Some((keys, as_told)) if as_told == seen => self.take(&keys, seen),
            _ => {}
        }
        if self.taken == Some(seen) {
            return Ok(Some(false));
        }
        self.walk(table).await?;
        if self.prints.overflow() {
            return Ok(None);
        }
        self.prints.tell_all();
        let mark = self.prints.mark();
        self.taken = Some(Bookmark {
            mark: Some(mark),
            ..seen
        });
        Ok(Some(seen.mark.is_some_and(|before| before != mark)))
    }

    fn take(&mut self, keys: &[Bytes], seen: Bookmark) {
        self.prints.tell(keys);
        self.taken = Some(seen);
    }

    /// The next changes.
    async fn next(&mut self, table: &PlainTable) -> Result<ForeignBatch> {
        if let Some((keys, seen)) = self.told.take() {
            self.take(&keys, seen);
        }
        while self.changed.is_empty() {
            self.walk(table).await?;
            if self.prints.overflow() {
                return Err(StoreError::Broken(format!(
                    "the table has more than {KEYS_MAX} keys, too many to watch over"
                )));
            }
            let now_s = table.now_s().await?;
            self.changed.extend(self.prints.end(now_s, CHANGED_MAX));
        }
        let some = self.changed.len().min(GET_KEYS);
        let keys: Vec<Bytes> = self.changed.drain(..some).collect();
        let mut judged = table.judged(&keys).await?;
        let changes = keys.iter().map(|key| {
            self.number = self.number.next();
            change(
                key,
                judged.remove(key),
                self.prints.was_pair(key),
                self.number,
            )
        });
        let changes = changes.collect();
        let seen = Bookmark {
            through: self.number,
            mark: Some(self.prints.mark_with(&keys)),
        };
        self.told = Some((keys, seen));
        Ok(ForeignBatch {
            changes,
            missed: false,
            through: seen.through,
            mark: seen.mark,
        })
    }

    /// Reads the whole table, when it is time to.
    async fn walk(&mut self, table: &PlainTable) -> Result<()> {
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        let begun = Instant::now();
        self.prints.begin();
        let prints = &mut self.prints;
        let mut rows: u64 = 0;
        let mut take = |row: Row| {
            let Some(key) = row.key.clone() else {
                return Continue(());
            };
            if table.reserved.contains(&key) {
                return Continue(());
            }
            rows += 1;
            let whole = row.clone();
            let judged = rows::judge(&table.shape, [row], true).next();
            let pair = matches!(judged, Some(Judged::Pair(_)));
            prints.see(&key, &whole, pair, KEYS_MAX);
            Continue(())
        };
        let walked = table.source.each(table.shape.walk(), &mut take).await;
        let took = begun.elapsed();
        debug!(rows, ?took, "walked over the table");
        // One that has failed was as dear.
        self.due = Some(Instant::now() + PAUSE.max(took * REST));
        walked
    }
}

/// What has become of a key.
fn change(key: &Bytes, now: Option<Judged>, was_pair: bool, number: Revision) -> ForeignChange {
    match now {
        Some(Judged::Reject(key, why)) => ForeignChange::Unreadable(key, why),
        Some(Judged::Pair(kv)) => ForeignChange::Key(Event {
            change: Change::Put(KeyValue {
                mod_revision: number,
                ..kv
            }),
            prev: None,
        }),
        None => ForeignChange::Key(Event {
            change: Change::Delete {
                key: key.clone(),
                revision: number,
            },
            // What its value was is not known any more. But it was there, so that watchers are to
            // hear of its end, copied or not.
            prev: was_pair.then(|| KeyValue {
                key: key.clone(),
                value: Bytes::new(),
                create_revision: Revision(1),
                mod_revision: Revision(1),
                version: 1,
                lease: LeaseId::NONE,
            }),
        }),
    }
}
