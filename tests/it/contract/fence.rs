//! The fence of a store that serves clients until a migration takes it over.

use segue::store::{FENCE, Guard, RecordTxn, RecordWrite, StoreError};
use segue::types::{Delete, Grant, KeyRange, LeaseId, Put, Range};

use super::NewFixture;
use super::dsl::{record, txns_about};

pub async fn nothing_is_done_behind_a_fence(fixture: &dyn NewFixture) {
    let new = fixture.new_store().await;
    let plain = new.guarded(Guard::None);
    let serving = new.guarded(Guard::Unfenced);
    let id = LeaseId(7);
    let grant = |id| Grant {
        id: Some(LeaseId(id)),
        ttl_s: 600,
    };
    serving.grant(grant(7)).await.unwrap();
    let leased = Put {
        lease: Some(id),
        ..Put::new("leased", "1")
    };
    serving.put(leased).await.unwrap();
    serving.put(Put::new("a", "1")).await.unwrap();
    let before = plain.range(Range::of(KeyRange::all())).await.unwrap();

    let raise = RecordTxn {
        writes: vec![record(FENCE, "somebody's")],
        ..RecordTxn::default()
    };
    assert!(new.write_records(raise).await.unwrap());
    let delete = || Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    let stale = Some(StoreError::StaleEpoch);
    assert_eq!(serving.put(Put::new("a", "2")).await.err(), stale);
    assert_eq!(serving.delete(delete()).await.err(), stale);
    for txn in txns_about("a") {
        assert_eq!(serving.txn(txn.clone()).await.err(), stale, "{txn:?}");
    }
    assert_eq!(serving.range(Range::key("a")).await.err(), stale);
    assert_eq!(serving.range(Range::of(KeyRange::all())).await.err(), stale);
    assert_eq!(serving.grant(grant(8)).await.err(), stale);
    assert_eq!(serving.keep_alive(id).await.err(), stale);
    assert_eq!(serving.revoke(id).await.err(), stale);
    assert_eq!(serving.leases().await.err(), stale);
    let after = plain.range(Range::of(KeyRange::all())).await.unwrap();
    assert_eq!(after.reply, before.reply);
    assert!(plain.time_to_live(id, true).await.unwrap().reply.is_some());

    let lower = RecordTxn {
        writes: vec![RecordWrite {
            name: FENCE.into(),
            value: None,
        }],
        ..RecordTxn::default()
    };
    assert!(new.write_records(lower).await.unwrap());
    let serving = new.guarded(Guard::Unfenced);
    serving.put(Put::new("a", "2")).await.unwrap();
    serving.revoke(id).await.unwrap();
    let left = plain.range(Range::of(KeyRange::all())).await.unwrap();
    assert_eq!(left.reply.count, 1);
}
