//! The listener and its connections.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::dispatch::Dispatch;
use super::greeting::Greeting;
use super::turns::Turns;
use super::{ApiConfig, Context, plain};
use crate::metrics::Metrics;
use crate::proto::DESCRIPTORS;
use crate::store::Store;
use crate::tasks::spawn_owned;

/// A request of 1.5 MiB is sent without waiting for us. Given out once per stream.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// What one client may have under way in requests that we have not read.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Requests and streams at once on one connection. etcd sets no limit; clients put everything on
/// one connection, and one that waits for a place looks as if it hung.
const STREAMS_MAX: u32 = 1 << 20;
/// Streams that a client gave up before we looked at them. A client with a few hundred requests
/// in flight gives them all up at once when its deadline passes.
const RESET_STREAMS_MAX: usize = 4096;
/// Clients of HTTP/2 that vanished without a word are noticed after this and [`ALIVE_WITHIN`].
const ALIVE_EVERY: Duration = Duration::from_mins(1);
const ALIVE_WITHIN: Duration = Duration::from_secs(20);
/// The system asks after the others, and lets them go after a few of these without an answer. It is
/// what listeners in Go have.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(15));
/// A pause when connections cannot be accepted, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often that is told in the log, at most.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(1);

/// What the health service tells of: the server as a whole, and services.
const HEALTH: [&str; 4] = [
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
];

/// Serves the API on `listener` until `shutdown` resolves; then takes no more connections, ends all
/// streams, lets the requests that are under way finish, and returns when they have or when
/// [`ApiConfig::shutdown_grace`] is over.
///
/// # Errors
/// When the descriptors for reflection cannot be read, which is a fault of the build.
pub async fn serve(
    listener: TcpListener,
    config: ApiConfig,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let (grace, greeting_within) = (config.shutdown_grace, config.greeting_within);
    let context = Arc::new(Context::new(config, store, metrics));
    let (mut reporter, health) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let others = Routes::new(health)
        .add_service(reflection().build_v1().map_err(io::Error::other)?)
        .add_service(reflection().build_v1alpha().map_err(io::Error::other)?);
    let dispatch = Dispatch::new(Arc::clone(&context), others);

    let server = Server::new(dispatch, greeting_within, context.shutdown.clone());
    let _kill = server.kill.clone().drop_guard();
    tokio::select! {
        () = server.accept(&listener) => {}
        () = watch_health(&context, &reporter) => {}
        () = shutdown => {}
    }
    // New connections are refused from here on, rather than accepted and left alone.
    drop(listener);
    context.shutdown.cancel();
    // Whoever watches one waits for as long as it has a status.
    for service in HEALTH {
        reporter.clear_service_status(service).await;
    }
    server.tasks.close();
    if tokio::time::timeout(grace, server.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(?grace, "some requests did not end in time and are cut off");
    }
    Ok(())
}

struct Server {
    builder: Builder<Tracked>,
    dispatch: Dispatch,
    greeting_within: Duration,
    /// Connections, and the requests on them.
    tasks: TaskTracker,
    /// Finish what is under way.
    drain: CancellationToken,
    /// Stop at once.
    kill: CancellationToken,
}

impl Server {
    fn new(dispatch: Dispatch, greeting_within: Duration, drain: CancellationToken) -> Self {
        let tasks = TaskTracker::new();
        let mut builder = Builder::new(Tracked(tasks.clone()));
        builder.http1().timer(TokioTimer::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
            .max_local_error_reset_streams(RESET_STREAMS_MAX)
            .keep_alive_interval(ALIVE_EVERY)
            .keep_alive_timeout(ALIVE_WITHIN);
        Self {
            builder,
            dispatch,
            greeting_within,
            tasks,
            drain,
            kill: CancellationToken::new(),
        }
    }

    /// Takes connections for as long as it is polled.
    async fn accept(&self, listener: &TcpListener) {
        let mut failures = 0_u64;
        let mut told: Option<Instant> = None;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.connection(stream),
                Err(error) => {
                    failures += 1;
                    if told.is_none_or(|told| told.elapsed() >= ACCEPT_TOLD_EVERY) {
                        tracing::warn!(%error, failures, "connections could not be accepted");
                        failures = 0;
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connection(&self, stream: TcpStream) {
        // Small answers are to leave at once. Neither can fail on a connection that is alive.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
        let stream = Turns::new(Greeting::new(stream, self.greeting_within));
        let connection = self
            .builder
            .serve_connection(TokioIo::new(stream), self.dispatch.clone())
            .into_owned();
        let (drain, kill) = (self.drain.clone(), self.kill.clone());
        spawn_owned(self.tasks.track_future(async move {
            let mut connection = pin!(connection);
            tokio::select! {
                ended = &mut connection => return debug_end(ended),
                () = drain.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                ended = connection => debug_end(ended),
                () = kill.cancelled() => {}
            }
        }));
    }
}

/// Connections end as clients like: nothing that an operator has to know.
fn debug_end(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(error, "a connection broke");
    }
}

/// Runs the requests of a connection as tasks that are waited for at the end.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, request: F) {
        spawn_owned(self.0.track_future(request));
    }
}

/// Keeps the health service up to date for as long as it is polled, and tells the streams that require a
/// leader when there is none.
async fn watch_health(context: &Context, reporter: &HealthReporter) {
    let mut ticks = tokio::time::interval(context.silence);
    let mut silent_since = None;
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let answers = plain::store_answers(context).await.is_ok();
        let status = if answers {
            silent_since = None;
            ServingStatus::Serving
        } else {
            silent_since.get_or_insert(asked);
            ServingStatus::NotServing
        };
        let lost = silent_since.is_some_and(|since| since.elapsed() >= context.silence);
        context
            .no_leader
            .send_if_modified(|before| std::mem::replace(before, lost) != lost);
        for service in HEALTH {
            reporter.set_service_status(service, status).await;
        }
    }
}
