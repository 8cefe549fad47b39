//! A migration in mid-flight, driven step by step beside a twin that never migrates.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use segue::migration::opening::forget_past;
use segue::overlay::{Overlay, WithPast};
use segue::store::{
    CopyUp, Guard, GuardedStore, Line, NewStore, OldStore, PageSize, RecordTxn, RecordWrite, Store,
    StoreError, Watch, WatchItem,
};
use segue::types::{
    Content, Epoch, EventBatch, Grant, KeyRange, KeyValue, Put, Reserved, Revision,
};
use tempfile::TempDir;

use super::lines::Lines;
use super::sabotage::Sabotaged;
use crate::random::{self, Request};

/// Something that happens in the migration phase.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A client asks.
    Client(Request),
    /// A backfill worker reads its next page from the old store, and holds it.
    Read { worker: usize, keys: usize },
    /// It copies up the page that it holds, however old that is, and its cursor with it.
    Write { worker: usize },
    /// The member learns how far the backfill is.
    Learn,
    /// The member is killed and started again: it forgets all that it knew.
    Restart,
    /// The backfill is brought to its end and the fleet goes to the next phase.
    Advance,
    /// The fleet goes from the normal phase back to the migration phase.
    Return,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => random::request().prop_map(Step::Client),
        2 => (0usize..WORKERS, 1usize..4).prop_map(|(worker, keys)| Step::Read { worker, keys }),
        2 => (0usize..WORKERS).prop_map(|worker| Step::Write { worker }),
        2 => Just(Step::Learn),
        1 => Just(Step::Restart),
        1 => prop_oneof![
            2 => Just(Step::Learn),
            1 => Just(Step::Advance),
            1 => Just(Step::Return),
        ],
    ]
}

/// How a rule of the overlay is broken, to see that the comparison notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Fact 1: somebody changes an unclaimed key in the old store.
    OldStoreChanges,
    /// Fact 2: a delete leaves no claim.
    DeletesLeaveNoClaim,
    /// Fact 3: claims are removed before settle.
    ClaimsAreRemoved,
    /// Fact 4: copy-up overwrites what is claimed.
    CopyUpOverwrites,
    /// Fact 5: copy-up is a change like any other.
    CopyUpIsAChange,
}

/// Two workers on the same shard, so that they race.
const WORKERS: usize = 2;
const CURSOR: &str = "backfill/shard/0";
/// A page in the hands of a worker: what it read, where the next begins, and the cursor's version
/// when it read it.
struct Held {
    kvs: Vec<KeyValue>,
    next: Option<Bytes>,
    expected: i64,
    /// The worker's handle on the new store, of the epoch in which it read.
    handle: Arc<dyn GuardedStore>,
    epoch: Epoch,
}

/// A migration in mid-flight, driven step by step.
struct Migration {
    old: Arc<dyn OldStore>,
    new: Arc<dyn NewStore>,
    guarded: Arc<dyn GuardedStore>,
    base: Revision,
    overlay: Arc<Overlay>,
    held: [Option<Held>; WORKERS],
    sabotage: Option<Sabotage>,
    epoch: Epoch,
    phase: Phase,
    /// The normal phase was entered once, which members read in the state.
    all_claimed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Migration,
    Normal,
    Settled,
}

impl Migration {
    async fn open(
        old: Arc<dyn OldStore>,
        new: Arc<dyn NewStore>,
        sabotage: Option<Sabotage>,
    ) -> Self {
        let base = old.revision().await.unwrap();
        let mut migration = Self {
            overlay: Arc::new(Overlay::new(
                old.clone(),
                new.guarded(Guard::None),
                Reserved::default(),
            )),
            guarded: new.guarded(Guard::None),
            old,
            new,
            base,
            held: [const { None }; WORKERS],
            sabotage,
            epoch: Epoch(0),
            phase: Phase::Migration,
            all_claimed: false,
        };
        migration.enter(Phase::Migration).await;
        migration.copy_leased().await;
        let opened = forget_past(&migration.old, &migration.guarded, base).await;
        opened.unwrap();
        migration
    }

    /// Leased keys are copied up before the phase opens, in order of create revision.
    async fn copy_leased(&self) {
        let mut leased = Vec::new();
        for lease in self.old.leases().await.unwrap() {
            let grant = Grant {
                id: Some(lease.id),
                ttl_s: lease.ttl_s,
            };
            self.guarded.grant(grant).await.unwrap();
            leased.extend(
                self.old
                    .get(lease.keys)
                    .await
                    .unwrap()
                    .into_iter()
                    .flatten(),
            );
        }
        leased.sort_by_key(|kv| kv.create_revision);
        self.guarded
            .copy_up(CopyUp {
                kvs: leased,
                record: None,
            })
            .await
            .unwrap();
    }

    /// Moves the fleet to `phase`, in a new epoch.
    async fn enter(&mut self, phase: Phase) {
        self.epoch = self.epoch.next();
        let claims = phase == Phase::Migration && !self.all_claimed;
        let line = Line {
            epoch: self.epoch,
            claims,
            base: self.base,
        };
        let line = Some((phase != Phase::Settled).then_some(line));
        assert!(
            self.new
                .write_records(RecordTxn {
                    line,
                    ..RecordTxn::default()
                })
                .await
                .unwrap()
        );
        let guard = Guard::Epoch {
            epoch: self.epoch,
            claims,
        };
        self.guarded = match (phase, self.sabotage) {
            (Phase::Settled, _) => self.new.guarded(Guard::None),
            (_, None) => self.new.guarded(guard),
            (_, Some(sabotage)) => Arc::new(Sabotaged {
                inner: self.new.guarded(guard),
                sabotage,
            }),
        };
        self.phase = phase;
        self.all_claimed |= phase == Phase::Normal;
        self.lay_overlay();
    }

    /// A member that knows nothing yet lays the overlay.
    fn lay_overlay(&mut self) {
        let (old, new) = (self.old.clone(), self.guarded.clone());
        self.overlay = Arc::new(Overlay::new(old, new, Reserved::default()));
        if self.all_claimed {
            self.overlay.set_copied(vec![KeyRange::all()]);
        }
    }

    /// What clients are served from.
    fn serving(&self) -> Arc<dyn Store> {
        let store: Arc<dyn Store> = match self.phase {
            Phase::Migration => self.overlay.clone(),
            Phase::Normal => self.guarded.clone(),
            Phase::Settled => return self.guarded.clone(),
        };
        let (old, reserved) = (self.old.clone(), Reserved::default());
        Arc::new(WithPast::new(store, old, self.base, reserved, false))
    }

    /// The oldest revision that there may be anything of.
    fn oldest(&self) -> Revision {
        match self.phase {
            Phase::Migration | Phase::Normal => Revision(1),
            Phase::Settled => self.base,
        }
    }

    /// Goes to the next phase; `settle` says whether the last one may be reached.
    async fn advance(&mut self, settle: bool) {
        match self.phase {
            Phase::Migration => {
                while self.cursor().await.1.is_some() {
                    self.read(0, 3).await;
                    self.write(0).await;
                }
                self.enter(Phase::Normal).await;
            }
            Phase::Normal if settle => {
                self.enter(Phase::Settled).await;
                self.new.drop_claims().await.unwrap();
            }
            Phase::Normal | Phase::Settled => {}
        }
    }

    /// The cursor's version, and where it stands: nothing is the end.
    async fn cursor(&self) -> (i64, Option<Bytes>) {
        match self.new.records(CURSOR).await.unwrap().pop() {
            None => (0, Some(Bytes::new())),
            Some(record) if record.value[..] == *b"done" => (record.version, None),
            Some(record) => (record.version, Some(record.value.slice(1..))),
        }
    }

    async fn read(&mut self, worker: usize, keys: usize) {
        let (expected, cursor) = self.cursor().await;
        let Some(cursor) = cursor else { return };
        let span = KeyRange::span(cursor, None);
        let page = self
            .old
            .scan(span.clone(), PageSize::pairs(keys), Content::Full)
            .await
            .unwrap();
        let next = page
            .kvs
            .last()
            .filter(|_| page.more)
            .and_then(|last| span.after(&last.key))
            .map(|rest| rest.start().clone());
        self.held[worker] = Some(Held {
            kvs: page.kvs,
            next,
            expected,
            handle: self.guarded.clone(),
            epoch: self.epoch,
        });
    }

    async fn write(&mut self, worker: usize) {
        let Some(Held {
            kvs,
            next,
            expected,
            handle,
            epoch,
        }) = self.held[worker].take()
        else {
            return;
        };
        let value = next.map_or(Bytes::from_static(b"done"), |next| {
            [b"@", &next[..]].concat().into()
        });
        let write = RecordWrite {
            name: CURSOR.into(),
            value: Some(value),
        };
        let marked = CopyUp {
            kvs: kvs.clone(),
            record: Some((write, expected)),
        };
        let made = handle.copy_up(marked).await;
        if epoch != self.epoch {
            assert_eq!(
                made,
                Err(StoreError::StaleEpoch),
                "a stalled worker wrote after its epoch"
            );
            return;
        }
        // A worker whose cursor was overtaken still copies, as one that stalled would.
        if made.unwrap().is_none() {
            handle.copy_up(CopyUp { kvs, record: None }).await.unwrap();
        }
    }

    async fn learn(&self) {
        let copied = match self.cursor().await.1 {
            Some(cursor) => KeyRange::span(Bytes::new(), Some(cursor)),
            None => KeyRange::all(),
        };
        self.overlay.set_copied(vec![copied]);
    }

    async fn restart(&mut self) {
        if self.sabotage == Some(Sabotage::ClaimsAreRemoved) {
            self.new.drop_claims().await.unwrap();
        }
        self.lay_overlay();
        self.held = [const { None }; WORKERS];
    }
}

/// Everything that was delivered to a watch of all keys from `start` to the store's present.
async fn changes(store: &dyn Store, start: Revision) -> Vec<EventBatch> {
    use futures_util::StreamExt as _;
    let watch = Watch {
        prev_kv: true,
        ..Watch::of(KeyRange::all(), Some(start))
    };
    let mut watching = store.watch(watch).await.unwrap();
    watching.progress.notify_one();
    let mut batches = Vec::new();
    loop {
        match watching
            .items
            .next()
            .await
            .expect("a watch ends with an end")
        {
            WatchItem::Events(batch) => batches.push(batch),
            WatchItem::Epoch(_) => {}
            WatchItem::Progress(_) => return batches,
            WatchItem::End(_) => return Vec::new(),
        }
    }
}

/// The stores of one comparison, all fresh.
pub(super) struct Stores {
    /// The one that never migrates.
    pub twin: Arc<dyn Store>,
    /// The old store as its own clients see it.
    pub source: Arc<dyn Store>,
    /// The old store as the migration sees it.
    pub old: Arc<dyn OldStore>,
    /// The new store.
    pub new: Arc<dyn NewStore>,
    /// The new store assigns revisions by itself: what is no change to clients takes some, too.
    pub gaps: bool,
    /// Where they keep their files, if they do.
    pub files: Option<TempDir>,
}

/// Carries out `before` on twin and old store, then `steps` on the twin and through the overlay.
/// Tells the first difference, if there is any.
pub(super) async fn difference(
    stores: Stores,
    before: Vec<Request>,
    steps: Vec<Step>,
    sabotage: Option<Sabotage>,
) -> Result<(), String> {
    let Stores {
        twin,
        source,
        old,
        new,
        gaps,
        files: _files,
    } = stores;
    let mut now = Revision(1);
    let mut compacted = Revision(1);
    for request in before {
        let request = request.at(now, Revision(1));
        if let Request::Compact(at) = &request {
            compacted = compacted.max(*at);
        }
        let expected = request.clone().carry_out(&*twin).await;
        let seen = request.carry_out(&*source).await;
        assert_eq!(expected, seen, "the twins differ before the migration");
        now = expected.0.map_or(now, |(revision, _)| revision);
    }
    let mut migration = Migration::open(old, new, sabotage).await;
    let base = migration.base;
    let mut lines = Lines::from(base, gaps);
    for (number, step) in steps.into_iter().enumerate() {
        if sabotage == Some(Sabotage::OldStoreChanges) {
            source
                .put(Put::new("b", format!("foreign {number}")))
                .await
                .unwrap();
        }
        match step {
            Step::Client(request) => {
                let request = request.at(now, migration.oldest());
                if let Request::Compact(at) = &request {
                    compacted = compacted.max(*at);
                }
                let told = format!("step {number} in {:?}: {request:?}", migration.phase);
                let expected = request.clone().carry_out(&*twin).await;
                let seen = lines
                    .to_seen(request)
                    .carry_out(&*migration.serving())
                    .await;
                lines.note(&expected, &seen);
                let seen = lines.to_twin(seen);
                if expected != seen {
                    return Err(format!("{told}\nexpected {expected:?}\nbut saw  {seen:?}"));
                }
                now = expected.0.map_or(now, |(revision, _)| revision);
            }
            Step::Read { worker, keys } => migration.read(worker, keys).await,
            Step::Write { worker } => migration.write(worker).await,
            Step::Learn => migration.learn().await,
            Step::Restart => migration.restart().await,
            Step::Advance => migration.advance(!gaps).await,
            Step::Return if migration.phase == Phase::Normal => {
                migration.enter(Phase::Migration).await;
            }
            Step::Return => {}
        }
    }
    // A watch that starts at the compacted revision itself misses a delete in etcd before 3.4.36.
    let start = compacted.max(migration.oldest()).next();
    if start > now {
        return Ok(());
    }
    let expected = format!("{:?}", changes(&*twin, start).await);
    let seen = format!(
        "{:?}",
        changes(&*migration.serving(), lines.seen(start)).await
    );
    let seen = lines.text_to_twin(&seen);
    if expected != seen {
        return Err(format!(
            "watches differ:\nexpected {expected}\nbut saw  {seen}"
        ));
    }
    Ok(())
}
