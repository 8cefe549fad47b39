//! The mirror: the new store's changes, replayed into the old one, so that there is a way back.
//!
//! Changes are replayed in the order of their revisions, many at a time, of each key the latest. The
//! *position* (everything up to here is in the old store) is a record there, compared and put in the
//! transaction of the changes: a mirror that was stalled while another member carried on is refused,
//! and what is replayed twice is the same. It also names the epoch of the mirror that wrote it, and one of an
//! earlier epoch leaves it alone: whoever has slept through what became of a rollback. Whatever is replayed is claimed in the new store, so no
//! read of the overlay sees it.
//!
//! Keys are replayed without their leases, which would run out in the old store while the new one
//! alone decides about them. A rollback attaches them again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use super::controller::now_ms;
use super::ledger::{Entry, Ledger, write};
use super::phase::State;
use super::records::readable;
use super::tail::{BYTES_MAX, KEYS_MAX, Tail, Tails, detached};
use super::troubles::Trouble;
use crate::store::{
    Claim, Guard, GuardedStore, NewStore, RecordTxn, Replay, Replayed, RequestError, Result,
    StoreError, WatchEnd,
};
use crate::types::range::successor;
use crate::types::{Epoch, KeyRange, KeyValue, Op, Range, Reply, Revision, Txn};

/// The record in the old store that holds the [`Position`].
pub const MIRROR: &str = "mirror";
/// While the mirror is close behind, it rests for as long as a replay has taken, but no longer than
/// this: half of what the old store can do is left to others.
const REST: Duration = Duration::from_millis(20);
/// A position that has moved only because nothing concerned the old store is noted this often.
const NOTED_EVERY: Duration = Duration::from_secs(2);
/// Keys that are read in one transaction: etcd's limit on operations.
const READ_KEYS_MAX: usize = 100;

/// How far the mirror is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Whose mirror it is.
    pub migration: String,
    /// The epoch of whoever wrote it.
    #[serde(default)]
    pub epoch: Epoch,
    /// The base revision that it began behind; another one is another turn of the migration.
    pub base: Revision,
    /// Every change up to this revision is in the old store.
    pub through: Revision,
    /// Keys that had leases at the beginning were detached from them in the old store.
    pub detached: bool,
    /// When it was so, in milliseconds since 1970. For people only.
    pub at_ms: u64,
}

/// What a rollback would cost now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The revision that the old store follows up to.
    pub through: i64,
    /// Revisions of the new store that are not in the old one.
    pub behind: u64,
    /// For how long that has been so, in milliseconds.
    pub behind_ms: u64,
}

/// The mirror of one epoch.
pub struct Mirror {
    /// The store that is written to. Fenced: nobody else writes there.
    pub old: Arc<dyn NewStore>,
    /// The store whose changes are replayed, under the guard of the present epoch.
    pub new: Arc<dyn GuardedStore>,
    /// The present state.
    pub state: State,
    /// Where the mirror of the epoch before may have left what comes next.
    pub tails: Tails,
    /// Where it is told that the mirror cannot go on; it says when it can again.
    pub trouble: Arc<Trouble>,
}

/// Why a watch of the new store has ended.
enum Followed {
    /// Everything up to the goal was replayed.
    Reached,
    /// History is gone that was not replayed yet.
    Gap,
}

/// How far the mirror of `state` is behind `new`, if there is one and the stores answer.
pub async fn standing(
    old: &Arc<dyn NewStore>,
    new: &Arc<dyn GuardedStore>,
    state: &State,
) -> Result<Option<Standing>> {
    let position = Ledger::new(old.clone()).get::<Position>(MIRROR).await?;
    let position = position.map(|entry| entry.value);
    let Some(position) = position.filter(|position| position.is_of(state)) else {
        return Ok(None);
    };
    let head = head(new).await?;
    let behind = u64::try_from(head.0 - position.through.0).unwrap_or_default();
    Ok(Some(Standing {
        through: position.through.0,
        behind,
        behind_ms: if behind == 0 {
            0
        } else {
            now_ms().saturating_sub(position.at_ms)
        },
    }))
}

/// The latest revision of `new`. Its status would tell more, which an etcd that was compacted takes up to
/// a tenth of a second to find out.
pub(super) async fn head(new: &Arc<dyn GuardedStore>) -> Result<Revision> {
    let nothing = Range {
        content: crate::types::Content::CountOnly,
        ..Range::key("\0")
    };
    Ok(new.range(nothing).await?.revision)
}

/// Everything up to the answer is in the old store, if there is a mirror.
pub async fn replayed_through(old: &Arc<dyn NewStore>) -> Result<Option<Revision>> {
    let position = Ledger::new(old.clone()).get::<Position>(MIRROR).await?;
    Ok(position.map(|entry| entry.value.through))
}

impl Position {
    fn is_of(&self, state: &State) -> bool {
        self.migration == state.migration && self.base == state.base
    }
}

impl Mirror {
    /// Where the mirror stands; at the base, where it has not begun.
    ///
    /// Fails with [`StoreError::StaleEpoch`] if a later epoch has begun there.
    pub async fn position(&self) -> Result<Entry<Position>> {
        let ledger = Ledger::new(self.old.clone());
        let entry = ledger.get::<Position>(MIRROR).await?.unwrap_or_default();
        let Position {
            migration, epoch, ..
        } = &entry.value;
        if *migration == self.state.migration && *epoch > self.state.epoch {
            return Err(StoreError::StaleEpoch);
        }
        if entry.value.is_of(&self.state) {
            return Ok(entry);
        }
        Ok(Entry {
            value: Position {
                migration: self.state.migration.clone(),
                epoch: self.state.epoch,
                base: self.state.base,
                through: self.state.base,
                detached: false,
                at_ms: now_ms(),
            },
            version: entry.version,
        })
    }

    /// Replays every change up to `goal`; without one, it goes on until it is stopped. Answers where
    /// it stands then.
    ///
    /// Fails with [`StoreError::StaleEpoch`] if another mirror has carried on in the meantime.
    pub async fn run(&self, goal: Option<Revision>) -> Result<Entry<Position>> {
        let mut at = self.take_over().await?;
        if !at.value.detached {
            self.detach(&mut at).await?;
        }
        loop {
            if goal.is_some_and(|goal| at.value.through >= goal) {
                return Ok(at);
            }
            let mut borrowed = self.tails.behind(&self.new, &at.value).await?;
            let Some(tail) = borrowed.tail() else {
                return Ok(at);
            };
            let followed = self.follow(tail, &mut at, goal).await;
            borrowed.discard();
            match followed? {
                Followed::Reached => return Ok(at),
                Followed::Gap => self.compare(&mut at).await?,
            }
        }
    }

    /// Makes the position this mirror's own: whatever others still have under way is refused from here on, those
    /// of earlier epochs for good.
    ///
    /// A rollback is called off without the old store, which may be the reason for it. So somebody who still
    /// believed in it may have opened that store meanwhile, for nobody: it is shut again.
    async fn take_over(&self) -> Result<Entry<Position>> {
        let mut at = self.position().await?;
        at.value.epoch = self.state.epoch;
        at.value.at_ms = now_ms();
        // Looked for behind the position, which nobody opens the store without changing.
        let line = self.old.line().await?;
        let txn = RecordTxn {
            expect: vec![(MIRROR.to_owned(), at.version)],
            writes: vec![write(MIRROR, &at.value)],
            line: line.map(|_| None),
            ..RecordTxn::default()
        };
        if !self.old.write_records(txn).await? {
            return Err(StoreError::StaleEpoch);
        }
        at.version += 1;
        Ok(at)
    }

    async fn follow(
        &self,
        tail: &mut Tail,
        at: &mut Entry<Position>,
        goal: Option<Revision>,
    ) -> Result<Followed> {
        let mut noted = Instant::now();
        tail.hurry();
        loop {
            let end = tail.fill(goal, NOTED_EVERY).await;
            let nothing_came = tail.through().is_none();
            let through = tail.through().unwrap_or(at.value.through);
            let reached = goal.is_some_and(|goal| through >= goal);
            let changes = tail.changes();
            let idle = changes.is_empty();
            if !idle || reached || (through > at.value.through && noted.elapsed() >= NOTED_EVERY) {
                let begun = Instant::now();
                let close = !tail.is_full();
                // One revision alone may be more than goes into one transaction.
                let mut pieces = chunks(changes);
                let last = pieces.pop().unwrap_or_default();
                let so_far = at.value.through;
                for piece in pieces {
                    self.replay(at, piece, so_far).await?;
                }
                self.replay(at, last, through).await?;
                noted = Instant::now();
                tail.done(&at.value);
                self.trouble.clear();
                if goal.is_none() && close {
                    tokio::time::sleep(begun.elapsed().min(REST)).await;
                }
            } else {
                tail.done(&at.value);
                if end.is_none() && !nothing_came {
                    // The old store has answered at the beginning, and the new one has nothing for it.
                    self.trouble.clear();
                }
            }
            if reached {
                return Ok(Followed::Reached);
            }
            match end {
                None if goal.is_some() || nothing_came => tail.hurry(),
                None => {}
                Some(WatchEnd::Compacted(_)) => return Ok(Followed::Gap),
                Some(WatchEnd::Lost(why)) => return Err(StoreError::Unavailable(why)),
                Some(WatchEnd::Failed(error)) => return Err(error),
            }
        }
    }

    /// Writes `changes` into the old store, and that everything up to `through` is there.
    pub(super) async fn replay(
        &self,
        at: &mut Entry<Position>,
        changes: Vec<Replayed>,
        through: Revision,
    ) -> Result<()> {
        let position = Position {
            through,
            at_ms: now_ms(),
            ..at.value.clone()
        };
        let record = (write(MIRROR, &position), at.version);
        let largest = changes.iter().max_by_key(|change| change.bytes());
        let largest = largest.map(|change| (change.key().clone(), change.bytes()));
        let replayed = self.old.replay(Replay { changes, record }).await;
        if !replayed.map_err(|error| of_pair(error, largest))? {
            // Another member carries on.
            return Err(StoreError::StaleEpoch);
        }
        at.value = position;
        at.version += 1;
        Ok(())
    }

    /// Writes the keys that have leases into the old store without them.
    async fn detach(&self, at: &mut Entry<Position>) -> Result<()> {
        if self.state.nonempty {
            // Keys that the new store held before have won over the old store's.
            self.compare(at).await?;
        }
        let mut keys = Vec::new();
        for id in self.new.leases().await?.reply {
            let status = self.new.time_to_live(id, true).await?.reply;
            keys.extend(status.map(|status| status.keys).unwrap_or_default());
        }
        let through = at.value.through;
        for some in keys.chunks(READ_KEYS_MAX) {
            let pairs = pairs(&self.new, some, None).await?;
            let changes = pairs.into_iter().map(detached).map(Replayed::Put).collect();
            self.replay(at, changes, through).await?;
        }
        at.value.detached = true;
        self.replay(at, Vec::new(), through).await?;
        if !keys.is_empty() {
            info!(
                keys = keys.len(),
                "leased keys are in the old store without their leases"
            );
        }
        Ok(())
    }

    /// Makes the old store as the new one where the history in between is gone: everything that the
    /// new store has claimed is compared.
    async fn compare(&self, at: &mut Entry<Position>) -> Result<()> {
        let target = head(&self.new).await?;
        warn!(through = %at.value.through, %target, "the mirror compares both stores: there is no history to replay");
        let mut rest = Some(KeyRange::all());
        while let Some(span) = rest.take() {
            let page = Range {
                limit: KEYS_MAX,
                content: crate::types::Content::KeysOnly,
                ..Range::of(span.clone())
            };
            let page = self.new.range(page).await?.reply;
            let last = page.kvs.last().filter(|_| page.more);
            let part = match last {
                Some(last) => KeyRange::span(span.start().clone(), Some(successor(&last.key))),
                None => span.clone(),
            };
            rest = last.and_then(|last| span.after(&last.key));
            let changes = self.differences(part, target).await?;
            let through = at.value.through;
            for some in chunks(changes) {
                self.replay(at, some, through).await?;
                self.trouble.clear();
            }
        }
        self.replay(at, Vec::new(), target).await
    }

    /// What has to be written in `part` of the old store.
    async fn differences(&self, part: KeyRange, target: Revision) -> Result<Vec<Replayed>> {
        let old = self.old.guarded(Guard::None);
        let keys_only = Range {
            content: crate::types::Content::KeysOnly,
            ..Range::of(part.clone())
        };
        let there = old.range(keys_only).await?.reply.kvs;
        let mut there: HashMap<Bytes, KeyValue> =
            there.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        // Whatever is there and not among these may be deleted.
        let claims = self.new.claims(part, usize::MAX).await?;
        let mut changes = Vec::new();
        for claim in claims {
            let present = there.remove(claim.key()).is_some();
            match claim {
                Claim::Live(kv) => changes.push(Replayed::Put(detached(kv))),
                Claim::Copied(kv) if !present => changes.push(Replayed::Put(detached(kv))),
                Claim::Whiteout(key) if present => changes.push(Replayed::Delete {
                    key,
                    revision: target,
                }),
                Claim::Copied(_) | Claim::Whiteout(_) => {}
            }
        }
        if self.state.all_claimed {
            // Nothing is left there that the new store does not know.
            let strays = there.into_keys();
            changes.extend(strays.map(|key| Replayed::Delete {
                key,
                revision: target,
            }));
        }
        Ok(changes)
    }
}

/// Says which pair the old store finds too large: it is to be written smaller, or deleted.
fn of_pair(error: StoreError, largest: Option<(Bytes, usize)>) -> StoreError {
    match (error, largest) {
        (StoreError::Request(RequestError::TooLarge), Some((key, bytes))) => {
            RequestError::Unacceptable(format!(
                "the pair of the key {} with its {bytes} bytes is too large for the old store",
                readable(&key)
            ))
            .into()
        }
        (error, _) => error,
    }
}

/// Cuts changes into pieces of one transaction each.
fn chunks(changes: Vec<Replayed>) -> Vec<Vec<Replayed>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut bytes = 0;
    for change in changes {
        bytes += change.bytes();
        chunk.push(change);
        if chunk.len() >= KEYS_MAX || bytes >= BYTES_MAX {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// The pairs of these keys that exist, at a revision or the latest, in one snapshot per
/// [`READ_KEYS_MAX`].
pub(super) async fn pairs(
    store: &Arc<dyn GuardedStore>,
    keys: &[Bytes],
    at: Option<Revision>,
) -> Result<Vec<KeyValue>> {
    let mut pairs = Vec::with_capacity(keys.len());
    for some in keys.chunks(READ_KEYS_MAX) {
        let ops = some.iter().map(|key| {
            Op::Range(Range {
                at,
                ..Range::key(key.clone())
            })
        });
        let replies = store.txn(Txn::of(ops.collect())).await?.reply.replies;
        pairs.extend(replies.into_iter().flat_map(|reply| match reply {
            Reply::Range(range) => range.kvs,
            _ => Vec::new(),
        }));
    }
    Ok(pairs)
}
