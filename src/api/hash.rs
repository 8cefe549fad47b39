//! A hash over all keys, with which operators compare proxies.

use prost::Message;

use super::Context;
use crate::proto::{etcdserverpb as pb, mvccpb};
use crate::store::Result;
use crate::types::{KeyRange, Range, Revision};

/// Pairs read at a time: large, since stores count the rest of the range for every page.
const PAGE: usize = 10_000;

/// Hashes every pair, numbers included, as it stands at `revision` (the current one, if that is 0).
///
/// Two proxies answer the same if they show the same keys. It is not the number that an etcd server
/// computes, which goes over the history in its database file as well.
pub(super) async fn hash_kv(context: &Context, revision: i64) -> Result<pb::HashKvResponse> {
    let _turn = context.hashing.acquire().await;
    let stands = context.store.status().await?;
    let at = if revision > 0 {
        Revision(revision)
    } else {
        stands.revision
    };
    let mut hasher = crc32fast::Hasher::new();
    let mut encoded = Vec::new();
    let mut rest = Some(KeyRange::all());
    while let Some(keys) = rest {
        let page = Range {
            at: (at.0 > 0).then_some(at),
            limit: PAGE,
            ..Range::of(keys.clone())
        };
        let reply = context.store.range(page).await?.reply;
        let last = reply.kvs.last().map(|kv| kv.key.clone());
        for kv in reply.kvs {
            encoded.clear();
            // Never fails: the buffer grows.
            let _ = mvccpb::KeyValue::from(kv).encode_length_delimited(&mut encoded);
            hasher.update(&encoded);
        }
        rest = match last {
            Some(last) if reply.more => keys.after(&last),
            _ => None,
        };
    }
    Ok(pb::HashKvResponse {
        header: context.header(stands.revision),
        hash: hasher.finalize(),
        compact_revision: stands.compacted.0,
        hash_revision: at.0,
    })
}
