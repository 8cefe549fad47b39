//! What stays of a migration to etcd when it is settled.

use segue::store::{CopyUp, Guard, Line, RecordTxn, RecordWrite, StoreUrl, open_old};
use segue::types::{Epoch, KeyRange, KeyValue, Put, Range, Reserved, Revision};

use super::open;
use crate::support::Etcd;

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
    store.drop_claims().await.unwrap();
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
