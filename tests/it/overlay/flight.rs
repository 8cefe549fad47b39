//! A migration in mid-flight, driven step by step beside a twin that never migrates.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use segue::overlay::Overlay;
use segue::store::{
    CopyUp, Guard, GuardedStore, Line, NewStore, OldStore, RecordTxn, RecordWrite, Store, Watch,
    WatchItem,
};
use segue::types::{
    Content, Epoch, EventBatch, Grant, KeyRange, KeyValue, Put, Reserved, Revision,
};

use super::sabotage::Sabotaged;
use crate::random::{self, Request, carry_out};

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
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => random::request().prop_map(Step::Client),
        2 => (0usize..WORKERS, 1usize..4).prop_map(|(worker, keys)| Step::Read { worker, keys }),
        2 => (0usize..WORKERS).prop_map(|worker| Step::Write { worker }),
        2 => Just(Step::Learn),
        1 => Just(Step::Restart),
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
const EPOCH: Epoch = Epoch(1);

/// A page in the hands of a worker: what it read, where the next begins, and the cursor's version
/// when it read it.
struct Held {
    kvs: Vec<KeyValue>,
    next: Option<Bytes>,
    expected: i64,
}

/// A migration in mid-flight, driven step by step.
struct Migration {
    old: Arc<dyn OldStore>,
    new: Arc<dyn NewStore>,
    guarded: Arc<dyn GuardedStore>,
    base: Revision,
    overlay: Overlay,
    held: [Option<Held>; WORKERS],
    sabotage: Option<Sabotage>,
}

impl Migration {
    async fn open(
        old: Arc<dyn OldStore>,
        new: Arc<dyn NewStore>,
        sabotage: Option<Sabotage>,
    ) -> Self {
        let base = old.revision().await.unwrap();
        let claims = sabotage != Some(Sabotage::DeletesLeaveNoClaim);
        let line = Line {
            epoch: EPOCH,
            claims,
            base,
        };
        let opened = new.write_records(RecordTxn {
            line: Some(Some(line)),
            ..RecordTxn::default()
        });
        assert!(opened.await.unwrap());
        let guarded = new.guarded(Guard::Epoch {
            epoch: EPOCH,
            claims,
        });
        let guarded: Arc<dyn GuardedStore> = match sabotage {
            Some(sabotage) => Arc::new(Sabotaged {
                inner: guarded,
                sabotage,
            }),
            None => guarded,
        };
        let mut leased = Vec::new();
        for lease in old.leases().await.unwrap() {
            guarded
                .grant(Grant {
                    id: Some(lease.id),
                    ttl_s: lease.ttl_s,
                })
                .await
                .unwrap();
            leased.extend(old.get(lease.keys).await.unwrap().into_iter().flatten());
        }
        leased.sort_by_key(|kv| kv.create_revision);
        guarded
            .copy_up(CopyUp {
                kvs: leased,
                record: None,
            })
            .await
            .unwrap();
        let overlay = Overlay::new(old.clone(), guarded.clone(), base, Reserved::default());
        Self {
            old,
            new,
            guarded,
            base,
            overlay,
            held: [const { None }; WORKERS],
            sabotage,
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
            .scan(span.clone(), keys, Content::Full)
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
        });
    }

    async fn write(&mut self, worker: usize) {
        let Some(Held {
            kvs,
            next,
            expected,
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
        // A worker whose record was overtaken still copies, as one that stalled would.
        let record = Some((write, expected));
        if self
            .guarded
            .copy_up(CopyUp {
                kvs: kvs.clone(),
                record,
            })
            .await
            .unwrap()
            .is_none()
        {
            self.guarded
                .copy_up(CopyUp { kvs, record: None })
                .await
                .unwrap();
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
        let (old, new) = (self.old.clone(), self.guarded.clone());
        self.overlay = Overlay::new(old, new, self.base, Reserved::default());
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
            WatchItem::Progress(_) => return batches,
            WatchItem::End(_) => return Vec::new(),
        }
    }
}

/// The three stores of one comparison, all fresh.
pub(super) struct Stores {
    /// The one that never migrates.
    pub twin: Arc<dyn Store>,
    /// The old store as its own clients see it.
    pub source: Arc<dyn Store>,
    /// The old store as the migration sees it.
    pub old: Arc<dyn OldStore>,
    /// The new store.
    pub new: Arc<dyn NewStore>,
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
    } = stores;
    let mut now = Revision(1);
    for request in before {
        let expected = carry_out(&*twin, request.clone(), now, Revision(0)).await;
        let seen = carry_out(&*source, request, now, Revision(0)).await;
        assert_eq!(expected, seen, "the twins differ before the migration");
        now = expected.0.map_or(now, |(revision, _)| revision);
    }
    let mut migration = Migration::open(old, new, sabotage).await;
    let base = migration.base;
    for (number, step) in steps.into_iter().enumerate() {
        if sabotage == Some(Sabotage::OldStoreChanges) {
            source
                .put(Put::new("b", format!("foreign {number}")))
                .await
                .unwrap();
        }
        match step {
            Step::Client(request) => {
                let told = format!("step {number}: {request:?}");
                let expected = carry_out(&*twin, request.clone(), now, base).await;
                let seen = carry_out(&migration.overlay, request, now, base).await;
                if expected != seen {
                    return Err(format!("{told}\nexpected {expected:?}\nbut saw  {seen:?}"));
                }
                now = expected.0.map_or(now, |(revision, _)| revision);
            }
            Step::Read { worker, keys } => migration.read(worker, keys).await,
            Step::Write { worker } => migration.write(worker).await,
            Step::Learn => migration.learn().await,
            Step::Restart => migration.restart().await,
        }
    }
    let expected = changes(&*twin, base.next()).await;
    let seen = changes(&migration.overlay, base.next()).await;
    if expected != seen {
        return Err(format!(
            "watches differ:\nexpected {expected:#?}\nbut saw  {seen:#?}"
        ));
    }
    Ok(())
}
