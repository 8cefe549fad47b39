//! Changes that somebody makes in the old store past the proxies.
//!
//! While a migration is under way nobody may: the new store decides about every key that it has
//! claimed, and never asks for it again. So what is changed there is detected where the old store can
//! tell, counted and named. With `--follow` it is also carried into the new store, as a change like
//! any other: with a claim, a revision, and an event for watchers.
//!
//! Whoever asks for that wants the last writer to win. But a foreign change must not undo a newer one
//! that was made through a proxy, and the two stores have no common clock. So it is followed only if
//! the key is unclaimed, or was copied up and has not changed since, or was last changed by following;
//! compared in the transaction that changes it. Otherwise it is a conflict: counted, named, and left
//! alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::controller::{Controller, now_ms};
use super::ledger::{Entry, write};
use super::phase::{Phase, State};
use super::records::readable;
use super::troubles::Trouble;
use crate::store::foreign::{Bookmark, ForeignBatch, ForeignChange};
use crate::store::{Claim, GuardedStore, Read, RecordTxn, Result, StoreError, exactly};
use crate::types::{
    Change, Compare, CompareResult, CompareTarget, Delete, Event, KeyRange, KeyValue, LeaseId, Op,
    Put, Range, Revision, Txn,
};

/// The name of the [`Foreign`] record.
pub const FOREIGN: &str = "foreign";

/// How long to wait when the old store cannot be watched. In the normal phase it may be gone for
/// good.
const PAUSE: Duration = Duration::from_secs(2);

/// A store that has not failed for so long can tell; there was just nothing to be told.
const QUIET: Duration = Duration::from_secs(10);

/// How often the position is written when there is nothing else to write.
const KEEP: Duration = Duration::from_secs(10);

/// Keys that are remembered as changed by following, at most. About a key that is forgotten, the next
/// foreign change counts as a conflict.
const FOLLOWED_MAX: usize = 100_000;

/// What is known of foreign changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// The old store can tell, and is watched.
    pub watched: bool,
    /// All changes in the old store up to this revision were seen.
    pub through: Revision,
    /// What the old store held then, in short, where its revisions do not say so.
    #[serde(default)]
    pub mark: Option<u64>,
    /// There were some that the old store did not know any more when it was asked.
    pub missed: bool,
    /// How many there were.
    pub changes: u64,
    /// How many of them were carried into the new store.
    pub followed: u64,
    /// How many were not, although that was asked for.
    pub conflicts: u64,
    /// The first one.
    pub first: Option<Named>,
    /// The latest one.
    pub latest: Option<Named>,
    /// The latest conflict.
    pub conflict: Option<Named>,
}

/// One change, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The key, readable.
    pub key: String,
    /// When it was seen, in milliseconds since 1970.
    pub seen_ms: u64,
    /// Why it was not followed, if it was to be.
    pub why: Option<String>,
}

/// What became of a change.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It was only seen; or the new store says the same already.
    Seen,
    Followed,
    Conflict(String),
}

impl Foreign {
    fn note(&mut self, change: &ForeignChange, fate: Fate, now: u64) {
        let mut named = Named {
            key: readable(change.key()),
            seen_ms: now,
            why: None,
        };
        self.changes += 1;
        self.first.get_or_insert_with(|| named.clone());
        self.latest = Some(named.clone());
        match fate {
            Fate::Seen => {}
            Fate::Followed => self.followed += 1,
            Fate::Conflict(why) => {
                self.conflicts += 1;
                named.why = Some(why);
                self.conflict = Some(named);
            }
        }
    }
}

/// What a member keeps about foreign changes.
#[derive(Default)]
pub(super) struct Watched {
    /// The record as of the last look.
    pub(super) record: ArcSwap<Foreign>,
    followed: Mutex<BTreeMap<Bytes, Step>>,
}

/// What following did to a key last.
#[derive(Clone, Copy)]
struct Step {
    /// The foreign change.
    old: Revision,
    /// The change that was made of it.
    new: Revision,
}

impl Watched {
    fn step(&self, key: &Bytes) -> Option<Step> {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.get(key).copied()
    }

    fn remember(&self, key: Bytes, step: Step) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.len() >= FOLLOWED_MAX && !followed.contains_key(&key) {
            followed.pop_first();
        }
        followed.insert(key, step);
    }
}

impl Controller {
    /// Reads what the member that watches the old store has found.
    pub(super) async fn look_at_foreign(&self, state: &State) -> Result<()> {
        if matches!(state.phase, Phase::Migration | Phase::Normal)
            && let Some(entry) = self.ledger.get::<Foreign>(FOREIGN).await?
        {
            self.foreign.record.store(Arc::new(entry.value));
        }
        Ok(())
    }

    /// What is known of foreign changes.
    #[must_use]
    pub fn foreign(&self) -> Arc<Foreign> {
        self.foreign.record.load_full()
    }
}

/// The job: watches the old store for as long as the epoch lasts.
pub(super) async fn watch(shared: Arc<Controller>, state: State, trouble: Arc<Trouble>) {
    let watcher = Watcher {
        new: shared.new.guarded(state.guard()),
        shared,
        state,
        trouble,
    };
    loop {
        match watcher.run().await {
            Ok(true) => {}
            // Nobody can tell.
            Ok(false) => std::future::pending::<()>().await,
            Err(StoreError::StaleEpoch) => return,
            Err(error) => watcher.fails(&error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

struct Watcher {
    shared: Arc<Controller>,
    new: Arc<dyn GuardedStore>,
    state: State,
    trouble: Arc<Trouble>,
}

impl Watcher {
    /// Says so where people look, while it matters to them: in the normal phase the old store may be gone.
    fn fails(&self, error: &StoreError) {
        debug!(%error, "the old store cannot be watched for foreign changes");
        if self.state.phase == Phase::Migration {
            let what = "looking out for what others change in the old store";
            self.trouble.tell(format!("{what}: {error}"));
        }
    }

    /// Goes on behind what was seen; answers `false` if the store has no way to tell.
    async fn run(&self) -> Result<bool> {
        let ledger = &self.shared.ledger;
        let mut entry = ledger.get::<Foreign>(FOREIGN).await?.unwrap_or_default();
        let seen = Bookmark {
            through: entry.value.through.max(self.state.base),
            mark: entry.value.mark,
        };
        let Some(mut batches) = self.shared.old.foreign(seen).await? else {
            return Ok(false);
        };
        entry.value.through = seen.through;
        if !entry.value.watched {
            entry.value.watched = true;
            if !self.keep(&mut entry).await? {
                return Ok(true);
            }
        }
        let mut kept = Instant::now();
        loop {
            let batch = match tokio::time::timeout(QUIET, batches.next()).await {
                Ok(Some(batch)) => batch?,
                Ok(None) => {
                    let why = "it does not tell any more".to_owned();
                    return Err(StoreError::Unavailable(why));
                }
                Err(_) => {
                    self.trouble.clear();
                    continue;
                }
            };
            let news = batch.missed || !batch.changes.is_empty() || batch.mark != entry.value.mark;
            let due = news || kept.elapsed() > KEEP;
            self.take(&mut entry.value, batch).await?;
            self.trouble.clear();
            if due {
                if !self.keep(&mut entry).await? {
                    // Another owner is at it.
                    return Ok(true);
                }
                kept = Instant::now();
            }
        }
    }

    async fn keep(&self, entry: &mut Entry<Foreign>) -> Result<bool> {
        let txn = RecordTxn {
            expect: vec![(FOREIGN.to_owned(), entry.version)],
            writes: vec![write(FOREIGN, &entry.value)],
            ..RecordTxn::default()
        };
        let done = self.shared.ledger.write_while_open(txn).await?;
        entry.version += 1;
        Ok(done)
    }

    async fn take(&self, record: &mut Foreign, batch: ForeignBatch) -> Result<()> {
        if batch.missed {
            warn!("the old store no longer knows what was changed there in the meantime");
        }
        let mut next = record.clone();
        next.missed |= batch.missed;
        for change in &batch.changes {
            let fate = if self.shared.options.follow {
                self.follow(change).await?
            } else {
                Fate::Seen
            };
            let key = readable(change.key());
            debug!(%key, ?fate, "a foreign change");
            next.note(change, fate, now_ms());
            // The first one, and then ever less often: there may be very many.
            if next.changes.is_power_of_two() {
                let (changes, conflicts) = (next.changes, next.conflicts);
                warn!(%key, changes, conflicts, "somebody changes the old store past the proxies");
            }
        }
        next.through = next.through.max(batch.through);
        next.mark = batch.mark;
        *record = next;
        Ok(())
    }

    /// Carries a change into the new store, unless a newer one would be undone.
    async fn follow(&self, change: &ForeignChange) -> Result<Fate> {
        match change {
            ForeignChange::Unreadable(_, why) => Ok(Fate::Conflict(why.clone())),
            ForeignChange::Key(event) => self.follow_key(event).await,
            ForeignChange::Below(prefix) => self.follow_below(prefix).await,
        }
    }

    /// A directory is gone. What of it was not copied yet is not there any more either.
    async fn follow_below(&self, prefix: &Bytes) -> Result<Fate> {
        let keys = KeyRange::prefix(prefix.clone());
        let (claims, _) = self.present(keys).await?;
        let mut kept = 0;
        for claim in claims {
            let mod_revision = match &claim {
                Claim::Whiteout(_) => continue,
                Claim::Copied(kv) => Some(kv.mod_revision),
                Claim::Live(kv) => self.followed_to(kv),
            };
            let delete = Op::Delete(Delete {
                keys: KeyRange::One(claim.key().clone()),
                prev_kv: false,
            });
            let done = match mod_revision {
                Some(expected) => {
                    let key = claim.key().clone();
                    self.change(Vec::new(), key, expected, delete)
                        .await?
                        .is_ok()
                }
                None => false,
            };
            kept += usize::from(!done);
        }
        Ok(match kept {
            0 => Fate::Followed,
            _ => Fate::Conflict(format!("{kept} keys in it were changed through a proxy")),
        })
    }

    async fn follow_key(&self, event: &Event) -> Result<Fate> {
        let key = event.key().clone();
        if self
            .shared
            .foreign
            .step(&key)
            .is_some_and(|step| step.old >= event.revision())
        {
            // Done before the position was written.
            return Ok(Fate::Seen);
        }
        let op = match &event.change {
            Change::Put(kv) if kv.lease != LeaseId::NONE => {
                return Ok(Fate::Conflict("it has a lease of the old store's".into()));
            }
            Change::Put(kv) => Op::Put(Put::new(key.clone(), kv.value.clone())),
            Change::Delete { .. } => Op::Delete(Delete {
                keys: KeyRange::One(key.clone()),
                prev_kv: false,
            }),
        };
        let (claims, live) = self.present(KeyRange::One(key.clone())).await?;
        let newer = || {
            Ok(Fate::Conflict(
                "it was changed through a proxy since it was copied".into(),
            ))
        };
        let (copies, expected) = match (claims.into_iter().next(), live) {
            (Some(Claim::Copied(kv)), _) => (Vec::new(), kv.mod_revision),
            (Some(Claim::Live(kv)), _) | (None, Some(kv)) => match self.followed_to(&kv) {
                Some(revision) => (Vec::new(), revision),
                None => return newer(),
            },
            // Gone here as there.
            (Some(Claim::Whiteout(_)), _) if matches!(op, Op::Delete(_)) => return Ok(Fate::Seen),
            (Some(Claim::Whiteout(_)), _) => match self.shared.foreign.step(&key) {
                Some(_) => (Vec::new(), Revision(0)),
                None => return newer(),
            },
            (None, None) if self.state.phase == Phase::Migration => {
                let Some(copy) = self.before(event) else {
                    return Ok(Fate::Seen);
                };
                let expected = copy.mod_revision;
                (vec![copy], expected)
            }
            (None, None) if matches!(op, Op::Delete(_)) => return Ok(Fate::Seen),
            (None, None) => (Vec::new(), Revision(0)),
        };
        match self.change(copies, key.clone(), expected, op).await? {
            Ok(new) => {
                let old = event.revision();
                self.shared.foreign.remember(key, Step { old, new });
                Ok(Fate::Followed)
            }
            Err(why) => Ok(Fate::Conflict(why)),
        }
    }

    /// The pair to copy up before an unclaimed key is changed: what it was before. So the change has
    /// an event with its past, and a backfill that has read the key earlier finds it claimed. A key
    /// that is new to the old store is taken as of its last revision that counts.
    fn before(&self, event: &Event) -> Option<KeyValue> {
        let base = self.state.base;
        let before = event.prev.clone().or_else(|| match &event.change {
            Change::Put(kv) => Some(KeyValue {
                create_revision: base,
                mod_revision: base,
                version: 1,
                ..kv.clone()
            }),
            Change::Delete { .. } => None,
        });
        before.map(|kv| KeyValue {
            lease: LeaseId::NONE,
            ..kv.at_latest(base)
        })
    }

    /// The key's revision, if following has made it.
    fn followed_to(&self, kv: &KeyValue) -> Option<Revision> {
        let step = self.shared.foreign.step(&kv.key)?;
        (step.new == kv.mod_revision).then_some(kv.mod_revision)
    }

    /// What the new store has decided about `keys`, and the first pair that is there in any case.
    async fn present(&self, keys: KeyRange) -> Result<(Vec<Claim>, Option<KeyValue>)> {
        let live = Read::Range(Range {
            limit: 1,
            ..Range::of(keys.clone())
        });
        let reads = vec![live, Read::Claims { keys, values: 0 }];
        let replies = self.new.snapshot(None, reads).await?.reply;
        let [live, claims] = exactly(replies)?;
        let live = live.into_range()?.kvs.into_iter().next();
        Ok((claims.into_claims()?, live))
    }

    /// Carries out `op` if the key still has the mod revision `expected`; answers the revision, or
    /// why not.
    async fn change(
        &self,
        copies: Vec<KeyValue>,
        key: Bytes,
        expected: Revision,
        op: Op,
    ) -> Result<std::result::Result<Revision, String>> {
        let txn = Txn {
            compares: vec![Compare {
                keys: KeyRange::One(key),
                result: CompareResult::Equal,
                target: CompareTarget::Mod(expected),
            }],
            success: vec![op],
            failure: Vec::new(),
        };
        match self.new.txn_over(copies, txn).await {
            Ok(answer) if answer.reply.succeeded => Ok(Ok(answer.revision)),
            Ok(_) => Ok(Err("it was changed through a proxy at the same time".into())),
            Err(StoreError::Request(why)) => {
                Ok(Err(format!("the new store does not take it: {why}")))
            }
            Err(error) => Err(error),
        }
    }
}
