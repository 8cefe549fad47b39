//! The etcd v3 API: gRPC and a little plain HTTP on one port, over any [`Store`].
//!
//! A request goes `server` → `dispatch` → the service's file → `validate` → the store, and its
//! answer back through `header` and `errors`. What is on the wire becomes our words in
//! [`crate::wire`]. Nothing here knows which store it serves, or that there is a migration.

mod auth;
mod cluster;
mod concurrency;
mod dispatch;
mod errors;
mod greeting;
mod hash;
mod header;
mod kv;
mod lease;
mod maintenance;
mod plain;
mod server;
mod turns;
mod validate;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{self, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use errors::status;

use crate::metrics::Metrics;
use crate::proto::etcdserverpb::ResponseHeader;
use crate::store::Store;
use crate::types::Revision;

pub use cluster::{Member, Members};
pub use header::Identity;
pub use server::serve;
pub use validate::Limits;

/// The version of etcd whose API this is, unless another one is set. Kubernetes asks for progress
/// of watches from 3.5.13 on.
pub const ETCD_VERSION: &str = "3.5.21";

/// How the API is served.
#[derive(Clone)]
pub struct ApiConfig {
    /// The version of etcd that clients are told.
    pub version: String,
    /// The numbers in every response's header.
    pub identity: Identity,
    /// The proxies that clients may go to.
    pub members: Arc<dyn Members>,
    /// What is refused for its size.
    pub limits: Limits,
    /// How long a client may take to say which protocol it speaks.
    pub greeting_within: Duration,
    /// How often idle watches that asked for it are told how far they are.
    pub progress_interval: Duration,
    /// How often the store is looked at, and how long it may say nothing before it counts as away: the health
    /// service tells so, and streams that require a leader end.
    pub silence: Duration,
    /// How long requests that are under way may take when the server is shut down.
    pub shutdown_grace: Duration,
}

impl ApiConfig {
    /// etcd's settings, for a proxy of this identity.
    #[must_use]
    pub fn new(identity: Identity, members: Arc<dyn Members>) -> Self {
        Self {
            version: ETCD_VERSION.to_owned(),
            identity,
            members,
            limits: Limits::default(),
            greeting_within: Duration::from_secs(30),
            progress_interval: Duration::from_mins(10),
            silence: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// What all services share.
struct Context {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    version: String,
    identity: Identity,
    members: Arc<dyn Members>,
    limits: Limits,
    progress_interval: Duration,
    /// See [`ApiConfig::silence`].
    silence: Duration,
    /// Whether the store has been silent for so long that whoever needs a leader has to look elsewhere.
    no_leader: sync::watch::Sender<bool>,
    /// Streams end when it is cancelled.
    shutdown: CancellationToken,
    /// Hashing reads everything: one at a time is enough.
    hashing: Semaphore,
}

impl Context {
    fn new(config: ApiConfig, store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            metrics,
            version: config.version,
            identity: config.identity,
            members: config.members,
            limits: config.limits,
            progress_interval: config.progress_interval,
            silence: config.silence,
            no_leader: sync::watch::Sender::new(false),
            shutdown: CancellationToken::new(),
            hashing: Semaphore::new(1),
        }
    }

    #[allow(
        clippy::unnecessary_wraps,
        reason = "headers are optional in all messages"
    )]
    fn header(&self, revision: Revision) -> Option<ResponseHeader> {
        Some(self.identity.header(revision))
    }

    /// A header with the revision that the store is at.
    async fn current_header(&self) -> Result<Option<ResponseHeader>, Status> {
        let stands = self.store.status().await;
        let stands = stands.map_err(|error| status(&error))?;
        Ok(self.header(stands.revision))
    }

    /// Whether there is a proxy of this number.
    fn has_member(&self, id: u64) -> bool {
        self.members.members().iter().any(|member| member.id == id)
    }

    /// The largest message on the wire. As in etcd, what is a little too large for the store still
    /// comes through, to be refused in the store's words rather than in those of the protocol.
    fn message_bytes(&self) -> usize {
        const OVERHEAD_BYTES: usize = 512 * 1024;
        self.limits.request_bytes.saturating_add(OVERHEAD_BYTES)
    }
}
