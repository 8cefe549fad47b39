//! What clients notice of a migration, and what it costs: for every pair of stores that has a way back,
//! the longest request of each of sixteen clients while the migration is started, switched and rolled
//! back, how far the mirror falls behind under full load, and memory; and what the guards cost in the
//! normal phase, beside the same store without a migration.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded anyway")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::sleep;

use support::args::Args;
use support::database::{self, Server};
use support::load::{self, Op, Workload};
use support::report::{Report, Target as Wish};
use support::rounds::{Series, take_turns};
use support::segue::Segue;
use support::servers::Etcd;
use support::waits::{Clients, failed, longest_ms};
use support::{client, usage};

/// Clients at work while the phase changes.
const CLIENTS: usize = 16;
/// Of the longest request of each of them at a change of the phase.
const STALL_MS: Wish = Wish::AtMost(100.0);
/// Of the throughput of the same store without a migration.
const GUARDED: Wish = Wish::AtLeast(0.80);
/// Long enough to notice what comes behind a change of the phase.
const AFTERWARDS: Duration = Duration::from_millis(300);
/// Changes that a mirror is behind when it keeps up.
const CLOSE: u64 = 100;
/// Between two looks at the mirror.
const INTERVAL: Duration = Duration::from_millis(50);
/// Requests in flight while the mirror is looked at.
const FULL_LOAD: usize = 128;

/// A kind of store that can be on either side.
#[derive(Clone, Copy)]
enum Kind {
    Etcd,
    Sql(database::Kind),
}

const KINDS: [Kind; 4] = [
    Kind::Etcd,
    Kind::Sql(database::Kind::Sqlite),
    Kind::Sql(database::Kind::Postgres),
    Kind::Sql(database::Kind::MariaDb),
];

impl Kind {
    fn name(self) -> String {
        match self {
            Self::Etcd => "etcd".into(),
            Self::Sql(kind) => kind.to_string(),
        }
    }

    async fn start(self) -> Home {
        match self {
            Self::Etcd => {
                let etcd = Etcd::start().await;
                Home {
                    url: etcd.url(),
                    _server: Running::Etcd(etcd),
                }
            }
            Self::Sql(kind) => {
                let server = Server::start(kind).await;
                let url = server.database().await.segue();
                Home {
                    url,
                    _server: Running::Sql(server),
                }
            }
        }
    }
}

/// An empty store, for as long as this.
struct Home {
    url: String,
    _server: Running,
}

#[expect(dead_code, reason = "held so that they run")]
enum Running {
    Etcd(Etcd),
    Sql(Server),
}

#[tokio::main]
async fn main() {
    let args = Args::read();
    let mut report = Report::new("migration");
    for old in KINDS {
        for new in KINDS {
            let pair = format!("{} -> {}", old.name(), new.name());
            if args.wants(&pair) {
                migrate(&args, &mut report, &pair, old, new).await;
            }
        }
    }
    for kind in KINDS {
        let name = format!("guards, {}", kind.name());
        if args.wants(&name) {
            guards(&args, &mut report, &name, kind).await;
        }
    }
    report.finish(&args);
}

/// Goes through all phases several times.
async fn migrate(args: &Args, report: &mut Report, pair: &str, old: Kind, new: Kind) {
    let (old, new) = tokio::join!(old.start(), new.start());
    let keys = client::keys("bench/", args.scale(5_000, 500));
    {
        // This also makes the tables of a store that has none yet.
        let filler = Segue::serve(&["--new", &old.url]).await;
        client::bulk_load(&client::connect(&filler.address()).await, &keys).await;
    }
    let stores = ["--old", &old.url, "--new", &new.url];
    let segue = Segue::serve(&[&stores[..], &["--start", "passthrough"]].concat()).await;
    let clients = Clients::start(&segue.address(), CLIENTS, &keys).await;
    let (mut calm, mut starts, mut switches, mut rollbacks) = (vec![], vec![], vec![], vec![]);
    for round in 0..args.rounds().min(5) {
        calm.push(clients.next_stretch());
        sleep(AFTERWARDS * 2).await;
        starts.push(change(&segue, &clients, &["start"]).await);
        segue.until_copied().await;
        segue.command(&["verify"]).await;
        switches.push(change(&segue, &clients, &["switch", "normal", "--wait"]).await);
        // In one round from the normal phase, in the next from the migration phase.
        if round % 2 == 1 {
            switches.push(change(&segue, &clients, &["switch", "migration", "--wait"]).await);
        }
        segue.until_mirrored(CLOSE).await;
        rollbacks.push(change(&segue, &clients, &["rollback"]).await);
    }
    segue.command(&["start"]).await;
    let waits = clients.finish().await;

    let requests: usize = waits.iter().map(|waits| waits.answered).sum();
    let note = format!("of {requests} requests");
    let count = failed(&waits) as f64;
    let wish = Some(Wish::AtMost(0.0));
    report.single(pair, "requests", "failed", count, wish, note);
    let quiet = longest_ms(&waits, &calm);
    for (what, stretches) in [
        ("start", &starts),
        ("switch", &switches),
        ("rollback", &rollbacks),
    ] {
        let longest = longest_ms(&waits, stretches);
        let note = format!(
            "p50 {:.0}, longest {:.0}; without a change p99 {:.0}, longest {:.0}",
            quantile(&longest, 0.5),
            quantile(&longest, 1.0),
            quantile(&quiet, 0.99),
            quantile(&quiet, 1.0)
        );
        let name = format!("{what}, p99 of the longest waits");
        let p99 = quantile(&longest, 0.99);
        report.single(pair, "ms", name, p99, Some(STALL_MS), note);
    }

    segue.until_copied().await;
    segue.command(&["verify"]).await;
    segue.command(&["switch", "normal", "--wait"]).await;
    mirror(args, report, pair, &segue, keys).await;
    report.single(
        pair,
        "MB",
        "memory, peak",
        usage::resident_peak(segue.id()) as f64 / 1e6,
        None,
        "",
    );
}

/// Changes the phase, and answers the stretch of time in which that was.
async fn change(segue: &Segue, clients: &Clients, command: &[&str]) -> usize {
    let stretch = clients.next_stretch();
    segue.command(command).await;
    sleep(AFTERWARDS).await;
    clients.next_stretch();
    stretch
}

/// The value that so much of the sorted ones do not exceed.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len() as f64 - 1.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into what is there"
    )]
    sorted[(last * part).round() as usize]
}

/// How far the mirror falls behind while clients write as much as they can.
async fn mirror(args: &Args, report: &mut Report, pair: &str, segue: &Segue, keys: Vec<Bytes>) {
    let channels = load::connect(&segue.address(), FULL_LOAD).await;
    let workload = Workload {
        op: Op::Put,
        in_flight: FULL_LOAD,
        keys: Arc::new(keys),
        condition: None,
    };
    let duration = args.round() * 3;
    let writing = async {
        let sample = load::run(&channels, &workload, duration).await;
        (sample, Instant::now())
    };
    let looking = async {
        let begun = Instant::now();
        let (mut changes, mut ms) = (0, 0);
        loop {
            let way_back = &segue.status().await["way_back"];
            let number = |field: &str| way_back[field].as_u64().unwrap_or_default();
            changes = number("behind").max(changes);
            ms = number("behind_ms").max(ms);
            if *way_back != Value::Null && number("behind") == 0 && begun.elapsed() > duration {
                return (changes, ms, Instant::now());
            }
            sleep(INTERVAL).await;
        }
    };
    let ((sample, written), (changes, ms, level)) = tokio::join!(writing, looking);
    let note = format!(
        "{changes} changes at {:.0} puts/s; level {} ms behind the last",
        sample.per_second,
        level.saturating_duration_since(written).as_millis()
    );
    report.single(pair, "ms", "mirror, furthest behind", ms as f64, None, note);
}

/// What the conditions of the normal phase cost, without a mirror, which costs what its writes do.
async fn guards(args: &Args, report: &mut Report, name: &str, kind: Kind) {
    let (plain, guarded) = tokio::join!(kind.start(), kind.start());
    let keys = Arc::new(client::keys("bench/", args.scale(20_000, 500)));
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let old = format!("sqlite:{}", dir.path().join("old.db").display());
    drop(Segue::serve(&["--new", &old]).await);
    let plain_proxy = Segue::serve(&["--new", &plain.url]).await;
    let stores = ["--old", &old, "--new", &guarded.url, "--no-mirror"];
    let guarded_proxy = Segue::serve(&stores).await;
    guarded_proxy.until_copied().await;
    guarded_proxy.to_normal().await;
    let proxies = [
        ("without a migration", &plain_proxy),
        ("normal phase", &guarded_proxy),
    ];
    for (_, proxy) in proxies {
        client::bulk_load(&client::connect(&proxy.address()).await, &keys).await;
    }
    for op in [Op::Get, Op::Put] {
        for &in_flight in &args.in_flight {
            let workload = Workload {
                op,
                in_flight,
                keys: keys.clone(),
                condition: None,
            };
            let samples = take_turns(args.rounds(), &proxies, async |_, (_, proxy)| {
                let channels = load::connect(&proxy.address(), in_flight).await;
                load::run(&channels, &workload, args.round()).await
            })
            .await;
            let series: Vec<Series> = proxies
                .iter()
                .zip(&samples)
                .map(|((name, _), samples)| load::series(name, samples))
                .collect();
            let what = format!("{name}, {op}, {in_flight} in flight");
            let note = load::latencies(&samples[1]);
            report.compare(what, "ops/s", &series[1], &series[0], Some(GUARDED), note);
        }
    }
}
