//! `segue copy`, as an operator runs it who may stop the application.

use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;

use bytes::Bytes;
use segue::migration::offline::Receipt;
use segue::store::{Guard, GuardedStore, NewStore, open_new};
use segue::types::{
    Delete, Grant, KeyRange, KeyValue, LeaseId, Op, Put, Range, Reserved, Revision, Txn,
};
use tempfile::TempDir;

use crate::support::process::Process;
use crate::support::segue::{Outcome, Segue, run, start};
use crate::support::{Etcd, V2, eventually};

pub(crate) fn sqlite(dir: &TempDir, name: &str) -> String {
    format!("sqlite:{}", dir.path().join(name).display())
}

pub(crate) async fn open(url: &str) -> Arc<dyn NewStore> {
    let url = url.parse().unwrap();
    // A file that was just closed is released in the background.
    eventually("the store can be opened", async || {
        open_new(&url, &Reserved::default()).await
    })
    .await
}

pub(crate) async fn plain(url: &str) -> Arc<dyn GuardedStore> {
    open(url).await.guarded(Guard::None)
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Op {
    Op::Put(Put::new(key, value))
}

/// Puts `count` keys into a store, in a way that gives them numbers of their own; and some of every
/// kind, a lease among them.
pub(crate) async fn fill(url: &str, count: usize) {
    let store = plain(url).await;
    let keys: Vec<usize> = (0..count).collect();
    for some in keys.chunks(100) {
        let ops = some
            .iter()
            .map(|n| put(format!("key/{n:05}"), format!("value {n}")));
        store.txn(Txn::of(ops.collect())).await.unwrap();
    }
    let odd: Vec<Op> = (0..=255_u8)
        .step_by(5)
        .map(|byte| put(vec![b'b', byte, 0], vec![byte; 3]))
        .collect();
    store.txn(Txn::of(odd)).await.unwrap();
    store.put(Put::new("key/00000", "again")).await.unwrap();
    let gone = Delete {
        keys: KeyRange::One("key/00001".into()),
        prev_kv: false,
    };
    store.delete(gone).await.unwrap();
    let id = Some(LeaseId(77));
    store.grant(Grant { id, ttl_s: 3600 }).await.unwrap();
    let leased = Put {
        lease: Some(LeaseId(77)),
        ..Put::new("leased", "x")
    };
    store.put(leased).await.unwrap();
}

/// Everything that clients see, and the revision.
pub(crate) async fn content(url: &str) -> (Vec<KeyValue>, Revision) {
    let store = plain(url).await;
    let all = store.range(Range::of(KeyRange::all())).await.unwrap();
    (all.reply.kvs, all.revision)
}

pub(crate) fn pairs((kvs, _): (Vec<KeyValue>, Revision)) -> Vec<(Bytes, Bytes)> {
    kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
}

pub(crate) async fn copy(old: &str, new: &str, more: &[&str]) -> Outcome {
    let args = ["copy", "--old", old, "--new", new];
    run(args.iter().chain(more).copied()).await
}

pub(crate) async fn receipt(old: &str, new: &str, more: &[&str]) -> Receipt {
    let mut args = vec!["--json"];
    args.extend(more);
    let outcome = copy(old, new, &args).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    serde_json::from_str(&outcome.out).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

pub(crate) async fn refused(old: &str, new: &str, more: &[&str], code: i32, hint: &str) {
    let outcome = copy(old, new, more).await;
    assert_eq!(outcome.code, code, "{more:?}: {outcome:?}");
    assert!(outcome.err.contains(hint), "{hint:?}: {outcome:?}");
    assert!(!outcome.err.contains("panicked"), "{outcome:?}");
}

/// A copy at so many keys per second, so that something can happen to it.
pub(crate) fn slow(old: &str, new: &str, keys_per_s: usize, log: &Path) -> Process {
    let rate = keys_per_s.to_string();
    let args = ["copy", "--old", old, "--new", new, "--rate-keys", &rate];
    start(args, log)
}

pub(crate) async fn ended(process: &mut Process) -> ExitStatus {
    eventually("the command ends", async || {
        process.ended().ok_or_else(|| process.output())
    })
    .await
}

/// Waits until some of the keys are in an etcd.
async fn half_way(new: &str) {
    some_of(new, "key/").await;
}

/// Waits until some of the keys that begin so are in an etcd.
pub(crate) async fn some_of(new: &str, prefix: &'static str) {
    let store = plain(new).await;
    let range = Range::of(KeyRange::prefix(prefix));
    eventually("some keys are copied", async || {
        let keys = store.range(range.clone()).await.unwrap().reply.kvs.len();
        if keys > 200 { Ok(()) } else { Err(keys) }
    })
    .await;
}

#[tokio::test]
async fn a_copy_is_the_same_store_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (sqlite(&dir, "old.db"), sqlite(&dir, "new.db"));
    fill(&old, 1000).await;
    let receipt = receipt(&old, &new, &[]).await;
    let (expected, revision) = content(&old).await;
    let (kvs, now) = content(&new).await;
    assert_eq!(kvs, expected);
    assert_eq!(now, revision);
    assert_eq!((receipt.old, receipt.new), (old.clone(), new.clone()));
    assert_eq!((receipt.base, receipt.revision), (revision.0, revision.0));
    let count = expected.len() as u64;
    assert_eq!(
        [receipt.keys, receipt.compared, receipt.equal],
        [count, count, count]
    );
    assert_eq!((receipt.leases, receipt.deleted), (1, 0));
    assert!(!receipt.resumed);
    {
        let store = open(&new).await;
        assert_eq!(store.line().await.unwrap(), None);
        assert_eq!(store.records("").await.unwrap(), []);
        let store = store.guarded(Guard::None);
        let lease = store.time_to_live(LeaseId(77), true).await.unwrap().reply;
        let lease = lease.unwrap();
        assert_eq!(lease.granted_ttl_s, 3600);
        assert_eq!(lease.keys, ["leased"]);
    }
    // An application can be started on it, and has it to itself.
    drop(Segue::start(["--new", &new]).await);
    let hint = "a copy which was finished, there is nothing left to do";
    refused(&old, &new, &[], 3, hint).await;
}

#[tokio::test]
async fn an_etcd_becomes_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start().await;
    fill(&etcd.url(), 300).await;
    let new = sqlite(&dir, "new.db");
    let outcome = copy(&etcd.url(), &new, &["--parallel", "2"]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.out.contains("verified"), "{outcome:?}");
    assert_eq!(content(&new).await.0, content(&etcd.url()).await.0);
}

#[tokio::test]
async fn the_keys_of_the_v2_api_become_keys_of_the_v3_api() {
    let old = Etcd::start_v2().await;
    let new = Etcd::start().await;
    let v2 = V2::of(&old);
    v2.fill((0..500).map(|n| (format!("/app/{n:03}"), format!("{n}"))))
        .await;
    v2.put_ttl("/app/ttl", "x", 3600).await;
    let receipt = receipt(&old.v2_url(), &new.url(), &[]).await;
    assert_eq!((receipt.keys, receipt.leases), (501, 1));
    let all = pairs(content(&new.url()).await);
    assert_eq!(all.len(), 501);
    assert_eq!(all[7], ("/app/007".into(), "7".into()));
    // Not even reserved keys are left but what the store needs for itself.
    let store = plain(&new.url()).await;
    let switch = Range::of(KeyRange::One("segue/switch".into()));
    assert!(store.range(switch).await.unwrap().reply.kvs.is_empty());
}

#[tokio::test]
async fn a_copy_that_was_killed_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let old = sqlite(&dir, "old.db");
    let etcd = Etcd::start().await;
    let new = etcd.url();
    fill(&old, 3000).await;
    let mut process = slow(&old, &new, 500, &dir.path().join("log"));
    half_way(&new).await;
    process.kill();
    // Nobody may take half of it for the whole.
    let Err(complaint) = Segue::try_start(["--new", &new]).await else {
        panic!("half a copy was served");
    };
    assert!(complaint.contains("unfinished `segue copy`"), "{complaint}");
    let Err(complaint) = Segue::try_start(["--old", &old, "--new", &new]).await else {
        panic!("half a copy was served");
    };
    assert!(complaint.contains("unfinished `segue copy`"), "{complaint}");
    let receipt = receipt(&old, &new, &[]).await;
    assert!(receipt.resumed);
    assert_eq!(pairs(content(&new).await), pairs(content(&old).await));
}

#[tokio::test]
async fn a_copy_that_is_told_to_stop_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let old = sqlite(&dir, "old.db");
    let etcd = Etcd::start().await;
    let new = etcd.url();
    fill(&old, 3000).await;
    let mut process = slow(&old, &new, 500, &dir.path().join("log"));
    half_way(&new).await;
    process.terminate();
    assert_eq!(ended(&mut process).await.code(), Some(1));
    let said = process.output();
    assert!(said.contains("The same command goes on"), "{said}");
    let outcome = copy(&old, &new, &[]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    // It has taken its leave, so nobody has to be waited for.
    assert!(!outcome.out.contains("waiting to see"), "{outcome:?}");
    assert_eq!(pairs(content(&new).await), pairs(content(&old).await));
}

#[tokio::test]
async fn a_copy_does_not_go_on_over_an_old_store_that_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let old = sqlite(&dir, "old.db");
    let etcd = Etcd::start().await;
    let new = etcd.url();
    fill(&old, 3000).await;
    let mut process = slow(&old, &new, 500, &dir.path().join("log"));
    half_way(&new).await;
    process.kill();
    let store = plain(&old).await;
    store.put(Put::new("key/00000", "late")).await.unwrap();
    drop(store);
    refused(&old, &new, &[], 3, "key/00000 was written").await;
    let receipt = receipt(&old, &new, &["--force"]).await;
    assert!(receipt.deleted > 0 && !receipt.resumed, "{receipt:?}");
    assert_eq!(pairs(content(&new).await), pairs(content(&old).await));
}

#[tokio::test]
async fn a_write_to_the_old_store_in_the_middle_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let etcds = (Etcd::start().await, Etcd::start().await);
    let (old, new) = (etcds.0.url(), etcds.1.url());
    fill(&old, 2000).await;
    let mut process = slow(&old, &new, 500, &dir.path().join("log"));
    half_way(&new).await;
    let store = plain(&old).await;
    store.put(Put::new("key/00000", "late")).await.unwrap();
    assert_eq!(ended(&mut process).await.code(), Some(3));
    let said = process.output();
    assert!(said.contains("changed while it was being copied"), "{said}");
    assert!(said.contains("key/00000 was written"), "{said}");
}

#[tokio::test]
async fn a_lease_that_runs_out_in_the_old_store_is_no_change_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let etcds = (Etcd::start().await, Etcd::start().await);
    let (old, new) = (etcds.0.url(), etcds.1.url());
    fill(&old, 2000).await;
    let mut process = slow(&old, &new, 500, &dir.path().join("log"));
    half_way(&new).await;
    let store = plain(&old).await;
    store.revoke(LeaseId(77)).await.unwrap();
    assert_eq!(
        ended(&mut process).await.code(),
        Some(0),
        "{}",
        process.output()
    );
    let said = process.output();
    assert!(said.contains("1 with a lease that has run out"), "{said}");
}

#[tokio::test]
async fn a_store_that_is_not_empty_is_only_emptied_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let old = sqlite(&dir, "old.db");
    fill(&old, 200).await;
    let etcd = Etcd::start().await;
    for new in [sqlite(&dir, "new.db"), etcd.url()] {
        let store = plain(&new).await;
        for n in 0..150 {
            let other = Put::new(format!("other/{n:03}"), "x");
            store.put(other).await.unwrap();
        }
        let switch = Put::new("segue/switch", "normal");
        store.put(switch).await.unwrap();
        drop(store);
        refused(&old, &new, &[], 3, "150 keys of an application").await;
        refused(&old, &new, &[], 3, "--force").await;
        assert_eq!(content(&new).await.0.len(), 150);
        let outcome = copy(&old, &new, &["--force"]).await;
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let said = format!("--force: deleting from {new} 150 keys of an application");
        assert!(outcome.out.contains(&said), "{outcome:?}");
        assert!(outcome.out.contains("deleted   150 keys"), "{outcome:?}");
        assert_eq!(pairs(content(&new).await), pairs(content(&old).await));
        // Once more, over what is a finished copy now.
        let again = receipt(&old, &new, &["--force"]).await;
        assert_eq!(again.deleted, again.keys);
        assert_eq!(pairs(content(&new).await), pairs(content(&old).await));
    }
}

#[tokio::test]
async fn what_makes_no_sense_or_is_not_safe_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (sqlite(&dir, "old.db"), sqlite(&dir, "new.db"));
    let other = sqlite(&dir, "other.db");
    fill(&old, 100).await;
    fill(&other, 100).await;
    refused(&old, &old, &[], 2, "the same store").await;
    refused(
        &old,
        "etcd2://127.0.0.1:1",
        &[],
        2,
        "cannot be the new store",
    )
    .await;
    refused("etcd://127.0.0.1:1", &new, &[], 1, "the old store").await;
    refused(&old, "etcd://127.0.0.1:1", &[], 1, "the new store").await;
    refused(&old, &new, &["--parallel", "0"], 2, "1 to 64").await;
    let outcome = run(["copy", "--old", &old]).await;
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.err.contains("--new URL"), "{outcome:?}");
    assert!(!outcome.err.contains("configuration"), "{outcome:?}");
    let outcome = run(["copy", "--new", &new]).await;
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.err.contains("--old URL"), "{outcome:?}");
    assert!(
        !dir.path().join("new.db").exists(),
        "a store was made for nothing"
    );
    // A live migration is none of a copy's business, from either side.
    let live = Segue::start(["--old", &old, "--new", &new]).await;
    live.until("it is copied", |status| status["verified"] == true)
        .await;
    drop(live);
    refused(&old, &new, &[], 3, "a live migration from this old store").await;
    refused(
        &other,
        &new,
        &[],
        3,
        "a live migration from another old store",
    )
    .await;
    let third = sqlite(&dir, "third.db");
    refused(&new, &third, &[], 1, "not completed").await;
}

#[tokio::test]
async fn keys_that_the_new_store_cannot_take_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let old = sqlite(&dir, "old.db");
    let etcd = Etcd::start().await;
    fill(&old, 300).await;
    let store = plain(&old).await;
    let large = Put::new("key/large", vec![b'x'; 3 << 20]);
    store.put(large).await.unwrap();
    drop(store);
    let outcome = copy(&old, &etcd.url(), &[]).await;
    assert_eq!(outcome.code, 1, "{outcome:?}");
    for part in ["1 of the old one's keys", "key/large", "--force"] {
        assert!(outcome.err.contains(part), "{outcome:?}");
    }
    let store = plain(&old).await;
    let gone = Delete {
        keys: KeyRange::One("key/large".into()),
        prev_kv: false,
    };
    store.delete(gone).await.unwrap();
    drop(store);
    refused(&old, &etcd.url(), &[], 3, "key/large was written").await;
    receipt(&old, &etcd.url(), &["--force"]).await;
    assert_eq!(
        pairs(content(&etcd.url()).await),
        pairs(content(&old).await)
    );
}

#[tokio::test]
async fn of_two_copies_at_once_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Etcd::start().await, Etcd::start().await);
    fill(&old.url(), 3000).await;
    let mut first = slow(&old.url(), &new.url(), 500, &dir.path().join("log"));
    half_way(&new.url()).await;
    refused(&old.url(), &new.url(), &[], 3, "somebody else works").await;
    refused(
        &old.url(),
        &new.url(),
        &["--force"],
        3,
        "somebody else works",
    )
    .await;
    assert_eq!(
        ended(&mut first).await.code(),
        Some(0),
        "{}",
        first.output()
    );
    assert_eq!(
        pairs(content(&new.url()).await),
        pairs(content(&old.url()).await)
    );
}
