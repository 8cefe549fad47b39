//! A server of the new store that lags behind may lack what was copied long since, and the old store is not
//! asked for that any more.

use std::sync::Arc;

use segue::overlay::Overlay;
use segue::store::memory::Memory;
use segue::store::{AsOld, NewStore, Store as _};
use segue::types::{KeyRange, Op, Put, Range, Reserved, Txn};

use super::flight::Sabotage;
use super::sabotage::Sabotaged;
use crate::contract::dsl::{guard, line, set_line};

#[tokio::test]
async fn nobody_reads_a_stale_new_store_while_keys_are_copied() {
    let new: Arc<dyn NewStore> = Arc::new(Memory::new());
    set_line(&*new, Some(line(1))).await;
    let inner = new.guarded(guard(1));
    inner.put(Put::new("k", "new")).await.unwrap();
    let old = Arc::new(AsOld::new(Arc::new(Memory::new()), "old".into()));
    let looked_at = Arc::new(Sabotaged {
        inner,
        // None of what the overlay does with this store.
        sabotage: Sabotage::OldStoreChanges,
    });
    let overlay = Overlay::new(old, looked_at, Reserved::default());
    for copied in [vec![], vec![KeyRange::all()]] {
        overlay.set_copied(copied);
        for keys in [KeyRange::One("k".into()), KeyRange::all()] {
            let read = Range {
                serializable: true,
                ..Range::of(keys)
            };
            let found = overlay.range(read.clone()).await.unwrap();
            assert_eq!(found.reply.count, 1);
            let reads = vec![
                Op::Range(read.clone()),
                Op::Txn(Txn::of(vec![Op::Range(read)])),
            ];
            assert!(overlay.txn(Txn::of(reads)).await.unwrap().reply.succeeded);
        }
    }
}
