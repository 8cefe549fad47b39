//! What the new store cannot take, or the old one not give: clients can write it anew or delete it, and
//! whatever fails leaves it as it is.

use std::sync::Arc;

use segue::overlay::Overlay;
use segue::store::memory::Memory;
use segue::store::{
    AsOld, Guard, NewStore, OldStore, RequestError, Store as _, StoreError, open_new,
};
use segue::types::{Delete, KeyRange, LeaseId, Op, Put, Range, Reply, Reserved, Txn};

use crate::contract::dsl::{
    NewSubject, delete_op, get_op, guard, leased, line, one, put_op, range_reply, refused,
    set_line, text,
};
use crate::migration::picky::{Picky, Taste};
use crate::support::Etcd;
use crate::support::tables::Home;
use crate::support::tables::Kind::Sqlite;

/// More than an etcd takes.
const LARGE: usize = 2 << 20;

fn lost_lease(key: &str) -> Op {
    Op::Put(leased(key, "", LeaseId(4711)))
}

async fn over(old: Arc<dyn OldStore>, new: Arc<dyn NewStore>) -> (Overlay, NewSubject) {
    set_line(&*new, Some(line(1))).await;
    let overlay = Overlay::new(old, new.guarded(guard(1)), Reserved::default());
    (overlay, NewSubject::with(new, 1, false))
}

async fn value(overlay: &Overlay, key: &str) -> Option<String> {
    let range = Range::key(key.to_owned());
    let found = overlay.range(range).await.unwrap().reply.kvs;
    found.first().map(|kv| text(&kv.value))
}

async fn delete(overlay: &Overlay, key: &str) -> usize {
    let delete = Delete {
        keys: one(key),
        prev_kv: false,
    };
    overlay.delete(delete).await.unwrap().reply.deleted
}

async fn writes_that_fail_leave_what_was_refused(new: Arc<dyn NewStore>, large: &str) {
    let source = Arc::new(Memory::new());
    let plain = source.guarded(Guard::None);
    for key in ["deleted", "overwritten", "replaced"] {
        plain.put(Put::new(key, large.to_owned())).await.unwrap();
    }
    plain.put(Put::new("small", "old")).await.unwrap();
    let old = Arc::new(AsOld::of(source).await.unwrap());
    let (overlay, subject) = over(old, new).await;
    let refused_writes = [
        vec![lost_lease("overwritten")],
        vec![put_op("overwritten", "new"), lost_lease("x")],
        vec![delete_op(one("deleted")), lost_lease("x")],
        vec![
            delete_op(one("deleted")),
            put_op("overwritten", "new"),
            lost_lease("small"),
        ],
    ];
    for ops in refused_writes {
        let told = refused(overlay.txn(Txn::of(ops.clone())).await);
        assert_eq!(told, RequestError::LeaseNotFound, "{ops:?}");
        for key in ["deleted", "overwritten"] {
            assert_eq!(subject.claims(one(key)).await, [""; 0], "{ops:?}");
            assert_eq!(value(&overlay, key).await.as_deref(), Some(large));
        }
    }
    // Whoever is shown the value, or looks at it, has to have it.
    let shown = Put {
        prev_kv: true,
        ..Put::new("overwritten", "new")
    };
    let told = overlay.put(shown).await.unwrap_err();
    assert!(matches!(told, StoreError::Request(_)), "{told}");
    assert_eq!(subject.claims(one("overwritten")).await, [""; 0]);

    let mut watched = subject.store.watch(KeyRange::all(), None).await;
    overlay.put(Put::new("overwritten", "new")).await.unwrap();
    assert_eq!(watched.words().await, ["put overwritten=new"]);
    assert_eq!(delete(&overlay, "deleted").await, 1);
    assert_eq!(watched.words().await, ["delete deleted"]);
    assert_eq!(delete(&overlay, "deleted").await, 0);
    // What can be copied up is, beside what cannot.
    let txn = Txn::of(vec![put_op("replaced", "1"), put_op("small", "1")]);
    overlay.txn(txn).await.unwrap();
    assert_eq!(watched.words().await, ["put replaced=1", "put small=1"]);
    assert_eq!(subject.store.get("small").await.unwrap().version, 2);
    let claims = subject.claims(KeyRange::all()).await;
    let expected = [
        "deleted whiteout",
        "overwritten=new",
        "replaced=1",
        "small=1",
    ];
    assert_eq!(claims, expected);
}

#[tokio::test]
async fn a_write_that_fails_leaves_what_the_new_store_could_not_take() {
    let taste = Taste {
        pairs: usize::MAX,
        values: true,
        rival: None,
        door: None,
    };
    let picky = Arc::new(Picky(Memory::new(), taste));
    writes_that_fail_leave_what_was_refused(picky, "unpalatable").await;
}

#[tokio::test]
async fn a_write_that_fails_leaves_what_was_too_large_for_an_etcd() {
    let etcd = Etcd::start().await;
    let url = etcd.url().parse().unwrap();
    let new = open_new(&url, &Reserved::default()).await.unwrap();
    writes_that_fail_leave_what_was_refused(new, &"v".repeat(LARGE)).await;
}

/// A table, some of whose rows have no value, over an empty `new`.
async fn unreadable(new: Arc<dyn NewStore>) {
    let home = Home::new(Sqlite).await;
    home.run(
        "CREATE TABLE kv (k TEXT PRIMARY KEY, v TEXT); \
         INSERT INTO kv VALUES ('a', NULL), ('b', NULL), ('c', NULL), ('good', 'old')",
    )
    .await;
    let (overlay, subject) = over(home.open("kv", "key=k&value=v").await, new).await;
    let broken = async |ops: Vec<Op>| {
        let told = overlay.txn(Txn::of(ops)).await.unwrap_err();
        assert!(told.to_string().contains("its value is NULL"), "{told}");
    };
    broken(vec![get_op("a")]).await;
    broken(vec![put_op("a", "new"), get_op("b")]).await;
    let failing = Txn::of(vec![
        put_op("a", "new"),
        delete_op(one("b")),
        lost_lease("x"),
    ]);
    let told = refused(overlay.txn(failing).await);
    assert_eq!(told, RequestError::LeaseNotFound);
    for key in ["a", "b"] {
        assert_eq!(subject.claims(one(key)).await, [""; 0]);
    }
    overlay.put(Put::new("a", "new")).await.unwrap();
    assert_eq!(value(&overlay, "a").await.as_deref(), Some("new"));
    assert_eq!(delete(&overlay, "b").await, 1);
    assert_eq!(delete(&overlay, "b").await, 0);
    let txn = Txn::of(vec![delete_op(one("c")), put_op("good", "new")]);
    let replies = overlay.txn(txn).await.unwrap().reply.replies;
    assert!(matches!(&replies[0], Reply::Delete(delete) if delete.deleted == 1));
    let good = subject.store.get("good").await.unwrap();
    assert_eq!((text(&good.value), good.version), ("new".into(), 2));
    let all = Txn::of(vec![get_op("b"), get_op("c")]);
    for reply in overlay.txn(all).await.unwrap().reply.replies {
        assert_eq!(range_reply(&reply).count, 0);
    }
    let claims = subject.claims(KeyRange::all()).await;
    assert_eq!(claims, ["a=new", "b whiteout", "c whiteout", "good=new"]);
}

#[tokio::test]
async fn a_key_that_cannot_be_read_can_be_overwritten_and_deleted() {
    unreadable(Arc::new(Memory::new())).await;
}

#[tokio::test]
async fn a_key_that_cannot_be_read_can_be_overwritten_and_deleted_in_an_etcd() {
    let etcd = Etcd::start().await;
    let url = etcd.url().parse().unwrap();
    unreadable(open_new(&url, &Reserved::default()).await.unwrap()).await;
}
