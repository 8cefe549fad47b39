//! How fast the backfill copies everything, next to a raw bulk load of the same data into the same
//! kind of store.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded anyway")]

mod support;

use std::any::Any;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use support::args::Args;
use support::client;
use support::database::{Kind, Server};
use support::raw;
use support::report::{Report, Target as Wish};
use support::rounds::{Series, take_turns};
use support::segue::Segue;
use support::servers::Etcd;
use support::servers::v2::V2;

/// The backfill is to reach so much of the raw speed.
const WISH: Wish = Wish::AtLeast(0.5);

/// Seconds that something takes that is done anew each time.
type Timed<'a> = Box<dyn Fn() -> LocalBoxFuture<'a, f64> + 'a>;

#[tokio::main]
async fn main() {
    let args = Args::read();
    let mut report = Report::new("backfill");
    let count = args.scale(400_000, 5_000);
    let keys = client::keys("bench/", count);

    for kind in Kind::ALL {
        let what = format!("etcd v3 -> {kind}");
        if args.wants(&what) {
            into_sql(&args, &mut report, &what, kind, &keys).await;
        }
    }
    if args.wants("etcd v3 -> etcd v3") {
        let old = || filled_etcd(&keys).boxed_local();
        into_etcd(&args, &mut report, "etcd v3 -> etcd v3", &old, &keys).await;
    }
    if args.wants("SQLite -> etcd v3") {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let filled = dir.path().join("filled.db");
        {
            let segue = Segue::serve(&["--new", &format!("sqlite:{}", filled.display())]).await;
            client::bulk_load(&client::connect(&segue.address()).await, &keys).await;
            // Else part of it may be in the write-ahead log, which is not copied.
            segue.stop();
        }
        let old = || filled_sqlite(&filled).boxed_local();
        into_etcd(&args, &mut report, "SQLite -> etcd v3", &old, &keys).await;
    }
    if args.wants("etcd v2 -> etcd v3") {
        // A v2 store is a tree: a hundred keys in each directory.
        let count = args.scale(20_000, 2_000);
        let names: Vec<String> = (0..count)
            .map(|number| format!("/bench/{:05}/{:049}", number / 100, number))
            .collect();
        let keys: Vec<Bytes> = names.iter().cloned().map(Bytes::from).collect();
        let old = || filled_etcd2(&names).boxed_local();
        into_etcd(&args, &mut report, "etcd v2 -> etcd v3", &old, &keys).await;
    }
    report.finish(&args);
}

/// An old store with all keys. A migration fences it, so that each has one of its own.
struct Old {
    url: String,
    /// What it is in, which ends with it.
    _held: Box<dyn Any>,
}

/// Makes an old store.
type Fill<'a> = dyn Fn() -> LocalBoxFuture<'a, Old> + 'a;

async fn filled_etcd(keys: &[Bytes]) -> Old {
    let etcd = Etcd::start().await;
    client::bulk_load(&client::connect(&etcd.address()).await, keys).await;
    Old {
        url: etcd.url(),
        _held: Box::new(etcd),
    }
}

/// Copies a database that nobody has open.
async fn filled_sqlite(filled: &Path) -> Old {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let path = dir.path().join("old.db");
    tokio::fs::copy(filled, &path).await.expect("a copy");
    Old {
        url: format!("sqlite:{}", path.display()),
        _held: Box::new(dir),
    }
}

async fn filled_etcd2(names: &[String]) -> Old {
    let etcd = Etcd::start_v2().await;
    let value = |number: usize| format!("{number:0width$}", width = client::VALUE_BYTES);
    let pairs = names.iter().enumerate();
    let pairs = pairs.map(|(number, name)| (name.clone(), value(number)));
    V2::of(&etcd).fill(pairs).await;
    Old {
        url: etcd.v2_url(),
        _held: Box::new(etcd),
    }
}

/// Into an empty etcd, against 128 puts per transaction and 4 transactions in flight.
async fn into_etcd(args: &Args, report: &mut Report, what: &str, old: &Fill<'_>, keys: &[Bytes]) {
    let raw = || {
        async {
            let new = Etcd::start().await;
            let channel = client::connect(&new.address()).await;
            let start = Instant::now();
            client::bulk_load(&channel, keys).await;
            start.elapsed().as_secs_f64()
        }
        .boxed_local()
    };
    let backfill = || {
        async {
            let (old, new) = (old().await, Etcd::start().await);
            backfill(&old.url, &new.url()).await
        }
        .boxed_local()
    };
    let raws = vec![("raw bulk load".to_owned(), Box::new(raw) as Timed)];
    compare(args, report, what, keys.len(), Box::new(backfill), raws).await;
}

/// Into an empty database, against a bulk load into equal tables, as durable, in each way that the
/// database has.
async fn into_sql(args: &Args, report: &mut Report, what: &str, kind: Kind, keys: &[Bytes]) {
    let server = Server::start(kind).await;
    let server = &server;
    let load = |bulk| {
        let raw = move || {
            async move {
                let database = server.database().await;
                raw::prepare(&database).await;
                raw::bulk_load(&database, keys, bulk).await
            }
            .boxed_local()
        };
        (bulk.to_string(), Box::new(raw) as Timed)
    };
    let backfill = || {
        async {
            let (old, database) = (filled_etcd(keys).await, server.database().await);
            backfill(&old.url, &database.segue()).await
        }
        .boxed_local()
    };
    let raws = raw::bulks(kind).iter().copied().map(load).collect();
    compare(args, report, what, keys.len(), Box::new(backfill), raws).await;
}

async fn compare<'a>(
    args: &Args,
    report: &mut Report,
    what: &str,
    count: usize,
    backfill: Timed<'a>,
    raws: Vec<(String, Timed<'a>)>,
) {
    // Each takes seconds: fewer rounds than a load that is measured for a second or two.
    let rounds = args.rounds().min(3);
    let mut targets = vec![("backfill".to_owned(), backfill)];
    targets.extend(raws);
    let seconds = take_turns(rounds, &targets, async |_, (_, timed)| timed().await).await;
    let series: Vec<Series> = targets
        .iter()
        .zip(&seconds)
        .map(|((name, _), seconds)| Series {
            name: name.clone(),
            figures: seconds
                .iter()
                .map(|seconds| count as f64 / seconds)
                .collect(),
        })
        .collect();
    for raw in &series[1..] {
        let note = format!("{count} keys");
        report.compare(what, "keys/s", &series[0], raw, Some(WISH), note);
    }
}

/// Seconds from the start of the proxy until everything is copied.
async fn backfill(old: &str, new: &str) -> f64 {
    let start = Instant::now();
    let segue = Segue::serve(&["--old", old, "--new", new, "--no-auto-verify"]).await;
    segue.until_copied().await;
    start.elapsed().as_secs_f64()
}
