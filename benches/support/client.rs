//! A client over the generated stubs: the same code for every target.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use segue::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use segue::proto::etcdserverpb::kv_client::KvClient;
use segue::proto::etcdserverpb::lease_client::LeaseClient;
use segue::proto::etcdserverpb::request_op::Request as Op;
use segue::proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tonic::transport::{Channel, Endpoint};

/// Length of every key.
pub const KEY_BYTES: usize = 64;
/// Length of every value.
pub const VALUE_BYTES: usize = 256;
/// What etcd takes in one transaction.
pub const PUTS_PER_TXN: usize = 128;
/// More transactions in flight bring etcd no more keys per second.
pub const TXNS_IN_FLIGHT: usize = 4;

/// A connection to whatever listens at `address`.
pub async fn connect(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address")
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5))
        .connect()
        .await
        .unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// The KV service behind a channel.
pub fn kv(channel: &Channel) -> KvClient<Channel> {
    KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX)
}

/// A put in a transaction whose condition is that another key exists.
pub fn conditional(condition: &Bytes, put: PutRequest) -> TxnRequest {
    let exists = Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Version.into(),
        key: condition.clone(),
        target_union: Some(TargetUnion::Version(0)),
        ..Compare::default()
    };
    TxnRequest {
        compare: vec![exists],
        success: vec![RequestOp {
            request: Some(Op::RequestPut(put)),
        }],
        failure: Vec::new(),
    }
}

/// `count` keys of [`KEY_BYTES`] in order, all of them beginning with `prefix`.
pub fn keys(prefix: &str, count: usize) -> Vec<Bytes> {
    let width = KEY_BYTES - prefix.len();
    (0..count)
        .map(|number| format!("{prefix}{number:0width$}").into())
        .collect()
}

/// A value of [`VALUE_BYTES`] that no storage can make smaller by much.
pub fn value(seed: usize) -> Bytes {
    let mut state = seed as u64;
    let mut value = Vec::with_capacity(VALUE_BYTES);
    while value.len() < VALUE_BYTES {
        value.extend_from_slice(&next_random(&mut state).to_le_bytes());
    }
    value.into()
}

/// The next of a sequence of well-mixed numbers (splitmix64).
pub fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Writes `keys` as a raw bulk load does: many puts per transaction, some transactions in flight.
pub async fn bulk_load(channel: &Channel, keys: &[Bytes]) {
    let client = kv(channel);
    stream::iter(keys.chunks(PUTS_PER_TXN).enumerate())
        .map(|(chunk, keys)| {
            let mut client = client.clone();
            let success = keys
                .iter()
                .enumerate()
                .map(|(index, key)| RequestOp {
                    request: Some(Op::RequestPut(PutRequest {
                        key: key.clone(),
                        value: value(chunk * PUTS_PER_TXN + index),
                        ..PutRequest::default()
                    })),
                })
                .collect();
            async move {
                let txn = TxnRequest {
                    success,
                    ..TxnRequest::default()
                };
                client.txn(txn).await.expect("a bulk load goes through");
            }
        })
        .buffer_unordered(TXNS_IN_FLIGHT)
        .collect::<()>()
        .await;
}

/// How many keys begin with `prefix`.
pub async fn count(channel: &Channel, prefix: &str) -> i64 {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: end.into(),
        count_only: true,
        ..RangeRequest::default()
    };
    let reply = kv(channel).range(request).await.expect("a count");
    reply.into_inner().count
}

/// Longer than etcd waits between two commits (100 ms).
const COMMIT: Duration = Duration::from_millis(130);

/// Brings an etcd 3.4 back to its normal speed. It copies its buffer of recent writes for each read
/// and each transaction (etcd-io/etcd#12529; plain puts do not), and stays slow after a burst of
/// writes until something other than a put makes it commit. The first commit here may still have
/// puts in it, the second one has none.
pub async fn settle(channel: &Channel) {
    let mut lease = LeaseClient::new(channel.clone());
    let granted = lease
        .lease_grant(LeaseGrantRequest { ttl: 60, id: 0 })
        .await
        .expect("a lease is granted")
        .into_inner();
    tokio::time::sleep(COMMIT).await;
    lease
        .lease_revoke(LeaseRevokeRequest { id: granted.id })
        .await
        .expect("a lease is revoked");
    tokio::time::sleep(COMMIT).await;
}
