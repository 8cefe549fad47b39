//! etcd's API on a `SQLite` file with every commit flushed, next to a single-node etcd on the same disk.

mod support;

use std::sync::Arc;

use support::args::Args;
use support::client;
use support::load::{self, Op, Workload};
use support::report::{Report, Target as Wish};
use support::rounds::take_turns;
use support::segue::Segue;
use support::servers::Etcd;

/// In flight, Segue is to be no slower than etcd at putting.
const JUDGED_AT: usize = 128;

#[tokio::main]
async fn main() {
    let args = Args::read();
    let mut report = Report::new("sqlite");
    let read = client::keys("bench/read/", args.scale(20_000, 2_000));
    let written = client::keys("bench/written/", args.scale(200_000, 20_000));

    let etcd = Etcd::start().await;
    let etcd_channel = client::connect(&etcd.address()).await;
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let url = format!("sqlite:{}", dir.path().join("new.db").display());
    let segue = Segue::serve(&["--new", &url]).await;
    let segue_channel = client::connect(&segue.address()).await;
    for channel in [&etcd_channel, &segue_channel] {
        client::bulk_load(channel, &read).await;
        client::bulk_load(channel, &written).await;
    }

    for op in [Op::Put, Op::Get] {
        if !args.wants(&op.to_string()) {
            continue;
        }
        for &in_flight in &args.in_flight {
            let targets = [
                ("etcd", load::connect(&etcd.address(), in_flight).await),
                (
                    "segue on SQLite",
                    load::connect(&segue.address(), in_flight).await,
                ),
            ];
            let workload = Workload {
                op,
                in_flight,
                keys: Arc::new(if op == Op::Get {
                    read.clone()
                } else {
                    written.clone()
                }),
            };
            let samples = take_turns(args.rounds(), &targets, async |_, (_, channels)| {
                client::settle(&etcd_channel).await;
                load::run(channels, &workload, args.round()).await
            })
            .await;
            let series: Vec<_> = targets
                .iter()
                .zip(&samples)
                .map(|((name, _), samples)| load::series(name, samples))
                .collect();
            let wish = (op == Op::Put && in_flight == JUDGED_AT).then_some(Wish::AtLeast(1.0));
            let what = format!("{op}, {in_flight} in flight");
            let note = load::latencies(&samples[1]);
            report.compare(what, "ops/s", &series[1], &series[0], wish, note);
        }
    }
    report.finish(&args);
}
