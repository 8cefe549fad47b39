//! etcd's API on SQL databases, every commit flushed: next to what the database itself can do with the
//! same rows, next to a single-node etcd on the same disk (SQLite only, since neither needs a server
//! besides), and next to kine on the same databases with the load of Kubernetes.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded anyway")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use support::args::Args;
use support::client;
use support::database::{Database, Kind, Server};
use support::kine::{self, Kine, Pool};
use support::kubernetes::{self, Rates};
use support::kv::Kv;
use support::load::{self, Op, Sample, Workload};
use support::raw::{self, Bulk, Raw, Work};
use support::report::{Report, Target as Wish};
use support::rounds::{Series, take_turns};
use support::segue::Segue;
use support::servers::Etcd;
use support::watch::{self, Lag};

/// What is wished for is wished for under load.
const JUDGED_AT: usize = 128;
/// Of what the database itself can do.
const OF_RAW: Wish = Wish::AtLeast(0.5);
/// Writes, under load, of kine's.
const OF_KINE: Wish = Wish::AtLeast(10.0);
/// Everything else, of kine's or etcd's.
const NO_SLOWER: Wish = Wish::AtLeast(1.0);
/// What [`Args::beside`] names, among who is measured.
const OTHER_BUILD: &str = "the other build";
/// Rows per commit of a batch: what a store can put together at [`JUDGED_AT`], and about where a
/// database gains no more.
const BATCHES: [usize; 2] = [64, 256];
/// Connections that commit single rows: with more a database does no better.
const WRITERS_MAX: usize = 32;
/// No measurement takes as long as this.
const MEASUREMENT_MAX: Duration = Duration::from_mins(3);
/// Rounds next to kine, each of which measures five things.
const KINE_ROUNDS_MAX: usize = 3;

#[tokio::main]
async fn main() {
    let args = Args::read();
    let mut report = Report::new("sql");
    let wanted = |kind: Kind| Topic::ALL.iter().any(|topic| args.wants(&topic.name(kind)));
    let kinds = Kind::ALL.into_iter().filter(|kind| wanted(*kind));
    let mut kine = None;
    for kind in kinds {
        let server = Server::start(kind).await;
        if Topic::REQUESTS
            .iter()
            .any(|topic| args.wants(&topic.name(kind)))
        {
            requests(&args, &mut report, &server, kind).await;
        }
        let peer = [Topic::Watch, Topic::Kine]
            .iter()
            .any(|topic| args.wants(&topic.name(kind)));
        if peer {
            let program = kine.get_or_insert_with(find_kine).as_deref();
            let stores = Stores::start(&server, program).await;
            if args.wants(&Topic::Watch.name(kind)) {
                watches(&args, &mut report, &stores, kind).await;
            }
            if args.wants(&Topic::Kine.name(kind)) {
                beside_kine(&args, &mut report, &stores, kind).await;
            }
        }
    }
    report.finish(&args);
}

/// What is measured on a database, as `--only` names it: `PostgreSQL, put`.
#[derive(Clone, Copy)]
enum Topic {
    Op(Op),
    Watch,
    Kine,
}

impl Topic {
    const REQUESTS: [Self; 3] = [Self::Op(Op::Put), Self::Op(Op::Get), Self::Op(Op::Range)];
    const ALL: [Self; 5] = [
        Self::REQUESTS[0],
        Self::REQUESTS[1],
        Self::REQUESTS[2],
        Self::Watch,
        Self::Kine,
    ];

    fn name(self, kind: Kind) -> String {
        match self {
            Self::Op(op) => format!("{kind}, {op}"),
            Self::Watch => format!("{kind}, watch"),
            Self::Kine => format!("{kind}, kine"),
        }
    }
}

/// Something that is under load in turn with others.
enum Target {
    /// A server that speaks the API.
    Server {
        name: String,
        connections: Vec<Kv>,
        workload: Workload,
    },
    /// The database itself.
    Raw { name: String, raw: Raw },
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Self::Server { name, .. } | Self::Raw { name, .. } => name,
        }
    }

    async fn run(&self, duration: Duration) -> Sample {
        match self {
            Self::Server {
                connections,
                workload,
                ..
            } => load::run(connections, workload, duration).await,
            Self::Raw { raw, .. } => raw.run(duration).await,
        }
    }
}

/// Puts, gets and ranges, next to the database itself and to etcd.
async fn requests(args: &Args, report: &mut Report, server: &Server, kind: Kind) {
    let read = Arc::new(client::keys("bench/read/", args.scale(20_000, 2_000)));
    let written = Arc::new(client::keys("bench/written/", args.scale(200_000, 20_000)));
    let ours = server.database().await;
    let segue = Segue::serve(&["--new", &ours.segue()]).await;
    let other = match &args.beside {
        Some(program) => {
            let database = server.database().await;
            let segue = Segue::serve_with(program, &["--new", &database.segue()]).await;
            Some((segue, database))
        }
        None => None,
    };
    let etcd = if kind == Kind::Sqlite {
        Some(Etcd::start().await)
    } else {
        None
    };
    let mut servers = vec![(format!("segue on {kind}"), segue.address())];
    let others = other.iter();
    servers.extend(others.map(|(segue, _)| (OTHER_BUILD.to_owned(), segue.address())));
    servers.extend(etcd.iter().map(|etcd| ("etcd".into(), etcd.address())));
    let raw = server.database().await;
    raw::prepare(&raw).await;
    for keys in [&read, &written] {
        for (_, address) in &servers {
            client::bulk_load(&client::connect(address).await, keys).await;
        }
        raw::bulk_load(&raw, keys, Bulk::Insert).await;
    }
    let etcd_channel = match &etcd {
        Some(etcd) => Some(client::connect(&etcd.address()).await),
        None => None,
    };
    for op in [Op::Put, Op::Get, Op::Range] {
        if !args.wants(&Topic::Op(op).name(kind)) {
            continue;
        }
        let keys = if op == Op::Put { &written } else { &read };
        for &in_flight in &args.in_flight {
            let mut targets = Vec::new();
            for (name, address) in &servers {
                targets.push(Target::Server {
                    name: name.clone(),
                    connections: load::connect(address, in_flight).await,
                    workload: Workload {
                        condition: None,
                        op,
                        in_flight,
                        keys: keys.clone(),
                    },
                });
            }
            targets.extend(ceilings(&raw, op, in_flight, keys).await);
            let samples = take_turns(args.rounds(), &targets, async |_, target| {
                if let Some(channel) = &etcd_channel {
                    client::settle(channel).await;
                }
                target.run(args.round()).await
            })
            .await;
            let series: Vec<Series> = targets
                .iter()
                .zip(&samples)
                .map(|(target, samples)| load::series(target.name(), samples))
                .collect();
            let what = format!("{}, {in_flight} in flight", Topic::Op(op).name(kind));
            let note = load::latencies(&samples[0]);
            for peer in &series[1..] {
                let wish = (in_flight == JUDGED_AT)
                    .then(|| wish_of(kind, op, &peer.name))
                    .flatten();
                report.compare(&what, "ops/s", &series[0], peer, wish, note.as_str());
            }
        }
    }
}

/// What is wished for against this peer. What SQLite reads within a process is no measure for a
/// server, and several pipelines are more than was asked for.
fn wish_of(kind: Kind, op: Op, peer: &str) -> Option<Wish> {
    match (op, kind) {
        (Op::Put, _) if peer == "etcd" => Some(NO_SLOWER),
        (Op::Put, _) if peer.ends_with("rows per commit") => Some(OF_RAW),
        (Op::Get, Kind::Postgres) if peer == "raw, pipelined" => Some(OF_RAW),
        (Op::Get, Kind::MariaDb) => Some(OF_RAW),
        _ => None,
    }
}

/// The database itself, in each way that is worth a comparison.
async fn ceilings(
    database: &Database,
    op: Op,
    in_flight: usize,
    keys: &Arc<Vec<Bytes>>,
) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut push = |name: String, sessions, work| {
        let raw = Raw::new(sessions, work, keys);
        targets.push(Target::Raw { name, raw });
    };
    if op == Op::Put {
        let count = in_flight.min(WRITERS_MAX);
        let sessions = raw::writers(database, count).await;
        push("raw, single commits".into(), sessions, Work::Write(1));
        for rows in BATCHES.into_iter().filter(|_| in_flight >= JUDGED_AT) {
            let sessions = raw::writers(database, 1).await;
            let name = format!("raw, {rows} rows per commit");
            push(name, sessions, Work::Write(rows));
        }
    } else {
        let work = if op == Op::Get {
            Work::Read
        } else {
            Work::Range
        };
        for connections in raw::read_connections(database.kind(), in_flight) {
            let name = match connections {
                _ if in_flight == 1 => "raw".into(),
                1 => "raw, pipelined".into(),
                _ => format!("raw, {connections} connections"),
            };
            let sessions = raw::readers(database, in_flight, connections).await;
            push(name, sessions, work);
        }
    }
    targets
}

/// kine's program, or word that there is none.
fn find_kine() -> Option<PathBuf> {
    match kine::program() {
        Ok(program) => Some(program),
        Err(why) => {
            println!("  without kine: {why}");
            None
        }
    }
}

/// Two proxies of each kind on a database, as far as it lets them, the first one to write through.
struct Stores {
    segue: Vec<Segue>,
    kine: Vec<(Pool, Vec<Kine>)>,
}

impl Stores {
    async fn start(server: &Server, program: Option<&Path>) -> Self {
        let ours = server.database().await;
        // An SQLite file has one process that works on it.
        let count = if ours.kind() == Kind::Sqlite { 1 } else { 2 };
        let mut segue = Vec::new();
        for _ in 0..count {
            segue.push(Segue::serve(&["--new", &ours.segue()]).await);
        }
        let mut kine = Vec::new();
        if let Some(program) = program {
            for pool in Pool::ALL {
                let theirs = server.database().await;
                let mut proxies = Vec::new();
                for _ in 0..count {
                    proxies.push(Kine::start(program, &theirs.kine(), pool).await);
                }
                kine.push((pool, proxies));
            }
        }
        Self { segue, kine }
    }

    /// Who, and where the proxies are: Segue's first.
    fn addresses(&self) -> Vec<(&'static str, Vec<String>)> {
        let segue = self.segue.iter().map(Segue::address).collect();
        let kine = self.kine.iter().map(|(pool, proxies)| {
            let addresses = proxies.iter().map(Kine::address).collect();
            (pool.name(), addresses)
        });
        std::iter::once(("segue", segue)).chain(kine).collect()
    }
}

/// What is measured, unless a server hangs.
async fn in_time<T>(measurement: impl Future<Output = T>) -> T {
    tokio::time::timeout(MEASUREMENT_MAX, measurement)
        .await
        .expect("requests are answered")
}

/// How soon watchers know of a write.
async fn watches(args: &Args, report: &mut Report, stores: &Stores, kind: Kind) {
    for &in_flight in &args.in_flight {
        let mut targets = Vec::new();
        for (name, addresses) in stores.addresses() {
            let mut watchers = Vec::new();
            for address in &addresses {
                watchers.push(client::connect(address).await);
            }
            let writers = load::connect(&addresses[0], in_flight).await;
            targets.push((name, writers, watchers));
        }
        let samples = take_turns(
            args.rounds(),
            &targets,
            async |_, (_, writers, watchers)| {
                watch::run(writers, watchers, in_flight, args.round()).await
            },
        )
        .await;
        for (through, path) in ["the same proxy", "a second proxy"].iter().enumerate() {
            if stores.segue.len() <= through {
                continue;
            }
            // kine may answer after the event, so that only what begins with the request can be
            // judged.
            for (part, pick, wish) in [
                (
                    "commit to event, p50",
                    (|lag| lag.p50_us) as fn(&Lag) -> u64,
                    None,
                ),
                ("commit to event, p99", |lag| lag.p99_us, None),
                (
                    "request to event, p50",
                    |lag| lag.since_sent_p50_us,
                    Some(Wish::AtMost(1.0)),
                ),
                (
                    "request to event, p99",
                    |lag| lag.since_sent_p99_us,
                    Some(Wish::AtMost(1.0)),
                ),
            ] {
                let series: Vec<Series> = targets
                    .iter()
                    .zip(&samples)
                    .map(|((name, ..), rounds)| Series {
                        name: (*name).to_owned(),
                        figures: rounds
                            .iter()
                            .map(|lags| pick(&lags[through]) as f64)
                            .collect(),
                    })
                    .collect();
                let topic = Topic::Watch.name(kind);
                let what = format!("{topic} through {path}, {in_flight} in flight, {part}");
                let events: u64 = samples[0].iter().map(|lags| lags[through].events).sum();
                let note = format!("{events} events, each seen once and in order");
                let (ours, peers) = series.split_first().expect("Segue is there");
                report.compare_each(&what, "µs", ours, peers, wish, &note);
                if peers.is_empty() {
                    report.single(what, "µs", &ours.name, ours.median(), None, note);
                }
            }
        }
    }
}

/// The load of Kubernetes, on Segue and on kine.
async fn beside_kine(args: &Args, report: &mut Report, stores: &Stores, kind: Kind) {
    static CYCLES: AtomicUsize = AtomicUsize::new(0);
    if stores.kine.is_empty() {
        return;
    }
    for &in_flight in &args.in_flight {
        let mut targets = Vec::new();
        for (name, addresses) in stores.addresses() {
            targets.push((name, load::connect(&addresses[0], in_flight).await));
        }
        let rounds = args.rounds().min(KINE_ROUNDS_MAX);
        let rates = take_turns(rounds, &targets, async |_, (_, connections)| {
            let cycle = CYCLES.fetch_add(1, Ordering::Relaxed);
            in_time(kubernetes::cycle(
                connections,
                in_flight,
                cycle,
                args.round(),
            ))
            .await
        })
        .await;
        for (request, pick) in [
            ("writes", (|rates| rates.write) as fn(&Rates) -> f64),
            ("creates", |rates| rates.create),
            ("updates", |rates| rates.update),
            ("deletes", |rates| rates.delete),
            ("gets", |rates| rates.get),
            ("100-key lists", |rates| rates.list),
        ] {
            let series = |target: usize| Series {
                name: targets[target].0.to_owned(),
                figures: rates[target].iter().map(pick).collect(),
            };
            let wish = if request == "writes" && in_flight == JUDGED_AT {
                OF_KINE
            } else {
                NO_SLOWER
            };
            let topic = Topic::Kine.name(kind);
            let what = format!("{topic} beside it, {request}, {in_flight} in flight");
            let note = "every write read back";
            let peers: Vec<Series> = (1..targets.len()).map(series).collect();
            report.compare_each(&what, "ops/s", &series(0), &peers, Some(wish), note);
        }
    }
}
