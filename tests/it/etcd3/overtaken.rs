//! What comes in between while a request is on its way: another epoch, copy-ups.

use std::sync::Arc;
use std::time::Duration;

use segue::store::{GuardedStore, NewStore, StoreError, StoreUrl, Watch, open_new};
use segue::tasks::spawn_owned;
use segue::types::{Grant, KeyRange, LeaseId, Put, Range, Reserved};

use super::open;
use crate::contract::dsl::{NewSubject, guard, line, old, set_line, words};
use crate::support::link::{Cut, Link, Signs, Traffic};
use crate::support::{Etcd, eventually};

/// How long everything takes, in each direction.
const WAY: Duration = Duration::from_millis(600);

/// A request that names the lease's key: of those that end the lease, the one that removes it.
const NAMES_THE_KEY: Signs = Signs {
    commits: |sent| sent.windows(4).any(|part| part == b"held"),
    has_happened: |_| false,
};

/// A request for all keys: both bounds are a zero byte.
const NAMES_ALL_KEYS: Signs = Signs {
    commits: |sent| sent.windows(6).any(|part| part == [10, 1, 0, 18, 1, 0]),
    has_happened: |_| false,
};

/// Waits until a request is held up.
async fn held_up(link: &Link) {
    eventually("a request is held up", async || {
        if link.cuts() == 1 { Ok(()) } else { Err(()) }
    })
    .await;
}

/// A store under a line, at the other end of a link, with a lease that has a key.
async fn lease_far_away(
    etcd: &Etcd,
    new: &dyn NewStore,
    signs: Signs,
) -> (Link, Arc<dyn GuardedStore>, LeaseId) {
    set_line(new, Some(line(1))).await;
    let link = Link::watching(&etcd.url(), signs).await;
    let url: StoreUrl = link.url(&etcd.url()).parse().unwrap();
    let far = open_new(&url, &Reserved::default()).await.unwrap();
    let far = far.guarded(guard(1));
    let id = LeaseId(77);
    let grant = Grant {
        id: Some(id),
        ttl_s: 600,
    };
    far.grant(grant).await.unwrap();
    let put = Put {
        lease: Some(id),
        ..Put::new("held", "1")
    };
    far.put(put).await.unwrap();
    (link, far, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_is_answered_with_the_revision_of_its_deletes() {
    let etcd = Etcd::start().await;
    let new = open(&etcd).await;
    let (link, far, id) = lease_far_away(&etcd, &*new, NAMES_THE_KEY).await;
    link.set(Traffic::Slow(WAY));
    let near = NewSubject::with(new, 1, false);
    let mut watched = near.store.watch(KeyRange::all(), None).await;
    let revoke = spawn_owned(async move { far.revoke(id).await });
    // The keys are gone, and the revoke itself is on its way.
    let gone = watched.batch().await;
    assert_eq!(words(&gone), ["delete held"]);
    let copies = vec![old("a", "1"), old("b", "1")];
    assert_eq!(near.copy_up(copies).await, 2);
    assert!(!revoke.is_finished());
    let answer = revoke.await.unwrap().unwrap();
    assert_eq!(answer.revision, gone.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_keeps_its_keys_if_the_epoch_ends_behind_the_first_look() {
    let etcd = Etcd::start().await;
    let new = open(&etcd).await;
    let (link, stale, id) = lease_far_away(&etcd, &*new, NAMES_THE_KEY).await;
    link.cut_next(Cut::Hold);
    // A look at the epoch, one at the lease's keys, and their removal, which is held up.
    let revoke = spawn_owned(async move { stale.revoke(id).await });
    held_up(&link).await;
    set_line(&*new, Some(line(2))).await;
    assert!(!revoke.is_finished());
    link.open();
    assert_eq!(revoke.await.unwrap(), Err(StoreError::StaleEpoch));
    let now = new.guarded(guard(2));
    let held = now.range(Range::key("held")).await.unwrap().reply.kvs;
    assert_eq!(held[0].lease, id);
    assert_eq!(now.leases().await.unwrap().reply, [id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_refused_if_the_epoch_ends_before_it_is_there() {
    let etcd = Etcd::start().await;
    let new = open(&etcd).await;
    let (link, stale, _) = lease_far_away(&etcd, &*new, NAMES_ALL_KEYS).await;
    link.cut_next(Cut::Hold);
    // A look at the epoch, and then the watch, which is held up.
    let all = Watch::of(KeyRange::all(), None);
    let watch = spawn_owned(async move { stale.watch(all).await.err() });
    held_up(&link).await;
    set_line(&*new, Some(line(2))).await;
    link.open();
    assert_eq!(watch.await.unwrap(), Some(StoreError::StaleEpoch));
}
