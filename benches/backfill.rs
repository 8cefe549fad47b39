//! How fast the backfill copies everything, next to a raw bulk load of the same data into the same
//! kind of store.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded anyway")]

mod support;

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use support::args::Args;
use support::client;
use support::report::{Report, Target as Wish};
use support::rounds::{Series, take_turns};
use support::segue::Segue;
use support::servers::Etcd;
use support::servers::v2::V2;

/// The backfill is to reach so much of the raw speed.
const WISH: Wish = Wish::AtLeast(0.5);
/// Rows per transaction of the raw load into `SQLite`: more bring nothing.
const ROWS_PER_COMMIT: usize = 1000;

/// Seconds that something takes that is done anew each time.
type Timed<'a> = Box<dyn Fn() -> LocalBoxFuture<'a, f64> + 'a>;

#[tokio::main]
async fn main() {
    let args = Args::read();
    let mut report = Report::new("backfill");
    let count = args.scale(100_000, 5_000);
    let keys = client::keys("bench/", count);

    if args.wants("etcd v3 -> SQLite") || args.wants("etcd v3 -> etcd v3") {
        let old = Etcd::start().await;
        client::bulk_load(&client::connect(&old.address()).await, &keys).await;
        let url = old.url();
        if args.wants("etcd v3 -> SQLite") {
            into_sqlite(&args, &mut report, "etcd v3 -> SQLite", &url, &keys).await;
        }
        if args.wants("etcd v3 -> etcd v3") {
            into_etcd(&args, &mut report, "etcd v3 -> etcd v3", &url, &keys).await;
        }
    }
    if args.wants("SQLite -> etcd v3") {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let url = format!("sqlite:{}", dir.path().join("old.db").display());
        {
            let filler = Segue::serve(&["--new", &url]).await;
            client::bulk_load(&client::connect(&filler.address()).await, &keys).await;
        }
        into_etcd(&args, &mut report, "SQLite -> etcd v3", &url, &keys).await;
    }
    if args.wants("etcd v2 -> etcd v3") {
        // A v2 store is a tree: a hundred keys in each directory.
        let count = args.scale(20_000, 2_000);
        let old = Etcd::start_v2().await;
        let names: Vec<String> = (0..count)
            .map(|number| format!("/bench/{:05}/{:049}", number / 100, number))
            .collect();
        let value = |number: usize| format!("{number:0width$}", width = client::VALUE_BYTES);
        V2::of(&old)
            .fill(
                names
                    .iter()
                    .enumerate()
                    .map(|(number, name)| (name.clone(), value(number))),
            )
            .await;
        let keys: Vec<Bytes> = names.into_iter().map(Bytes::from).collect();
        into_etcd(
            &args,
            &mut report,
            "etcd v2 -> etcd v3",
            &old.v2_url(),
            &keys,
        )
        .await;
    }
    report.finish(&args);
}

/// Into an empty etcd, against 128 puts per transaction and 4 transactions in flight.
async fn into_etcd(args: &Args, report: &mut Report, what: &str, old: &str, keys: &[Bytes]) {
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
            let new = Etcd::start().await;
            backfill(old, &new.url()).await
        }
        .boxed_local()
    };
    compare(
        args,
        report,
        what,
        keys.len(),
        Box::new(raw),
        Box::new(backfill),
    )
    .await;
}

/// Into an empty `SQLite` file, against prepared inserts into an equal table, as durable.
async fn into_sqlite(args: &Args, report: &mut Report, what: &str, old: &str, keys: &[Bytes]) {
    let raw = || {
        async {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            bulk_load_sqlite(&dir.path().join("raw.db"), keys)
        }
        .boxed_local()
    };
    let backfill = || {
        async {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            let url = format!("sqlite:{}", dir.path().join("new.db").display());
            backfill(old, &url).await
        }
        .boxed_local()
    };
    compare(
        args,
        report,
        what,
        keys.len(),
        Box::new(raw),
        Box::new(backfill),
    )
    .await;
}

async fn compare<'a>(
    args: &Args,
    report: &mut Report,
    what: &str,
    count: usize,
    raw: Timed<'a>,
    backfill: Timed<'a>,
) {
    // Each takes seconds: fewer rounds than a load that is measured for a second or two.
    let rounds = args.rounds().min(3);
    let targets = [raw, backfill];
    let seconds = take_turns(rounds, &targets, async |_, timed| timed().await).await;
    let series = |name: &str, seconds: &[f64]| Series {
        name: name.to_owned(),
        figures: seconds
            .iter()
            .map(|seconds| count as f64 / seconds)
            .collect(),
    };
    let raw = series("raw bulk load", &seconds[0]);
    let ours = series("backfill", &seconds[1]);
    let note = format!("{count} keys");
    report.compare(what, "keys/s", &ours, &raw, Some(WISH), note);
}

/// Seconds from the start of the proxy until everything is copied.
async fn backfill(old: &str, new: &str) -> f64 {
    let start = Instant::now();
    let segue = Segue::serve(&["--old", old, "--new", new, "--no-auto-verify"]).await;
    segue.until_copied().await;
    start.elapsed().as_secs_f64()
}

/// Seconds that the rows of `keys` take into a table like that of a store.
fn bulk_load_sqlite(path: &Path, keys: &[Bytes]) -> f64 {
    let mut connection = rusqlite::Connection::open(path).expect("a file");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE kv (
               key BLOB NOT NULL PRIMARY KEY, create_revision INTEGER NOT NULL,
               mod_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL,
               live INTEGER NOT NULL, logged INTEGER NOT NULL, value BLOB);
             CREATE INDEX kv_lease ON kv (lease) WHERE lease <> 0;
             CREATE INDEX kv_whiteout ON kv (key) WHERE live = 0;",
        )
        .expect("a table");
    let start = Instant::now();
    for (chunk, keys) in keys.chunks(ROWS_PER_COMMIT).enumerate() {
        let transaction = connection.transaction().expect("a transaction");
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO kv VALUES (?1, ?3, ?3, 1, 0, 1, 0, ?2)")
                .expect("a statement");
            for (index, key) in keys.iter().enumerate() {
                let number = chunk * ROWS_PER_COMMIT + index;
                let value = client::value(number);
                let number = i64::try_from(number).expect("a small number");
                insert
                    .execute((&key[..], &value[..], number))
                    .expect("a row goes in");
            }
        }
        transaction.commit().expect("a commit");
    }
    start.elapsed().as_secs_f64()
}
