//! From a path to the service that answers it, counted and timed on the way.
//!
//! Written by hand rather than with a router: a match on the path, no boxed request body, and no
//! lookup of metrics by label in the way of every request.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Instant;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};

use super::auth::{self, Auth};
use super::cluster::Cluster;
use super::concurrency::{Election, Lock};
use super::errors::{in_etcds_words, not_served};
use super::kv::Kv;
use super::lease::Lease;
use super::maintenance::Maintenance;
use super::watch::Watch;
use super::{Context, plain};
use crate::metrics::{Kind, Method};
use crate::proto::etcdserverpb::auth_server::AuthServer;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::etcdserverpb::watch_server::WatchServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;

/// Answers every request of every connection.
#[derive(Clone)]
pub(super) struct Dispatch(Arc<Services>);

struct Services {
    kv: KvServer<Kv>,
    watch: WatchServer<Watch>,
    lease: LeaseServer<Lease>,
    cluster: ClusterServer<Cluster>,
    maintenance: MaintenanceServer<Maintenance>,
    auth: AuthServer<Auth>,
    lock: LockServer<Lock>,
    election: ElectionServer<Election>,
    /// Health and reflection, which are asked rarely.
    others: Routes,
    context: Arc<Context>,
    methods: Vec<Served>,
}

/// A method that is served.
struct Served {
    path: String,
    target: Target,
    metrics: Method,
}

#[derive(Clone, Copy)]
enum Target {
    Kv,
    Watch,
    Lease,
    Cluster,
    Maintenance,
    Auth,
    Lock,
    Election,
    Others,
}

/// Every method that is counted; those that are called most come first.
const METHODS: [(Target, &str, &str, Kind); 37] = {
    use Kind::{BidiStream, ServerStream, Unary};
    use Target::{Auth, Cluster, Election, Kv, Lease, Lock, Maintenance, Others, Watch};
    const KV: &str = "etcdserverpb.KV";
    const LEASE: &str = "etcdserverpb.Lease";
    const CLUSTER: &str = "etcdserverpb.Cluster";
    const MAINTENANCE: &str = "etcdserverpb.Maintenance";
    const AUTH: &str = "etcdserverpb.Auth";
    const LOCK: &str = "v3lockpb.Lock";
    const ELECTION: &str = "v3electionpb.Election";
    const HEALTH: &str = "grpc.health.v1.Health";
    [
        (Kv, KV, "Range", Unary),
        (Kv, KV, "Txn", Unary),
        (Kv, KV, "Put", Unary),
        (Kv, KV, "DeleteRange", Unary),
        (Kv, KV, "Compact", Unary),
        (Lease, LEASE, "LeaseKeepAlive", BidiStream),
        (Lease, LEASE, "LeaseGrant", Unary),
        (Lease, LEASE, "LeaseRevoke", Unary),
        (Lease, LEASE, "LeaseTimeToLive", Unary),
        (Lease, LEASE, "LeaseLeases", Unary),
        (Watch, "etcdserverpb.Watch", "Watch", BidiStream),
        (Maintenance, MAINTENANCE, "Status", Unary),
        (Maintenance, MAINTENANCE, "Alarm", Unary),
        (Maintenance, MAINTENANCE, "Defragment", Unary),
        (Maintenance, MAINTENANCE, "Hash", Unary),
        (Maintenance, MAINTENANCE, "HashKV", Unary),
        (Maintenance, MAINTENANCE, "Snapshot", ServerStream),
        (Maintenance, MAINTENANCE, "MoveLeader", Unary),
        (Maintenance, MAINTENANCE, "Downgrade", Unary),
        (Cluster, CLUSTER, "MemberList", Unary),
        (Cluster, CLUSTER, "MemberAdd", Unary),
        (Cluster, CLUSTER, "MemberRemove", Unary),
        (Cluster, CLUSTER, "MemberUpdate", Unary),
        (Cluster, CLUSTER, "MemberPromote", Unary),
        (Auth, AUTH, "Authenticate", Unary),
        (Auth, AUTH, "AuthStatus", Unary),
        (Auth, AUTH, "AuthDisable", Unary),
        (Auth, AUTH, "UserList", Unary),
        (Auth, AUTH, "RoleList", Unary),
        (Lock, LOCK, "Lock", Unary),
        (Lock, LOCK, "Unlock", Unary),
        (Election, ELECTION, "Campaign", Unary),
        (Election, ELECTION, "Proclaim", Unary),
        (Election, ELECTION, "Leader", Unary),
        (Election, ELECTION, "Observe", ServerStream),
        (Election, ELECTION, "Resign", Unary),
        (Others, HEALTH, "Check", Unary),
    ]
};

impl Dispatch {
    /// All services over `context`; `others` are tonic's own.
    pub(super) fn new(context: Arc<Context>, others: Routes) -> Self {
        let message_bytes = context.message_bytes();
        let methods = METHODS.map(|(target, service, method, kind)| Served {
            path: format!("/{service}/{method}"),
            target,
            metrics: context.metrics.grpc.method(service, method, kind),
        });
        Self(Arc::new(Services {
            kv: KvServer::new(Kv(context.clone())).max_decoding_message_size(message_bytes),
            watch: WatchServer::new(Watch(context.clone())),
            lease: LeaseServer::new(Lease(context.clone())),
            cluster: ClusterServer::new(Cluster(context.clone())),
            maintenance: MaintenanceServer::new(Maintenance(context.clone())),
            auth: AuthServer::new(Auth(context.clone())),
            lock: LockServer::new(Lock(context.clone())),
            election: ElectionServer::new(Election(context.clone()))
                .max_decoding_message_size(message_bytes),
            others: others.prepare(),
            methods: methods.into(),
            context,
        }))
    }
}

impl hyper::service::Service<Request<Incoming>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let services = Arc::clone(&self.0);
        let path = request.uri().path();
        match services
            .methods
            .iter()
            .position(|served| served.path == path)
        {
            Some(index) => Box::pin(services.serve(index, request)),
            None => Box::pin(services.serve_other(request)),
        }
    }
}

impl Services {
    async fn serve(
        self: Arc<Self>,
        index: usize,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let mut call = Call::begin(Arc::clone(&self), index);
        let served = &self.methods[index];
        let response = match served.target {
            Target::Kv => self.kv.clone().call(request).await?,
            Target::Watch => self.watch.clone().call(request).await?,
            Target::Lease => self.lease.clone().call(request).await?,
            Target::Cluster => self.cluster.clone().call(request).await?,
            Target::Maintenance => self.maintenance.clone().call(request).await?,
            Target::Auth => self.auth.clone().call(request).await?,
            Target::Lock => self.lock.clone().call(request).await?,
            Target::Election => self.election.clone().call(request).await?,
            Target::Others => self.others.clone().oneshot(request.map(Body::new)).await?,
        };
        if let Some(failure) = response.extensions().get::<Status>() {
            call.end(failure.code());
            return Ok(match in_etcds_words(failure) {
                Some(failure) => failure.into_http(),
                None => response,
            });
        }
        if served.metrics.kind == Kind::Unary {
            call.end(Code::Ok);
            return Ok(response);
        }
        Ok(response.map(|body| Body::new(Counted { body, call })))
    }

    /// What is plain HTTP, belongs to tonic, or is not served.
    async fn serve_other(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let content = request.headers().get(http::header::CONTENT_TYPE);
        let content = content.map_or(&b""[..], http::HeaderValue::as_bytes);
        if !content.starts_with(b"application/grpc") {
            return Ok(plain::serve(&self.context, &request).await);
        }
        let path = request.uri().path().trim_start_matches('/');
        let (service, method) = path.split_once('/').unwrap_or((path, ""));
        let sentence = match service {
            "grpc.health.v1.Health"
            | "grpc.reflection.v1.ServerReflection"
            | "grpc.reflection.v1alpha.ServerReflection" => {
                return self.others.clone().oneshot(request.map(Body::new)).await;
            }
            "etcdserverpb.Auth" => return Ok(auth::refusal(method).into_http()),
            _ => "this proxy does not have this method",
        };
        Ok(not_served(sentence).into_http())
    }
}

/// A call that is under way. One that is dropped before its end was given up by the client.
struct Call {
    services: Arc<Services>,
    index: usize,
    begun: Instant,
    ended: bool,
}

impl Call {
    fn begin(services: Arc<Services>, index: usize) -> Self {
        services.methods[index].metrics.started();
        Self {
            services,
            index,
            begun: Instant::now(),
            ended: false,
        }
    }

    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            let metrics = &self.services.methods[self.index].metrics;
            metrics.handled(code, self.begun.elapsed());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The responses of a stream, which tell only at their end how the call went.
struct Counted {
    body: Body,
    call: Call,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            let code = trailers.get(Status::GRPC_STATUS);
            this.call
                .end(code.map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes())));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
