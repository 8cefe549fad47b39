//! Requests as data, and what a server answers in a form that can be compared.

use pb::request_op::Request;
use segue::proto::etcdserverpb as pb;
use segue::proto::etcdserverpb::auth_client::AuthClient;
use segue::proto::etcdserverpb::kv_client::KvClient;
use segue::proto::etcdserverpb::lease_client::LeaseClient;
use segue::proto::etcdserverpb::watch_client::WatchClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// What a lease loses while it is asked about.
const SLACK_S: i64 = 3;

/// A request that has one answer.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases(pb::LeaseLeasesRequest),
    KeepAlive(pb::LeaseKeepAliveRequest),
    Authenticate(pb::AuthenticateRequest),
}

impl Ask {
    /// Visits all reads, those within transactions too.
    pub(crate) fn visit_ranges(&mut self, visit: &mut impl FnMut(&mut pb::RangeRequest)) {
        match self {
            Self::Range(range) => visit(range),
            Self::Txn(txn) => visit_txn(txn, visit),
            _ => {}
        }
    }
}

fn visit_txn(txn: &mut pb::TxnRequest, visit: &mut impl FnMut(&mut pb::RangeRequest)) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Request::RequestRange(range)) => visit(range),
            Some(Request::RequestTxn(txn)) => visit_txn(txn, visit),
            _ => {}
        }
    }
}

macro_rules! asks {
    ($($request:ident => $ask:ident),* $(,)?) => {
        $(impl From<pb::$request> for Ask {
            fn from(request: pb::$request) -> Self {
                Self::$ask(request)
            }
        })*
    };
}

asks! {
    RangeRequest => Range,
    PutRequest => Put,
    DeleteRangeRequest => Delete,
    TxnRequest => Txn,
    CompactionRequest => Compact,
    LeaseGrantRequest => Grant,
    LeaseRevokeRequest => Revoke,
    LeaseTimeToLiveRequest => TimeToLive,
    LeaseLeasesRequest => Leases,
    LeaseKeepAliveRequest => KeepAlive,
    AuthenticateRequest => Authenticate,
}

/// One server, through the generated stubs, so that nothing of an answer is lost.
#[derive(Clone)]
pub(crate) struct Client {
    pub kv: KvClient<Channel>,
    pub lease: LeaseClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub auth: AuthClient<Channel>,
    /// A lease that has lost no more than this counts as full.
    pub slack_s: i64,
}

impl Client {
    pub(crate) async fn connect(endpoint: &str) -> Self {
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()),
            auth: AuthClient::new(channel.clone()),
            watch: WatchClient::new(channel).max_decoding_message_size(usize::MAX),
            slack_s: SLACK_S,
        }
    }

    /// The answer without what differs between any two servers.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> String {
        match ask.clone() {
            Ask::Range(request) => plain(self.kv.range(request).await, |r| &mut r.header),
            Ask::Put(request) => plain(self.kv.put(request).await, |r| &mut r.header),
            Ask::Delete(request) => plain(self.kv.delete_range(request).await, |r| &mut r.header),
            Ask::Txn(request) => plain(self.kv.txn(request).await, |r| &mut r.header),
            Ask::Compact(request) => plain(self.kv.compact(request).await, |r| &mut r.header),
            Ask::Grant(request) => plain(self.lease.lease_grant(request).await, |r| &mut r.header),
            Ask::Revoke(request) => {
                plain(self.lease.lease_revoke(request).await, |r| &mut r.header)
            }
            Ask::TimeToLive(request) => {
                let answer = self.lease.lease_time_to_live(request).await;
                let slack_s = self.slack_s;
                plain(answer, |response| {
                    // Time passes: a lease that is full or nearly so counts as full.
                    if response.ttl > 0 && response.granted_ttl - response.ttl <= slack_s {
                        response.ttl = response.granted_ttl;
                    }
                    // etcd answers them in the order of a map.
                    response.keys.sort();
                    &mut response.header
                })
            }
            Ask::Leases(request) => {
                plain(self.lease.lease_leases(request).await, |response| {
                    // etcd orders them by when they end.
                    response.leases.sort_by_key(|lease| lease.id);
                    &mut response.header
                })
            }
            Ask::Authenticate(request) => {
                plain(self.auth.authenticate(request).await, |r| &mut r.header)
            }
            Ask::KeepAlive(request) => {
                let requests = tokio_stream::iter([request]);
                let answer = match self.lease.lease_keep_alive(requests).await {
                    Ok(responses) => responses.into_inner().message().await,
                    Err(failure) => Err(failure),
                };
                let answer = answer.map(|answer| tonic::Response::new(answer.unwrap_or_default()));
                plain(answer, |response| &mut response.header)
            }
        }
    }
}

/// An answer or an error as text.
fn plain<T: std::fmt::Debug>(
    answer: Result<tonic::Response<T>, Status>,
    header: impl FnOnce(&mut T) -> &mut Option<pb::ResponseHeader>,
) -> String {
    match answer {
        Ok(response) => {
            let mut response = response.into_inner();
            strip(header(&mut response));
            format!("{response:?}")
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Removes what differs between any two servers, and sees that it is there.
pub(crate) fn strip(header: &mut Option<pb::ResponseHeader>) {
    let header = header.as_mut().expect("every response has a header");
    assert_ne!((header.cluster_id, header.member_id), (0, 0));
    assert_ne!(header.raft_term, 0);
    (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
}
