//! What is counted and measured, for Prometheus to collect from any of the HTTP listeners.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

/// How the rendered text is labelled.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Looks up what a collector cannot: collectors do not wait for anything.
pub struct Lookup(Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>);

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup")
    }
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    /// What is looked up before each rendering.
    lookup: OnceLock<Lookup>,
    /// Requests over gRPC.
    pub grpc: Grpc,
    /// Watches that are open.
    pub watches: Gauge,
    /// Events sent to watchers.
    pub watch_events: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let (watches, watch_events) = (Gauge::default(), Counter::default());
        registry.register("segue_watches", "Watches that are open", watches.clone());
        registry.register(
            "segue_watch_events",
            "Events sent to watchers",
            watch_events.clone(),
        );
        Self {
            grpc: Grpc::new(&mut registry),
            registry: Mutex::new(registry),
            lookup: OnceLock::new(),
            watches,
            watch_events,
        }
    }
}

impl Metrics {
    /// Lets another part of the program add metrics of its own.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Has `lookup` done before each rendering, for a collector to tell what it finds. Only the first one
    /// counts.
    pub fn look_up(&self, lookup: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) {
        let _ = self.lookup.set(Lookup(Box::new(lookup)));
    }

    /// Everything as text, in the format that [`CONTENT_TYPE`] names.
    ///
    /// # Errors
    /// None that a working collector would give.
    pub async fn render(&self) -> Result<String, fmt::Error> {
        if let Some(Lookup(lookup)) = self.lookup.get() {
            lookup().await;
        }
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rendered = String::new();
        text::encode(&mut rendered, &registry)?;
        Ok(rendered)
    }
}

/// Who sends how many messages in a call; the names are those that gRPC servers use in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStream,
    /// Many of both.
    BidiStream,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(
    clippy::struct_field_names,
    reason = "the labels are called as in etcd"
)]
struct MethodLabels {
    grpc_method: &'static str,
    grpc_service: &'static str,
    grpc_type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(
    clippy::struct_field_names,
    reason = "the labels are called as in etcd"
)]
struct CodeLabels {
    grpc_code: &'static str,
    grpc_method: &'static str,
    grpc_service: &'static str,
    grpc_type: &'static str,
}

/// Requests over gRPC, under the names that etcd has for them.
#[derive(Debug)]
pub struct Grpc {
    started: Family<MethodLabels, Counter>,
    handled: Family<CodeLabels, Counter>,
    seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
}

impl Grpc {
    fn new(registry: &mut Registry) -> Self {
        // 50 µs to 6.5 s in steps of two and a quarter: from a read in memory to a store in trouble.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(5e-5, 2.25, 15));
        let this = Self {
            started: Family::default(),
            handled: Family::default(),
            seconds: Family::new_with_constructor(seconds),
        };
        registry.register(
            "grpc_server_started",
            "RPCs started on the server",
            this.started.clone(),
        );
        registry.register(
            "grpc_server_handled",
            "RPCs completed on the server, regardless of success or failure",
            this.handled.clone(),
        );
        registry.register_with_unit(
            "grpc_server_handling",
            "Time until unary RPCs were answered",
            Unit::Seconds,
            this.seconds.clone(),
        );
        this
    }

    /// The metrics of one method, found once and kept: nothing is looked up for a request.
    #[must_use]
    pub fn method(&self, service: &'static str, method: &'static str, kind: Kind) -> Method {
        let labels = MethodLabels {
            grpc_method: method,
            grpc_service: service,
            grpc_type: kind.name(),
        };
        Method {
            started: self.started.get_or_create_owned(&labels),
            handled: std::array::from_fn(|_| OnceLock::new()),
            family: self.handled.clone(),
            seconds: (kind == Kind::Unary).then(|| self.seconds.get_or_create_owned(&labels)),
            labels,
            kind,
        }
    }
}

/// The metrics of one gRPC method.
#[derive(Debug)]
pub struct Method {
    labels: MethodLabels,
    started: Counter,
    /// One per code, made when it first occurs.
    handled: [OnceLock<Counter>; CODES],
    family: Family<CodeLabels, Counter>,
    seconds: Option<Histogram>,
    /// How the method is called.
    pub kind: Kind,
}

/// gRPC has codes 0 to 16.
const CODES: usize = 17;

impl Method {
    /// A call has begun.
    pub fn started(&self) {
        self.started.inc();
    }

    /// A call has ended with `code`, `after` so long.
    pub fn handled(&self, code: Code, after: Duration) {
        let index = usize::try_from(code as i32).unwrap_or(0) % CODES;
        self.handled[index]
            .get_or_init(|| {
                self.family.get_or_create_owned(&CodeLabels {
                    grpc_code: name(code),
                    grpc_method: self.labels.grpc_method,
                    grpc_service: self.labels.grpc_service,
                    grpc_type: self.labels.grpc_type,
                })
            })
            .inc();
        if let Some(seconds) = &self.seconds {
            seconds.observe(after.as_secs_f64());
        }
    }
}

/// The code's name in the spelling that gRPC servers use in metrics.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// What the operating system knows of this process, where it can be asked.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        if let Some(bytes) = resident_bytes() {
            let gauge = ConstGauge::new(bytes);
            let metric = encoder.encode_descriptor(
                "process_resident_memory",
                "Resident memory size in bytes",
                Some(&Unit::Bytes),
                prometheus_client::metrics::MetricType::Gauge,
            )?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

/// Memory that the process takes up.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_counted_under_the_names_that_etcd_has_for_them() {
        let metrics = Metrics::default();
        let put = metrics.grpc.method("etcdserverpb.KV", "Put", Kind::Unary);
        put.started();
        put.handled(Code::Ok, Duration::from_millis(1));
        let text = metrics.render().await.unwrap();
        let line = r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#;
        assert!(text.contains(line), "{text}");
        assert!(
            text.contains("grpc_server_handling_seconds_bucket"),
            "{text}"
        );
        #[cfg(target_os = "linux")]
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }
}
