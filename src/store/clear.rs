//! Emptying a new store, with nothing but what every store offers.

use bytes::Bytes;

use super::{EMPTYING, Guard, NewStore, RecordTxn, RecordWrite, RequestError, Result, StoreError};
use crate::types::range::successor;
use crate::types::{Content, Delete, KeyRange, Range, Reserved};

/// Keys that are deleted at a time.
const PAGE: usize = 1000;
/// Records that are removed at a time: etcd's limit on operations is 128.
const RECORDS: usize = 100;

/// Removes everything from `store`; see [`NewStore::clear`].
pub(super) async fn by_parts<S: NewStore + ?Sized>(store: &S, reserved: &Reserved) -> Result<()> {
    forget_migration(store).await?;
    let plain = store.guarded(Guard::None);
    for id in plain.leases().await?.reply {
        match plain.revoke(id).await {
            Ok(_) | Err(StoreError::Request(RequestError::LeaseNotFound)) => {}
            Err(error) => return Err(error),
        }
    }
    // The second is hidden from the first.
    for keys in [KeyRange::all(), reserved.range().clone()] {
        loop {
            let page = Range {
                limit: PAGE,
                content: Content::KeysOnly,
                ..Range::of(keys.clone())
            };
            let page = plain.range(page).await?.reply.kvs;
            let (Some(first), Some(last)) = (page.first(), page.last()) else {
                break;
            };
            let some = KeyRange::span(first.key.clone(), Some(successor(&last.key)));
            let delete = Delete {
                keys: some,
                prev_kv: false,
            };
            plain.delete(delete).await?;
        }
    }
    store.drop_claims().await?;
    let revision = plain.status().await?.revision;
    plain.forget(revision).await?;
    let done = RecordWrite {
        name: EMPTYING.to_owned(),
        value: None,
    };
    let txn = RecordTxn {
        writes: vec![done],
        ..RecordTxn::default()
    };
    store.write_records(txn).await.map(drop)
}

/// Removes line and records, the line first: whoever still works on the migration is refused from
/// then on. With the line comes the record that says what is going on.
async fn forget_migration<S: NewStore + ?Sized>(store: &S) -> Result<()> {
    let mut records = store.records("").await?;
    // Those that say what the rest is about first, so that what is left of them is no migration.
    records.sort_by_key(|record| record.name.contains('/'));
    let names = records.into_iter().map(|record| record.name);
    let mut names = names.filter(|name| name != EMPTYING).peekable();
    let emptying = RecordWrite {
        name: EMPTYING.to_owned(),
        value: Some(Bytes::from_static(b"true")),
    };
    let mut emptying = Some(emptying);
    loop {
        let some = names.by_ref().take(RECORDS);
        let gone = some.map(|name| RecordWrite { name, value: None });
        store
            .write_records(RecordTxn {
                writes: emptying.take().into_iter().chain(gone).collect(),
                line: Some(None),
                ..RecordTxn::default()
            })
            .await?;
        if names.peek().is_none() {
            return Ok(());
        }
    }
}
