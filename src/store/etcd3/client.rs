//! The connection to the cluster: channels, log-in, deadlines, failing over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use super::errors::{self, Intent};
use crate::proto::etcdserverpb as pb;
use crate::store::url::{Account, Cluster};
use crate::store::{RequestError, Result, StoreError};
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;

/// etcd gives up on a request after 5 s and two elections (7 s by default); a little more lets its
/// own answer arrive.
const DEADLINE: Duration = Duration::from_secs(8);
/// For answers that are large, or work that takes etcd long.
const LONG_DEADLINE: Duration = Duration::from_mins(2);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A connection whose other end vanished is noticed within the sum of these two.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_DEADLINE: Duration = Duration::from_secs(5);
/// Room for large answers in flight, so that a scan is not held up by acknowledgements.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// A client of one etcd cluster. Clones share the connections.
///
/// All requests go over one connection to one member, which measured better than spreading them;
/// when it cannot be reached, does not answer in time or has no leader, the next member's turn comes.
#[derive(Clone)]
pub(super) struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    hosts: Vec<String>,
    channels: Vec<Channel>,
    current: AtomicUsize,
    account: Option<Account>,
    token: ArcSwapOption<MetadataValue<Ascii>>,
}

impl Client {
    /// Connects, logs in where there is an account, and makes sure that somebody answers.
    pub(super) async fn open(cluster: &Cluster) -> Result<Self> {
        let channels = cluster
            .hosts
            .iter()
            .map(|host| Ok(endpoint(host)?.connect_lazy()))
            .collect::<Result<Vec<_>>>()?;
        let client = Self {
            inner: Arc::new(Inner {
                hosts: cluster.hosts.clone(),
                channels,
                current: AtomicUsize::new(0),
                account: cluster.account.clone(),
                token: ArcSwapOption::empty(),
            }),
        };
        client.log_in().await.map_err(|e| client.explain(e))?;
        // Status asks for no rights, so that a read shows whether the log-in is good enough.
        let probe = pb::RangeRequest {
            key: "\0".into(),
            count_only: true,
            ..pb::RangeRequest::default()
        };
        client.range(probe).await.map_err(|e| client.explain(e))?;
        Ok(client)
    }

    /// Adds what the operator can do about a failure at start.
    fn explain(&self, error: StoreError) -> StoreError {
        let hosts = self.inner.hosts.join(", ");
        match error {
            StoreError::Request(RequestError::Credentials(text)) => {
                RequestError::Credentials(format!(
                    "etcd at {hosts} refuses to let us in ({text}): write the user and the \
                     password into the URL, etcd://USER:PASSWORD@HOST:PORT"
                ))
                .into()
            }
            StoreError::Unavailable(text) | StoreError::Unknown(text) => {
                StoreError::Unavailable(format!(
                    "etcd cannot be reached at {hosts} ({text}): check the address, and that the \
                     server runs and serves the v3 API there without TLS"
                ))
            }
            other => other,
        }
    }

    pub(super) async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse> {
        self.call(DEADLINE, Intent::Read, request, async |channel, request| {
            kv(channel).range(request).await
        })
        .await
    }

    pub(super) async fn long_range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse> {
        self.call(
            LONG_DEADLINE,
            Intent::Read,
            request,
            async |channel, request| kv(channel).range(request).await,
        )
        .await
    }

    pub(super) async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse> {
        self.call(
            DEADLINE,
            Intent::Write,
            request,
            async |channel, request| kv(channel).put(request).await,
        )
        .await
    }

    pub(super) async fn delete(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse> {
        self.call(
            DEADLINE,
            Intent::Write,
            request,
            async |channel, request| kv(channel).delete_range(request).await,
        )
        .await
    }

    /// A transaction that may write.
    pub(super) async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse> {
        self.call(
            DEADLINE,
            Intent::Write,
            request,
            async |channel, request| kv(channel).txn(request).await,
        )
        .await
    }

    /// A transaction that only reads, however much.
    pub(super) async fn read(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse> {
        let deadline = if request.success.iter().all(reads_one_key) {
            DEADLINE
        } else {
            LONG_DEADLINE
        };
        self.call(deadline, Intent::Read, request, async |channel, request| {
            kv(channel).txn(request).await
        })
        .await
    }

    pub(super) async fn compact(
        &self,
        request: pb::CompactionRequest,
    ) -> Result<pb::CompactionResponse> {
        self.call(
            LONG_DEADLINE,
            Intent::Write,
            request,
            async |channel, request| kv(channel).compact(request).await,
        )
        .await
    }

    pub(super) async fn grant(
        &self,
        request: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse> {
        self.call(
            DEADLINE,
            Intent::Write,
            request,
            async |channel, request| LeaseClient::new(channel).lease_grant(request).await,
        )
        .await
    }

    pub(super) async fn revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse> {
        self.call(
            DEADLINE,
            Intent::Write,
            request,
            async |channel, request| LeaseClient::new(channel).lease_revoke(request).await,
        )
        .await
    }

    /// Renews a lease once, on a stream of its own: it costs no more than a call, and a slow lease
    /// holds nobody else up. To renew twice does no harm.
    pub(super) async fn keep_alive(
        &self,
        request: pb::LeaseKeepAliveRequest,
    ) -> Result<pb::LeaseKeepAliveResponse> {
        self.call(
            DEADLINE,
            Intent::Read,
            request,
            async |channel, request: Request<_>| {
                let (metadata, extensions, message) = request.into_parts();
                let once = futures_util::stream::once(std::future::ready(message));
                let request = Request::from_parts(metadata, extensions, once);
                let mut answers = LeaseClient::new(channel)
                    .lease_keep_alive(request)
                    .await?
                    .into_inner();
                let answer = answers.message().await?;
                answer
                    .map(Response::new)
                    .ok_or_else(|| Status::unavailable("the stream ended without an answer"))
            },
        )
        .await
    }

    pub(super) async fn time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse> {
        self.call(DEADLINE, Intent::Read, request, async |channel, request| {
            let client = LeaseClient::new(channel);
            let mut client = client.max_decoding_message_size(usize::MAX);
            client.lease_time_to_live(request).await
        })
        .await
    }

    pub(super) async fn leases(&self) -> Result<pb::LeaseLeasesResponse> {
        let request = pb::LeaseLeasesRequest {};
        self.call(DEADLINE, Intent::Read, request, async |channel, request| {
            let client = LeaseClient::new(channel);
            let mut client = client.max_decoding_message_size(usize::MAX);
            client.lease_leases(request).await
        })
        .await
    }

    pub(super) async fn status(&self) -> Result<pb::StatusResponse> {
        let request = pb::StatusRequest {};
        self.call(DEADLINE, Intent::Read, request, async |channel, request| {
            MaintenanceClient::new(channel).status(request).await
        })
        .await
    }

    pub(super) async fn defragment(&self) -> Result<pb::DefragmentResponse> {
        let request = pb::DefragmentRequest {};
        self.call(
            LONG_DEADLINE,
            Intent::Read,
            request,
            async |channel, request| MaintenanceClient::new(channel).defragment(request).await,
        )
        .await
    }

    /// Opens a stream of watches. The stream itself has no deadline. A member that has lost its leader
    /// ends it: it would be silent there, for as long as it is cut off from the others.
    pub(super) async fn watch(
        &self,
        requests: tokio::sync::mpsc::Receiver<pb::WatchRequest>,
    ) -> Result<Responses> {
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let member = self.member();
        let mut request = self.request(requests);
        let yes = MetadataValue::from_static("true");
        request.metadata_mut().insert("hasleader", yes);
        let mut client = WatchClient::new(self.inner.channels[member].clone())
            .max_decoding_message_size(usize::MAX);
        match tokio::time::timeout(DEADLINE, client.watch(request)).await {
            Ok(Ok(stream)) => Ok(Responses {
                client: self.clone(),
                member,
                stream: stream.into_inner(),
            }),
            Ok(Err(status)) => {
                self.note(member, &status).await;
                Err(errors::failure(&status, Intent::Read))
            }
            Err(_) => Err(self.silent(member, Intent::Read)),
        }
    }

    /// etcd's revision now; `key` is any key that may be read.
    pub(super) async fn revision(&self, key: &Bytes) -> Result<i64> {
        let request = pb::RangeRequest {
            key: key.clone(),
            count_only: true,
            ..pb::RangeRequest::default()
        };
        let response = self.range(request).await?;
        Ok(response.header.map_or(0, |header| header.revision))
    }

    /// The revision that etcd is compacted at; 0 where it is not. Only watches tell: one that starts
    /// below is cancelled with it.
    pub(super) async fn compacted(&self, key: &Bytes) -> Result<i64> {
        let first = pb::RangeRequest {
            key: key.clone(),
            revision: 1,
            count_only: true,
            ..pb::RangeRequest::default()
        };
        match self.range(first).await {
            Ok(_) => return Ok(0),
            Err(StoreError::Request(RequestError::Compacted(_))) => {}
            Err(error) => return Err(error),
        }
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        let create = pb::WatchCreateRequest {
            key: key.clone(),
            start_revision: 1,
            ..pb::WatchCreateRequest::default()
        };
        let create = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
        };
        // The receiver is right here.
        let _ = requests.try_send(create);
        let mut responses = self.watch(receiver).await?;
        loop {
            let response = responses.next_soon().await?;
            if response.compact_revision > 0 {
                return Ok(response.compact_revision);
            }
            if response.canceled {
                return Err(StoreError::Unavailable(response.cancel_reason));
            }
        }
    }

    /// Sends a request and waits for the answer. Tries again by itself only where the request
    /// certainly did nothing: it was never sent, the token was no longer good, or it is a read.
    async fn call<Q: Clone, A>(
        &self,
        deadline: Duration,
        intent: Intent,
        message: Q,
        rpc: impl AsyncFn(Channel, Request<Q>) -> std::result::Result<Response<A>, Status>,
    ) -> Result<A> {
        // The request is only kept where there is something to try again with.
        let can_repeat =
            self.inner.channels.len() > 1 || self.inner.account.is_some() || intent == Intent::Read;
        let mut spare = can_repeat.then(|| message.clone());
        let mut message = message;
        let mut attempts = self.inner.channels.len();
        loop {
            let member = self.member();
            let channel = self.inner.channels[member].clone();
            let answer = rpc(channel, self.request(message));
            let status = match tokio::time::timeout(deadline, answer).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(self.silent(member, intent)),
            };
            let did_nothing = errors::not_sent(&status)
                || errors::token_expired(&status)
                || (intent == Intent::Read && !errors::from_server(&status));
            let again = spare.take().filter(|_| did_nothing && attempts > 0);
            self.note(member, &status).await;
            let Some(again) = again else {
                return Err(errors::failure(&status, intent));
            };
            attempts -= 1;
            spare = (attempts > 0).then(|| again.clone());
            message = again;
        }
    }

    fn member(&self) -> usize {
        self.inner.current.load(Ordering::Relaxed) % self.inner.channels.len()
    }

    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if self.inner.account.is_some()
            && let Some(token) = self.inner.token.load().as_deref()
        {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// Draws the consequences of a failure for the requests that follow: another member's turn, or
    /// another token.
    async fn note(&self, member: usize, status: &Status) {
        if errors::token_expired(status) {
            // The request that failed reports its own error; this one would only repeat it.
            let _ = self.log_in().await;
        } else if !errors::from_server(status) || errors::is_cut_off(status) {
            self.leave(member);
        }
    }

    /// A member that did not answer in time is not asked again soon: it may be slow for long.
    fn silent(&self, member: usize, intent: Intent) -> StoreError {
        self.leave(member);
        errors::deadline(intent)
    }

    /// The turn of the one behind `member`, unless another request has seen to it.
    fn leave(&self, member: usize) {
        let next = (member + 1) % self.inner.channels.len();
        let current = &self.inner.current;
        let _ = current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn log_in(&self) -> Result<()> {
        let Some(account) = &self.inner.account else {
            return Ok(());
        };
        let request = pb::AuthenticateRequest {
            name: account.user.clone(),
            password: account
                .password
                .as_ref()
                .map(|password| password.expose().to_owned())
                .unwrap_or_default(),
        };
        let mut last = None;
        for _ in 0..self.inner.channels.len() {
            let member = self.member();
            let mut client = AuthClient::new(self.inner.channels[member].clone());
            let answer = client.authenticate(request.clone());
            let status = match tokio::time::timeout(DEADLINE, answer).await {
                Ok(Ok(answer)) => {
                    let token = answer.into_inner().token.parse().map_err(|_| {
                        StoreError::Broken("etcd's token does not fit into a header".into())
                    })?;
                    self.inner.token.store(Some(Arc::new(token)));
                    return Ok(());
                }
                // A store that asks nobody for a password takes any.
                Ok(Err(status)) if status.message().contains("authentication is not enabled") => {
                    return Ok(());
                }
                Ok(Err(status)) => status,
                Err(_) => {
                    last = Some(self.silent(member, Intent::Read));
                    continue;
                }
            };
            let error = errors::failure(&status, Intent::Read);
            if errors::from_server(&status) {
                return Err(error);
            }
            let next = (member + 1) % self.inner.channels.len();
            self.inner.current.store(next, Ordering::Relaxed);
            last = Some(error);
        }
        Err(last.unwrap_or_else(|| errors::deadline(Intent::Read)))
    }
}

/// What a member says of watches, on one stream.
pub(super) struct Responses {
    client: Client,
    member: usize,
    stream: Streaming<pb::WatchResponse>,
}

impl Responses {
    /// The next response, whenever it comes; nothing at the end of the stream. If it is broken or the
    /// member has lost its leader, the next stream is another member's.
    pub(super) async fn next(&mut self) -> std::result::Result<Option<pb::WatchResponse>, Status> {
        let answer = self.stream.message().await;
        if let Err(status) = &answer {
            self.client.note(self.member, status).await;
        }
        answer
    }

    /// The next response of a stream that must have one soon.
    pub(super) async fn next_soon(&mut self) -> Result<pb::WatchResponse> {
        match tokio::time::timeout(DEADLINE, self.next()).await {
            Ok(Ok(Some(response))) => Ok(response),
            Ok(Ok(None)) => Err(StoreError::Unavailable("etcd closed the stream".into())),
            Ok(Err(status)) => Err(errors::failure(&status, Intent::Read)),
            Err(_) => Err(self.client.silent(self.member, Intent::Read)),
        }
    }
}

fn reads_one_key(op: &pb::RequestOp) -> bool {
    matches!(&op.request, Some(pb::request_op::Request::RequestRange(range)) if range.range_end.is_empty())
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

fn endpoint(host: &str) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{host}")).map_err(|error| {
        StoreError::Broken(format!("`{host}` is not an address of etcd: {error}"))
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_DEADLINE)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}
