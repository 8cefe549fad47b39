//! Requests to the members of the cluster: which member, which account, and what failures mean.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use tokio::time::timeout;

use crate::store::url::{Account, Cluster, Secret};
use crate::store::{RequestError, Result, StoreError};
use crate::types::Revision;

/// A member that does not take a connection in this time is down.
const CONNECT: Duration = Duration::from_secs(3);

/// A member that sends nothing for this time hangs. etcd itself gives up on a quorum after some 5 s
/// and says so.
const SILENCE: Duration = Duration::from_secs(10);

/// Connections kept open to each member: as many as there are requests in flight at most.
const IDLE_CONNECTIONS: usize = 64;

/// A wait for a change is asked anew after this time: a connection may be dead without saying so.
const WAIT: Duration = Duration::from_secs(30);

/// etcd's number for "The event in requested index is outdated and cleared".
const FORGOTTEN: u32 = 401;

/// Idle connections are closed after this time.
const IDLE: Duration = Duration::from_mins(1);

/// etcd's numbers for "Key not found" and, where a file stands in the way, "Not a directory".
const NO_SUCH_NODE: [u32; 2] = [100, 104];

/// A node that nobody has: asking for it is the cheapest way to learn the index.
const NOBODYS_NODE: &str = "/_segue/nobody";

/// The members of one cluster.
pub(super) struct Http {
    client: Client<HttpConnector, Empty<Bytes>>,
    hosts: Vec<String>,
    /// The member that answered last; others are asked only if it fails.
    current: AtomicUsize,
    authorization: Option<HeaderValue>,
    /// What every member has to name as its cluster.
    cluster_id: OnceLock<String>,
}

/// What a member answered to a question that it could answer.
struct Answer {
    /// The node, or nothing if there is none.
    body: Option<Bytes>,
    /// The cluster's index.
    index: Revision,
}

/// What a wait for a change came to.
pub(super) enum Waited {
    /// A change, as the API tells it.
    Event(Bytes),
    /// There was none up to this index.
    Nothing {
        /// The index.
        through: Revision,
    },
    /// What happened up to this index is no longer known.
    Forgotten {
        /// The index.
        through: Revision,
    },
}

/// How the API puts a refusal.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refusal {
    #[serde(default)]
    error_code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
    #[serde(default)]
    index: i64,
}

impl Http {
    /// Finds a member that answers, and checks that it serves the API to this account.
    pub(super) async fn open(cluster: &Cluster) -> Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let http = Self {
            client,
            hosts: cluster.hosts.clone(),
            current: AtomicUsize::new(0),
            authorization: cluster.account.as_ref().map(authorization),
            cluster_id: OnceLock::new(),
        };
        http.index().await?;
        Ok(http)
    }

    /// What the cluster calls itself.
    pub(super) fn cluster_id(&self) -> &str {
        self.cluster_id.get().map_or("", String::as_str)
    }

    /// The cluster's index, agreed on by a quorum.
    pub(super) async fn index(&self) -> Result<Revision> {
        Ok(self.ask(NOBODYS_NODE).await?.index)
    }

    /// What the API answers for the node at `path`, if there is one. For a directory, that is the
    /// directory and its children.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Bytes>> {
        Ok(self.ask(&super::key::encode(path)).await?.body)
    }

    /// Asks the members in turn until one answers.
    async fn ask(&self, path: &str) -> Result<Answer> {
        let first = self.current.load(Ordering::Relaxed);
        let mut complaints = Vec::new();
        for turn in 0..self.hosts.len() {
            let number = (first + turn) % self.hosts.len();
            let host = &self.hosts[number];
            match self.ask_member(host, path).await {
                Err(StoreError::Unavailable(complaint)) => {
                    complaints.push(format!("{host}: {complaint}"));
                }
                outcome => {
                    self.current.store(number, Ordering::Relaxed);
                    return outcome;
                }
            }
        }
        Err(StoreError::Unavailable(format!(
            "the old store (etcd v2) does not answer: {}",
            complaints.join("; ")
        )))
    }

    /// Asks one member. `Unavailable` means that another one may do better.
    async fn ask_member(&self, host: &str, path: &str) -> Result<Answer> {
        // Quorum: without it a member that lags behind answers with its own past.
        let uri = format!("http://{host}/v2/keys{path}?quorum=true&recursive=false");
        let answer = timeout(SILENCE, self.client.request(self.request(&uri)?))
            .await
            .map_err(|_| silent())?
            .map_err(|error| StoreError::Unavailable(causes(&error)))?;
        let (head, mut body) = answer.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(|_| silent())? {
            let frame = frame.map_err(|error| StoreError::Unavailable(causes(&error)))?;
            if let Some(data) = frame.data_ref() {
                bytes.extend_from_slice(data);
            }
        }
        self.judge(host, head.status, &head.headers, bytes.freeze())
    }

    /// What an answer means.
    fn judge(
        &self,
        host: &str,
        status: StatusCode,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer> {
        let refusal = || serde_json::from_slice::<Refusal>(&body).ok();
        let missing = || refusal().is_some_and(|it| NO_SUCH_NODE.contains(&it.error_code));
        let found = match status {
            StatusCode::OK => true,
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST if missing() => false,
            StatusCode::NOT_FOUND => return Err(switched_off(host)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.refused(host, refusal().map(|refusal| refusal.message)));
            }
            _ => {
                let said = refusal().map_or_else(
                    || String::from_utf8_lossy(&body).trim().to_owned(),
                    |refusal| format!("{} {}", refusal.message, refusal.cause),
                );
                return Err(StoreError::Unavailable(format!(
                    "{status}: {}",
                    said.trim()
                )));
            }
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (Some(cluster_id), Some(index)) = (
            header("x-etcd-cluster-id"),
            header("x-etcd-index").and_then(|index| index.parse().ok()),
        ) else {
            return Err(switched_off(host));
        };
        let known = self.cluster_id.get_or_init(|| cluster_id.to_owned());
        if known != cluster_id {
            return Err(StoreError::Broken(format!(
                "the hosts of the etcd2:// URL belong to different clusters: {host} says it is \
                 {cluster_id}, another one said {known}"
            )));
        }
        Ok(Answer {
            body: found.then_some(body),
            index: Revision(index),
        })
    }

    /// Waits for the first change at or behind the index `from`, for some time.
    pub(super) async fn wait(&self, from: Revision) -> Result<Waited> {
        // The member that answered last; if it is gone, ordinary requests find another one.
        let host = &self.hosts[self.current.load(Ordering::Relaxed)];
        let uri = format!("http://{host}/v2/keys/?wait=true&recursive=true&waitIndex={from}");
        let answer = timeout(SILENCE, self.client.request(self.request(&uri)?)).await;
        let Ok(Ok(answer)) = answer else {
            // Finds a member that answers, or says why there is none.
            let through = Revision(from.0 - 1);
            return self.index().await.map(|_| Waited::Nothing { through });
        };
        let (head, mut body) = answer.into_parts();
        let mut bytes = BytesMut::new();
        let whole = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| StoreError::Unavailable(causes(&error)))?;
                if let Some(data) = frame.data_ref() {
                    bytes.extend_from_slice(data);
                }
            }
            Ok::<(), StoreError>(())
        };
        // The head came at once, and says how far the store was when it began to wait.
        let waited = timeout(WAIT, whole).await;
        let ended = waited.is_ok();
        waited.unwrap_or(Ok(()))?;
        if head.status == StatusCode::BAD_REQUEST
            && let Ok(refusal) = serde_json::from_slice::<Refusal>(&bytes)
            && refusal.error_code == FORGOTTEN
        {
            let through = Revision(refusal.index);
            return Ok(Waited::Forgotten { through });
        }
        let bytes = bytes.freeze();
        let answer = self.judge(host, head.status, &head.headers, bytes.clone())?;
        Ok(match answer.body {
            Some(body) if ended && !body.is_empty() => Waited::Event(body),
            // Half an answer is none, and is asked for again.
            _ if !bytes.is_empty() => Waited::Nothing {
                through: Revision(from.0 - 1),
            },
            _ => Waited::Nothing {
                through: answer.index,
            },
        })
    }

    fn request(&self, uri: &str) -> Result<Request<Empty<Bytes>>> {
        let mut request = Request::get(uri);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request
            .body(Empty::new())
            .map_err(|error| StoreError::Broken(format!("{uri} cannot be asked for: {error}")))
    }

    fn refused(&self, host: &str, said: Option<String>) -> StoreError {
        let said = said.unwrap_or_default();
        let advice = if self.authorization.is_some() {
            "check user and password, and that the user may read everything (/*)"
        } else {
            "name a user that may read everything (/*): etcd2://USER:PASSWORD@HOST:PORT"
        };
        RequestError::Credentials(format!("{host} says {said:?}; {advice}")).into()
    }
}

fn authorization(account: &Account) -> HeaderValue {
    let password = account.password.as_ref().map_or("", Secret::expose);
    let encoded = STANDARD.encode(format!("{}:{password}", account.user));
    let mut value = HeaderValue::try_from(format!("Basic {encoded}"))
        .unwrap_or_else(|_| HeaderValue::from_static("Basic"));
    value.set_sensitive(true);
    value
}

fn silent() -> StoreError {
    StoreError::Unavailable(format!("no answer within {SILENCE:?}"))
}

fn switched_off(host: &str) -> StoreError {
    RequestError::Unsupported(format!(
        "{host} does not serve the v2 keys API. If it is etcd 3.4 or 3.5, start it with \
         --enable-v2; etcd 3.6 and later no longer have that API. For data written with the v3 API \
         use etcd://{host}"
    ))
    .into()
}

/// An error with all that caused it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
