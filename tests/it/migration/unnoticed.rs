//! What a member that has not noticed a transition tells its watchers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use segue::migration::phase::Phase;
use segue::migration::records::STATE;
use segue::migration::status::Status;
use segue::store::memory::Memory;
use segue::store::{AsOld, Guard, NewStore, OldStore, Watch, WatchItem, Watching};
use segue::tasks::spawn_owned;
use segue::types::{Change, KeyRange, LeaseId, Revision};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fleet::{Member, Stores, get, grant, passthrough, put, put_leased};
use super::gate::{Gate, Mode};
use crate::etcd3::open;
use crate::support::Etcd;

/// How long the lease of these tests lives, in seconds.
const TTL_S: i64 = 4;

/// Longer than that, and less than a rollback may take.
const LEASE_AND_MORE: Duration = Duration::from_millis(5500);

/// One member that carries transitions out, and one that can be cut off from the records.
struct Two {
    carrier: Member,
    unaware: Member,
    at_old: Arc<Gate>,
    at_new: Arc<Gate>,
    at_new_of_unaware: Arc<Gate>,
}

impl Two {
    async fn between(old: Arc<dyn NewStore>, new: Arc<dyn NewStore>) -> Self {
        let (at_old, at_new) = (Gate::before(old.clone()), Gate::before(new.clone()));
        let at_new_of_unaware = Gate::before(new);
        let join = async |name, new: &Arc<Gate>| {
            let old: Arc<dyn OldStore> = Arc::new(AsOld::of(at_old.clone()).await.unwrap());
            let stores = Stores {
                source: at_old.guarded(Guard::None),
                old,
                new: new.clone(),
            };
            stores.join_as(name, passthrough).await.unwrap()
        };
        let carrier = join("a", &at_new).await;
        let unaware = join("b", &at_new_of_unaware).await;
        carrier.controller.ready().await;
        unaware.controller.ready().await;
        Self {
            carrier,
            unaware,
            at_old,
            at_new,
            at_new_of_unaware,
        }
    }

    async fn start(&self) {
        let started = self.carrier.controller.go_to(Phase::Migration).await;
        assert_eq!(started.unwrap(), Ok(()));
    }

    /// Writes a key with a lease, and watches it through the unaware member.
    async fn lease(&self) -> Watcher {
        let store = self.carrier.store();
        grant(&*store, 77, TTL_S).await;
        put_leased(&*store, "w/leased", 77).await;
        let leased = get(&*store, "w/leased").await.unwrap();
        let behind = Some(leased.mod_revision.next());
        let watch = Watch::of(KeyRange::prefix("w/"), behind);
        Watcher::of(self.unaware.store().watch(watch).await.unwrap())
    }

    async fn until_open_in(&self, phase: &str) {
        let open = |status: &Status| status.phase == phase && status.stage == "open";
        self.carrier.until("open again", open).await;
    }
}

/// Where, whether it was a delete, and of what.
type Told = (Revision, bool, String);

/// A client that reads its watch all the time.
struct Watcher(mpsc::UnboundedReceiver<Told>);

impl Watcher {
    fn of(mut watching: Watching) -> Self {
        let (told, receiver) = mpsc::unbounded_channel();
        spawn_owned(async move {
            while let Some(item) = watching.items.next().await {
                match item {
                    WatchItem::Events(batch) => {
                        for event in &batch.events {
                            let gone = matches!(event.change, Change::Delete { .. });
                            let key = String::from_utf8_lossy(event.key()).into_owned();
                            told.send((batch.revision, gone, key)).unwrap();
                        }
                    }
                    WatchItem::Progress(_) | WatchItem::Epoch(_) => {}
                    WatchItem::End(end) => panic!("{end:?}"),
                }
            }
        });
        Self(receiver)
    }

    async fn told(&mut self) -> Told {
        let told = tokio::time::timeout(Duration::from_secs(20), self.0.recv());
        told.await.expect("an event").expect("no end")
    }
}

/// A lease that would have ended in the new store while a rollback is under way lives on in the old one.
async fn on_the_way_back(new: Arc<dyn NewStore>, ends_leases_by_itself: bool) {
    let two = Two::between(Arc::new(Memory::new()), new.clone()).await;
    two.start().await;
    two.unaware.until_phase(Phase::Migration).await;
    let mut watcher = two.lease().await;
    let store = two.carrier.store();
    let held = get(&*store, "w/leased").await.unwrap();

    two.at_new_of_unaware.set(Mode::Cut);
    two.at_old.set(Mode::HoldReplays);
    let goal = put(&*store, "other", "1").await;
    let gone_back = two.carrier.controller.rollback().await.unwrap();
    assert_eq!(gone_back, Ok(()));
    two.at_old.holds().await;
    tokio::time::sleep(LEASE_AND_MORE).await;
    if !ends_leases_by_itself {
        let plain = new.guarded(Guard::None);
        assert_eq!(plain.status().await.unwrap().revision, goal);
    }
    two.at_old.let_go().await;
    two.until_open_in("passthrough").await;
    two.at_new_of_unaware.set(Mode::Open);
    assert_eq!(get(&*store, "w/leased").await, Some(held));
    let alive = store.keep_alive(LeaseId(77)).await.unwrap();
    assert_eq!(alive.reply, Some(TTL_S));
    let next = put(&*store, "w/next", "1").await;
    assert!(next > goal);
    let (first, second) = (watcher.told().await, watcher.told().await);
    assert_eq!(first, (next, false, "w/next".to_owned()));
    assert_eq!((second.1, &*second.2), (true, "w/leased"));
    assert!(second.0 > next, "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lives_on_in_the_old_store() {
    on_the_way_back(Arc::new(Memory::new()), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lease_ends_in_a_store_that_was_left_before_it_is_emptied() {
    let new = Arc::new(Memory::new());
    let two = Two::between(Arc::new(Memory::new()), new.clone()).await;
    two.start().await;
    two.unaware.until_phase(Phase::Migration).await;
    let mut watcher = two.lease().await;
    let store = two.carrier.store();

    two.at_new_of_unaware.set(Mode::Cut);
    two.at_new.set(Mode::HoldReplays);
    let goal = put(&*store, "other", "1").await;
    let gone_back = two.carrier.controller.rollback().await.unwrap();
    assert_eq!(gone_back, Ok(()));
    two.until_open_in("passthrough").await;
    two.at_new.holds().await;
    let over = Instant::now() + LEASE_AND_MORE;
    while Instant::now() < over {
        let alive = store.keep_alive(LeaseId(77)).await.unwrap();
        assert_eq!(alive.reply, Some(TTL_S));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let left = new.guarded(Guard::None).status().await.unwrap();
    assert_eq!(left.revision, goal);
    two.at_new.let_go().await;
    two.at_new_of_unaware.set(Mode::Open);
    let next = put(&*store, "w/next", "1").await;
    assert_eq!(watcher.told().await, (next, false, "w/next".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_was_left_ends_leases_and_nobody_hears_of_it() {
    let etcd = Etcd::start().await;
    let new = open(&etcd).await;
    on_the_way_back(new, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_fenced_ends_leases_and_they_end_once() {
    let etcd = Etcd::start().await;
    let old = open(&etcd).await;
    let two = Two::between(old.clone(), Arc::new(Memory::new())).await;
    let mut watcher = two.lease().await;
    let store = two.carrier.store();
    grant(&*store, 78, TTL_S).await;

    two.at_new_of_unaware.set(Mode::Cut);
    two.start().await;
    two.at_new.set(Mode::Hold(STATE));
    two.at_new.holds().await;
    let plain = old.guarded(Guard::None);
    tokio::time::sleep(LEASE_AND_MORE).await;
    assert_eq!(get(&*plain, "w/leased").await, None);
    two.at_new.set(Mode::Open);
    two.until_open_in("migration").await;
    for id in [77, 78] {
        // Its holder has renewed it all the time.
        let renewed = store.keep_alive(LeaseId(id)).await.unwrap();
        assert_eq!(renewed.reply, Some(TTL_S), "{id}");
    }
    let next = put(&*store, "w/next", "1").await;
    two.at_new_of_unaware.set(Mode::Open);
    let mut told = [watcher.told().await, watcher.told().await];
    assert!(told[0].0 < told[1].0, "{told:?}");
    told.sort_by_key(|told| told.1);
    assert_eq!(told[0], (next, false, "w/next".to_owned()));
    assert_eq!((told[1].1, &*told[1].2), (true, "w/leased"));
    let more = tokio::time::timeout(Duration::from_secs(1), watcher.0.recv()).await;
    assert!(more.is_err(), "{more:?}");
}
