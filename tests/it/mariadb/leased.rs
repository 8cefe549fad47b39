//! Which keys have leases is noted beside the rows, and has to be what they say.

use std::sync::Arc;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use segue::store::sql::mysql::MysqlStore;
use segue::store::{CopyUp, Guard, NewStore as _, RecordWrite, Replay, Replayed, Store as _};
use segue::types::{Delete, Grant, KeyRange, KeyValue, LeaseId, Op, Put, Range, Revision, Txn};

use super::open;
use crate::support::mariadb::{database, run};

const KEYS: u8 = 12;
const LEASES: i64 = 4;

/// Somebody who changes keys and leases by chance.
struct Changer {
    store: Arc<MysqlStore>,
    random: StdRng,
    /// Version of the record of what was replayed.
    replayed: i64,
}

impl Changer {
    fn key(&mut self) -> String {
        format!("key/{:02}", self.random.random_range(0..KEYS))
    }

    /// One that may not be there, or none.
    fn lease(&mut self) -> LeaseId {
        LeaseId(self.random.random_range(0..=LEASES))
    }

    fn put(&mut self) -> Put {
        let lease = self.random.random_bool(0.8).then(|| self.lease());
        Put {
            lease,
            ..Put::new(self.key(), "")
        }
    }

    /// Some that go into one batch, as far as they can.
    async fn puts_and_deletes(&mut self) {
        let mut txns = Vec::new();
        for _ in 0..6 {
            let mut ops = vec![Op::Put(self.put())];
            if self.random.random_bool(0.3) {
                let delete = Delete {
                    keys: KeyRange::One(self.key().into()),
                    prev_kv: false,
                };
                ops.insert(0, Op::Delete(delete));
            }
            txns.push(Txn::of(ops));
        }
        // Leases may be missing.
        join_all(txns.into_iter().map(|txn| self.store.txn(txn))).await;
    }

    fn pair(&mut self, revision: Revision) -> KeyValue {
        KeyValue {
            key: self.key().into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: self.lease(),
            ..KeyValue::default()
        }
    }

    async fn copy_up(&mut self) {
        let kvs = vec![self.pair(Revision(1))];
        let copy_up = CopyUp { kvs, record: None };
        let handle = self.store.clone().guarded(Guard::None);
        // Its lease may be missing.
        handle.copy_up(copy_up).await.ok();
    }

    async fn replay(&mut self) {
        let now = self.store.range(Range::key("key/00")).await.unwrap();
        let revision = now.revision;
        let pair = self.pair(revision);
        let change = if self.random.random_bool(0.7) {
            Replayed::Put(pair)
        } else {
            let key = pair.key;
            Replayed::Delete { key, revision }
        };
        let write = RecordWrite {
            name: "mirror".into(),
            value: Some("".into()),
        };
        let replay = Replay {
            changes: vec![change],
            record: (write, self.replayed),
        };
        // Its lease may be missing.
        if self.store.replay(replay).await.is_ok_and(|done| done) {
            self.replayed += 1;
        }
    }

    async fn change_leases(&mut self) {
        let id = LeaseId(self.random.random_range(1..=LEASES));
        if self.random.random_bool(0.3) {
            self.store.revoke(id).await.ok();
        } else {
            let id = Some(id);
            self.store.grant(Grant { id, ttl_s: 60 }).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_leases_are_noted_with_whatever_changes_them() {
    let url = database().await;
    let mut changer = Changer {
        store: open(&url).await,
        random: StdRng::seed_from_u64(20),
        replayed: 0,
    };
    let in_rows = "SELECT CONCAT(`key`, ' of ', lease) FROM segue_kv WHERE lease <> 0 ORDER BY 1";
    let noted = "SELECT CONCAT(`key`, ' of ', lease) FROM segue_leased ORDER BY 1";
    let mut most = 0;
    for step in 0..200 {
        let kind = changer.random.random_range(0..10);
        match kind {
            0..5 => changer.puts_and_deletes().await,
            5..7 => changer.change_leases().await,
            7 => changer.copy_up().await,
            _ => changer.replay().await,
        }
        let found = run(&url, noted).await;
        assert_eq!(found, run(&url, in_rows).await, "step {step}, {kind}");
        most = most.max(found.len());
    }
    assert!(most > 4, "{most} keys have had leases at a time");
    for id in 1..=LEASES {
        changer.store.revoke(LeaseId(id)).await.ok();
    }
    assert_eq!(run(&url, noted).await, Vec::<String>::new());
}
