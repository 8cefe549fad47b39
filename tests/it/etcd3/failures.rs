//! What becomes of requests when the server goes away, comes back, or does not let us in.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use segue::store::{
    CopyUp, Guard, Line, RecordTxn, RecordWrite, RequestError, StoreError, StoreUrl, Watch,
    WatchItem, open_new, open_old,
};
use segue::types::{
    Content, Delete, Epoch, Grant, KeyRange, KeyValue, LeaseId, Op, Put, Range, Reserved, Revision,
    Txn,
};

use super::open;
use crate::support::link::{Link, Traffic};
use crate::support::{Etcd, eventually};

/// Runs etcd's own command line client.
fn etcdctl(etcd: &Etcd, arguments: &[&str]) {
    let output = std::process::Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &etcd.endpoint()])
        .args(arguments)
        .output()
        .expect("this test needs `etcdctl`: apt-get install etcd-client");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_with_what_to_do() {
    let url: StoreUrl = "etcd://127.0.0.1:1".parse().unwrap();
    for complaint in [
        open_new(&url, &Reserved::default()).await.err(),
        open_old(&url, &Reserved::default()).await.err(),
    ] {
        let complaint = complaint.unwrap();
        assert!(matches!(complaint, StoreError::Unavailable(_)));
        let text = complaint.to_string();
        assert!(text.contains("127.0.0.1:1"), "{text}");
        assert!(text.contains("check the address"), "{text}");
    }
}

#[tokio::test]
async fn requests_go_to_the_next_member_when_one_is_gone() {
    let etcd = Etcd::start().await;
    let url = format!("etcd://127.0.0.1:1,{}", etcd.address());
    let store = open_new(&url.parse().unwrap(), &Reserved::default())
        .await
        .unwrap()
        .guarded(Guard::None);
    store.put(Put::new("a", "1")).await.unwrap();
    assert_eq!(store.range(Range::key("a")).await.unwrap().reply.count, 1);
}

#[tokio::test]
async fn a_member_that_does_not_answer_in_time_is_not_asked_again() {
    let etcd = Etcd::start().await;
    let link = Link::to(&etcd.url()).await;
    let url = format!("{},{}", link.url(&etcd.url()), etcd.address());
    let store = open_new(&url.parse().unwrap(), &Reserved::default())
        .await
        .unwrap()
        .guarded(Guard::None);
    store.put(Put::new("a", "1")).await.unwrap();
    link.set(Traffic::Stands);
    let told = store.put(Put::new("a", "2")).await.unwrap_err();
    assert!(
        matches!(told, StoreError::Unavailable(_) | StoreError::Unknown(_)),
        "{told}"
    );
    // Its connection is not known to be broken yet.
    let begun = Instant::now();
    store.put(Put::new("a", "3")).await.unwrap();
    let mut watching = store.watch(Watch::of(KeyRange::all(), None)).await.unwrap();
    store.put(Put::new("a", "4")).await.unwrap();
    assert!(matches!(
        watching.items.next().await,
        Some(WatchItem::Events(_))
    ));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn everything_goes_on_when_the_server_is_back() {
    let mut etcd = Etcd::start().await;
    let store = open(&etcd).await.guarded(Guard::None);
    let mut watching = store.watch(Watch::of(KeyRange::all(), None)).await.unwrap();
    store.put(Put::new("a", "1")).await.unwrap();
    assert!(matches!(
        watching.items.next().await,
        Some(WatchItem::Events(_))
    ));
    etcd.kill();
    let read = store.range(Range::key("a")).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    let write = store.put(Put::new("a", "2")).await;
    assert!(
        matches!(
            write,
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_))
        ),
        "{write:?}"
    );
    etcd.restart().await;
    let store = &store;
    eventually("a write gets through", async || {
        store.put(Put::new("b", "1")).await
    })
    .await;
    let next = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match watching.items.next().await {
                Some(WatchItem::Events(batch)) => break batch,
                Some(WatchItem::Progress(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    let batch = next.await.expect("the watch goes on");
    assert_eq!(batch.events[0].key(), "b");
}

#[tokio::test]
async fn a_write_without_an_answer_may_have_happened() {
    let etcd = Etcd::start().await;
    let new = open(&etcd).await;
    let plain = new.guarded(Guard::None);
    plain.put(Put::new("a", "1")).await.unwrap();
    let id = Some(LeaseId(1));
    plain.grant(Grant { id, ttl_s: 600 }).await.unwrap();
    let line = Line {
        epoch: Epoch(1),
        claims: true,
        base: Revision(1),
    };
    let records = |line| RecordTxn {
        line,
        writes: vec![RecordWrite {
            name: "state".into(),
            value: Some("".into()),
        }],
        ..RecordTxn::default()
    };
    assert!(new.write_records(records(Some(Some(line)))).await.unwrap());
    let guarded = new.guarded(Guard::Epoch {
        epoch: line.epoch,
        claims: line.claims,
    });
    guarded.range(Range::key("a")).await.unwrap();
    etcd.pause();
    let put = || Put::new("a", "2");
    let delete = Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    let txn = || Txn::of(vec![Op::Put(put()), Op::Range(Range::key("b"))]);
    let copy = || KeyValue {
        key: "b".into(),
        ..KeyValue::default()
    };
    let copy_up = CopyUp {
        kvs: vec![copy()],
        record: None,
    };
    // All at once, since each waits for its deadline.
    let outcomes: [(&str, Option<StoreError>); 10] = futures_util::join!(
        async { ("put", plain.put(put()).await.err()) },
        async { ("delete", plain.delete(delete.clone()).await.err()) },
        async { ("txn", plain.txn(txn()).await.err()) },
        async { ("revoke", plain.revoke(LeaseId(1)).await.err()) },
        async { ("guarded put", guarded.put(put()).await.err()) },
        async { ("guarded delete", guarded.delete(delete.clone()).await.err()) },
        async { ("guarded txn", guarded.txn(txn()).await.err()) },
        async {
            (
                "over copies",
                guarded.txn_over(vec![copy()], txn()).await.err(),
            )
        },
        async { ("copy-up", guarded.copy_up(copy_up).await.err()) },
        async { ("records", new.write_records(records(None)).await.err()) },
    )
    .into();
    for (what, outcome) in outcomes {
        let outcome = outcome.unwrap();
        assert!(matches!(outcome, StoreError::Unknown(_)), "{what}");
    }
    let read = plain.range(Range::key("a")).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    etcd.resume();
}

#[tokio::test]
async fn a_server_that_wants_a_password_gets_one() {
    let etcd = Etcd::start().await;
    for command in [
        &["user", "add", "root:se/cret"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcdctl(&etcd, command);
    }
    let address = etcd.address();
    let open = async |url: String| open_new(&url.parse().unwrap(), &Reserved::default()).await;
    for wrong in ["", "root:other@"] {
        let refused = open(format!("etcd://{wrong}{address}")).await;
        let refused = refused.err().unwrap();
        let credentials = StoreError::Request(RequestError::Credentials(refused.to_string()));
        assert_eq!(
            std::mem::discriminant(&refused),
            std::mem::discriminant(&credentials)
        );
        assert!(refused.to_string().contains("USER:PASSWORD@"), "{refused}");
        assert!(!refused.to_string().contains("other"), "{refused}");
    }
    let store = open(format!("etcd://root:se%2Fcret@{address}"))
        .await
        .unwrap()
        .guarded(Guard::None);
    store.put(Put::new("a", "1")).await.unwrap();
    let mut watching = store.watch(Watch::of(KeyRange::all(), None)).await.unwrap();
    // A change of the accounts makes the token one of an earlier time.
    etcdctl(
        &etcd,
        &["--user=root:se/cret", "user", "add", "other:other"],
    );
    store.put(Put::new("a", "2")).await.unwrap();
    let count = Range {
        content: Content::CountOnly,
        ..Range::of(KeyRange::all())
    };
    assert_eq!(store.range(count).await.unwrap().reply.count, 1);
    assert!(matches!(
        watching.items.next().await,
        Some(WatchItem::Events(_))
    ));
}
