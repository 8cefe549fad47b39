//! What stays of a migration to etcd when it is settled.

use segue::store::{
    Claim, CopyUp, Guard, GuardedStore, Line, Read, ReadReply, RecordTxn, RecordWrite, StoreUrl,
    open_old,
};
use segue::types::{
    Compare, CompareResult, CompareTarget, Delete, Epoch, KeyRange, KeyValue, Op, Put, Range,
    Reserved, Revision, Txn,
};

use serde_json::Value;

use super::open;
use crate::support::Etcd;
use crate::support::segue::Segue;

/// The old store was used much more than the new one.
const BASE: Revision = Revision(1_000);
const EPOCH: Epoch = Epoch(1);

#[tokio::test]
async fn the_line_and_the_state_change_in_one_revision() {
    let etcd = Etcd::start().await;
    let store = open(&etcd).await;
    let line = |epoch| Line {
        epoch: Epoch(epoch),
        claims: true,
        base: BASE,
    };
    let mut client = etcd_client::Client::connect([etcd.endpoint()], None)
        .await
        .unwrap();
    for line in [Some(line(1)), Some(line(2)), None] {
        let txn = RecordTxn {
            writes: vec![RecordWrite {
                name: "state".into(),
                value: Some("a phase".into()),
            }],
            line: Some(line),
            ..RecordTxn::default()
        };
        assert!(store.write_records(txn).await.unwrap());
        let mut changed = Vec::new();
        for key in ["segue/_/record/state", "segue/_/line"] {
            let found = client.get(key, None).await.unwrap();
            changed.push(found.kvs()[0].mod_revision());
        }
        let latest = client.get("nothing", None).await.unwrap();
        changed.push(latest.header().unwrap().revision());
        assert_eq!(changed, vec![changed[0]; 3], "{line:?}");
    }
}

#[tokio::test]
async fn revisions_go_on_after_settle_here_and_as_the_old_store_of_the_next_migration() {
    let etcd = Etcd::start().await;
    let store = open(&etcd).await;
    let set = async |line| {
        let txn = RecordTxn {
            line: Some(line),
            ..RecordTxn::default()
        };
        assert!(store.write_records(txn).await.unwrap());
    };
    set(Some(Line {
        epoch: EPOCH,
        claims: true,
        base: BASE,
    }))
    .await;
    let under_line = store.guarded(Guard::Epoch {
        epoch: EPOCH,
        claims: true,
    });
    let copied = KeyValue {
        key: "copied".into(),
        create_revision: Revision(7),
        mod_revision: Revision(8),
        version: 2,
        ..KeyValue::default()
    };
    under_line
        .copy_up(CopyUp {
            kvs: vec![copied],
            record: None,
        })
        .await
        .unwrap();
    let before = under_line
        .put(Put::new("written", ""))
        .await
        .unwrap()
        .revision;
    assert!(before > BASE);

    set(None).await;
    store.settle_claims().await.unwrap();
    assert_eq!(store.line().await.unwrap(), None);
    let settled = store.guarded(Guard::None);
    let all = settled.range(Range::of(KeyRange::all())).await.unwrap();
    assert!(
        all.revision >= before,
        "{} is before {before}",
        all.revision
    );
    let keys: Vec<_> = all.reply.kvs.iter().map(|kv| &kv.key[..]).collect();
    assert_eq!(keys, [&b"copied"[..], b"written"]);
    assert_eq!(all.reply.kvs[1].mod_revision, before);
    let after = settled
        .put(Put::new("written", "again"))
        .await
        .unwrap()
        .revision;
    assert!(after > all.revision);

    let url: StoreUrl = etcd.url().parse().unwrap();
    let old = open_old(&url, &Reserved::default()).await.unwrap();
    assert_eq!(old.revision().await.unwrap(), after);
    let written = old
        .get(vec!["written".into()])
        .await
        .unwrap()
        .pop()
        .flatten();
    assert_eq!(
        written.map(|kv| (kv.mod_revision, kv.version)),
        Some((after, 2))
    );
}

/// Whoever holds a lock knows it by the create revision of its key, and who waits, by those before it.
#[tokio::test]
async fn keys_that_were_copied_keep_their_numbers_and_their_past_after_settle() {
    let etcd = Etcd::start().await;
    let store = open(&etcd).await;
    let line = |epoch, claims| Line {
        epoch: Epoch(epoch),
        claims,
        base: BASE,
    };
    let set = async |line| {
        let txn = RecordTxn {
            line: Some(line),
            ..RecordTxn::default()
        };
        assert!(store.write_records(txn).await.unwrap());
    };
    let guard = |epoch, claims| Guard::Epoch {
        epoch: Epoch(epoch),
        claims,
    };
    set(Some(line(1, true))).await;
    let migration = store.guarded(guard(1, true));
    let kvs = ["changed", "deleted", "kept"].map(|key| KeyValue {
        key: key.into(),
        value: "old".into(),
        create_revision: Revision(7),
        mod_revision: Revision(8),
        version: 3,
        ..KeyValue::default()
    });
    let copies = CopyUp {
        kvs: kvs.to_vec(),
        record: None,
    };
    migration.copy_up(copies).await.unwrap();
    let delete = Delete {
        keys: KeyRange::One("deleted".into()),
        prev_kv: false,
    };
    migration.delete(delete).await.unwrap();
    // One that was never seen here, and one that came and went: whiteouts.
    migration.put(Put::new("fleeting", "")).await.unwrap();
    let gone = Delete {
        keys: KeyRange::One("fleeting".into()),
        prev_kv: false,
    };
    migration.delete(gone).await.unwrap();
    set(Some(line(2, false))).await;
    let normal = store.guarded(guard(2, false));
    normal.put(Put::new("changed", "new")).await.unwrap();
    normal.put(Put::new("fresh", "new")).await.unwrap();
    let now = all(&*normal, None).await;
    let then = all(&*normal, Some(BASE)).await;
    assert_eq!((now.len(), then.len()), (3, 3));

    set(None).await;
    // Before, and after, and after it was done twice.
    for _ in 0..3 {
        let settled = store.guarded(Guard::None);
        assert_eq!(all(&*settled, None).await, now);
        assert_eq!(all(&*settled, Some(BASE)).await, then);
        store.settle_claims().await.unwrap();
    }
    let settled = store.guarded(Guard::None);
    let cas = |key: &'static str, target| Txn {
        compares: vec![Compare {
            keys: KeyRange::One(key.into()),
            result: CompareResult::Equal,
            target,
        }],
        success: vec![Op::Put(Put::new(key, "swapped"))],
        failure: Vec::new(),
    };
    for (key, target) in [
        ("kept", CompareTarget::Mod(Revision(8))),
        ("changed", CompareTarget::Create(Revision(7))),
        ("fresh", CompareTarget::Version(1)),
    ] {
        let answer = settled.txn(cas(key, target)).await.unwrap();
        assert!(answer.reply.succeeded, "{key}");
    }
    let changed = all(&*settled, None).await;
    let numbers: Vec<_> = changed
        .iter()
        .map(|kv| (&kv.key[..], kv.create_revision.0, kv.version))
        .collect();
    let fresh = now[1].create_revision.0;
    assert_eq!(
        numbers,
        [
            (&b"changed"[..], 7, 5),
            (b"fresh", fresh, 2),
            (b"kept", 7, 4)
        ]
    );

    // In another migration, claims would be deleted keys.
    set(Some(line(3, true))).await;
    let next = store.guarded(guard(3, true));
    assert_eq!(whiteouts(&*next).await, 0);
}

async fn all(handle: &dyn GuardedStore, at: Option<Revision>) -> Vec<KeyValue> {
    let range = Range {
        at,
        ..Range::of(KeyRange::all())
    };
    handle.range(range).await.unwrap().reply.kvs
}

async fn whiteouts(handle: &dyn GuardedStore) -> usize {
    let reads = vec![Read::Claims {
        keys: KeyRange::all(),
        values: 0,
    }];
    let read = handle.snapshot(None, reads).await.unwrap().reply;
    let [ReadReply::Claims(claims)] = &read[..] else {
        panic!("{read:?}");
    };
    let whiteout = |claim: &&Claim| matches!(claim, Claim::Whiteout(_));
    claims.iter().filter(whiteout).count()
}

/// Create and mod revision and version of the key that was read.
fn numbers(read: &etcd_client::GetResponse) -> (i64, i64, i64) {
    let kv = &read.kvs()[0];
    (kv.create_revision(), kv.mod_revision(), kv.version())
}

async fn client(endpoint: &str) -> etcd_client::Client {
    etcd_client::Client::connect([endpoint], None)
        .await
        .unwrap()
}

#[tokio::test]
async fn an_operator_completes_a_migration_and_restarts_the_proxies() {
    let (mut old, new) = (Etcd::start().await, Etcd::start().await);
    let mut direct = client(&old.endpoint()).await;
    for number in 0..50 {
        direct
            .put(format!("key/{number:02}"), "old", None)
            .await
            .unwrap();
    }
    let args = ["--old", &old.url(), "--new", &new.url()];
    let mut first = Segue::start(args).await;
    let second = Segue::start(args).await;
    for proxy in [&first, &second] {
        let both = |status: &Value| {
            status["verified"] == true && status["members"].as_array().map(Vec::len) == Some(2)
        };
        proxy.until("both are there, and verified", both).await;
    }
    let switched = first.run(["switch", "--wait"]).await;
    assert_eq!(switched.code, 0, "{switched:?}");
    let mut through = client(&second.endpoint()).await;
    let known = numbers(&direct.get("key/02", None).await.unwrap());
    let before = through.delete("key/00", None).await.unwrap();
    let before = before.header().unwrap().revision();
    assert!(new.raw_keys().await.contains(&"segue/switch".to_owned()));
    let watching = through.watch("", Some(etcd_client::WatchOptions::new().with_all_keys()));
    let mut stream = watching.await.unwrap();

    let foreseen = first.run(["complete", "--dry-run"]).await;
    assert!(foreseen.out.contains("the switch key"), "{foreseen:?}");
    let completed = first.run(["complete"]).await;
    assert_eq!(completed.code, 0, "{completed:?}");
    assert!(
        completed.out.contains("nothing of it is left"),
        "{completed:?}"
    );
    assert_eq!(numbers(&through.get("key/02", None).await.unwrap()), known);
    let mut expected: Vec<_> = (1..50).map(|number| format!("key/{number:02}")).collect();
    // What the numbers hang on that clients know, of the deleted one too: it has a past.
    let claims = (0..50).map(|number| format!("segue/_/claim/key/{number:02}"));
    expected.extend(claims.chain(["segue/_/line".to_owned()]));
    assert_eq!(new.raw_keys().await, expected);

    // Both serve on, and say so.
    let put = through.put("key/01", "new", None).await.unwrap();
    let after = put.header().unwrap().revision();
    assert!(after > before);
    // The first message says that the watch is there.
    let mut revisions = Vec::new();
    while revisions.is_empty() {
        let told = stream.message().await.unwrap().unwrap();
        let told = told.events().iter();
        revisions.extend(told.map(|event| event.kv().unwrap().mod_revision()));
    }
    assert_eq!(revisions, [after]);
    for proxy in [&first, &second] {
        let status = proxy
            .until("over", |status| status["complete"] == true)
            .await;
        assert_eq!(
            (&status["phase"], &status["trouble"]),
            (&"settled".into(), &Value::Null)
        );
        let text = proxy.run(["status"]).await.out;
        assert!(text.contains("migration   complete"), "{text}");
        for command in [
            "complete", "switch", "rollback", "pause", "resume", "verify",
        ] {
            let refused = proxy.run([command]).await;
            assert_eq!(refused.code, 3, "{command}: {refused:?}");
            assert!(
                refused.err.contains("is complete"),
                "{command}: {refused:?}"
            );
        }
        let said = proxy.output();
        assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    }
    assert_eq!(new.raw_keys().await, expected);

    // By the same command nothing begins, whether the old store is still there or not.
    for _ in 0..2 {
        let said = first.try_restart().await.unwrap_err();
        assert!(said.starts_with("exit status: 3"), "{said}");
        assert!(
            said.contains("run `segue serve --new URL` without --old"),
            "{said}"
        );
        old.kill();
    }
    assert_eq!(new.raw_keys().await, expected);
    let alone = Segue::start(["--new", &new.url()]).await;
    let found = client(&alone.endpoint())
        .await
        .get("key/01", None)
        .await
        .unwrap();
    assert_eq!(found.kvs()[0].mod_revision(), after);
    drop(alone);
    migrates_on(&new, after).await;
}

/// What was the new store is the old one of the next migration, whose end leaves its fence.
async fn migrates_on(new: &Etcd, after: i64) {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", dir.path().join("third.db").display());
    let third = Segue::start(["--old", &new.url(), "--new", &file]).await;
    third
        .until("verified", |status| status["verified"] == true)
        .await;
    for command in ["switch", "complete"] {
        let outcome = third.run([command]).await;
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
    let found = client(&third.endpoint())
        .await
        .get("key/01", None)
        .await
        .unwrap();
    assert_eq!(found.kvs()[0].mod_revision(), after);
    let fence = "segue/_/record/fence".to_owned();
    assert!(new.raw_keys().await.contains(&fence));
}
