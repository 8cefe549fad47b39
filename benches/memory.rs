//! Memory of the proxy over a migration of a million keys, with clients at work on it.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded anyway")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::args::Args;
use support::load::{self, Op, Workload};
use support::report::{Report, Target as Wish};
use support::segue::Segue;
use support::servers::Etcd;
use support::{client, usage};

/// Bytes in a megabyte, as operators count.
const MB: f64 = 1e6;
/// The most that the proxy may hold.
const PEAK_MB: f64 = 200.0;
/// The most that it may grow from the second quarter of the migration to the last one. What
/// allocators keep moves by about so much.
const GROWTH_MB: f64 = 10.0;
/// Between two looks at the memory.
const INTERVAL: Duration = Duration::from_millis(100);
/// Requests of each kind that clients keep in flight meanwhile.
const IN_FLIGHT: usize = 4;

#[tokio::main]
async fn main() {
    let args = Args::read();
    let mut report = Report::new("memory");
    let count = args.scale(1_000_000, 20_000);
    let keys = Arc::new(client::keys("bench/", count));

    if args.wants("sqlite") {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let url = format!("sqlite:{}", dir.path().join("new.db").display());
        migrate(&mut report, "etcd -> SQLite", &url, &keys).await;
    }
    if args.wants("etcd") {
        let new = roomy_etcd().await;
        migrate(&mut report, "etcd -> etcd", &new.url(), &keys).await;
    }
    report.finish(&args);
}

/// An etcd that takes a million keys.
async fn roomy_etcd() -> Etcd {
    Etcd::with()
        .args(["--quota-backend-bytes", "8589934592"])
        .start()
        .await
}

/// Moves the keys from an etcd of their own, which is fenced from then on.
async fn migrate(report: &mut Report, what: &str, new: &str, keys: &Arc<Vec<bytes::Bytes>>) {
    let old = roomy_etcd().await;
    client::bulk_load(&client::connect(&old.address()).await, keys).await;
    let start = Instant::now();
    let segue = Arc::new(Segue::serve(&["--old", &old.url(), "--new", new]).await);
    let copied = Arc::new(AtomicBool::new(false));
    let clients = [Op::Get, Op::Put].map(|op| {
        let (segue, copied, keys) = (segue.clone(), copied.clone(), keys.clone());
        #[allow(clippy::disallowed_methods, reason = "it is waited for")]
        tokio::task::spawn(async move {
            let channels = load::connect(&segue.address(), IN_FLIGHT).await;
            let workload = Workload {
                condition: None,
                op,
                in_flight: IN_FLIGHT,
                keys,
            };
            let mut operations = 0;
            while !copied.load(Ordering::Relaxed) {
                let slice = Duration::from_millis(500);
                operations += load::run(&channels, &workload, slice).await.operations;
            }
            operations
        })
    });
    let mut resident = Vec::new();
    let look = async {
        while !copied.load(Ordering::Relaxed) {
            resident.push(usage::resident(segue.id()) as f64 / MB);
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let wait = async {
        segue.until_copied().await;
        copied.store(true, Ordering::Relaxed);
    };
    tokio::join!(look, wait);
    let took = start.elapsed();
    let mut operations = 0;
    for client in clients {
        operations += client.await.expect("the clients go on");
    }
    let note = format!(
        "{} keys in {:.1} s, {operations} operations by clients meanwhile",
        keys.len(),
        took.as_secs_f64()
    );
    let peak = usage::resident_peak(segue.id()) as f64 / MB;
    report.single(
        format!("{what}, peak of the backfill"),
        "MB",
        "segue",
        peak,
        Some(Wish::AtMost(PEAK_MB)),
        note,
    );
    let quarter = |number: usize| {
        let len = resident.len();
        let part = &resident[len * number / 4..(len * (number + 1) / 4).max(1)];
        part.iter().sum::<f64>() / part.len() as f64
    };
    report.single(
        format!("{what}, growth"),
        "MB",
        "segue",
        quarter(3) - quarter(1),
        Some(Wish::AtMost(GROWTH_MB)),
        format!(
            "means of the quarters of the time: {:.0}, {:.0}, {:.0}, {:.0} MB",
            quarter(0),
            quarter(1),
            quarter(2),
            quarter(3)
        ),
    );
    segue.to_normal().await;
    segue.command(&["complete"]).await;
    segue.until_phase("settled").await;
    report.single(
        format!("{what}, peak until settled"),
        "MB",
        "segue",
        usage::resident_peak(segue.id()) as f64 / MB,
        Some(Wish::AtMost(PEAK_MB)),
        "verification, switch and removal of the claims included",
    );
}
