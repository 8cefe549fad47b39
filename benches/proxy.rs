//! What Segue costs in front of etcd: the same load straight at etcd, through etcd's own
//! `grpc-proxy`, and through Segue in each phase.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use tonic::transport::Channel;

use support::args::Args;
use support::client;
use support::grpc_proxy::GrpcProxy;
use support::load::{self, Op, Sample, Workload};
use support::report::{Report, Target as Wish};
use support::rounds::{Series, take_turns};
use support::servers::Etcd;

/// Keys that are read, and never written.
const READ: &str = "bench/read/";
/// Keys that are written.
const WRITTEN: &str = "bench/written/";

/// Something that serves the etcd API, with the etcd behind it that takes the writes.
struct Target {
    name: &'static str,
    address: String,
    etcd: Channel,
}

#[tokio::main]
async fn main() {
    let args = Args::read();
    let mut report = Report::new("proxy");
    let read = client::keys(READ, args.scale(20_000, 2_000));
    let written = client::keys(WRITTEN, args.scale(200_000, 20_000));

    let direct = Etcd::start().await;
    let grpc_proxy = GrpcProxy::start(&direct.address()).await;
    let direct_channel = client::connect(&direct.address()).await;
    client::bulk_load(&direct_channel, &read).await;
    client::bulk_load(&direct_channel, &written).await;

    let targets = vec![
        Target {
            name: "etcd",
            address: direct.address(),
            etcd: direct_channel.clone(),
        },
        Target {
            name: "grpc-proxy",
            address: grpc_proxy.address(),
            etcd: direct_channel.clone(),
        },
    ];
    for op in [Op::Get, Op::Put] {
        if !args.wants(&op.to_string()) {
            continue;
        }
        for &in_flight in &args.in_flight {
            let keys = if op == Op::Get { &read } else { &written };
            measure(&args, &mut report, &targets, op, in_flight, keys).await;
        }
    }
    report.finish(&args);
}

/// One row per target: `op` with so many requests in flight.
async fn measure(
    args: &Args,
    report: &mut Report,
    targets: &[Target],
    op: Op,
    in_flight: usize,
    keys: &[Bytes],
) {
    let keys = Arc::new(keys.to_vec());
    let mut connections = Vec::new();
    for target in targets {
        connections.push((target, load::connect(&target.address, in_flight).await));
    }
    let samples = take_turns(args.rounds(), &connections, async |(target, channels)| {
        client::settle(&target.etcd).await;
        let workload = Workload {
            op,
            in_flight,
            keys: keys.clone(),
        };
        load::run(channels, &workload, args.round()).await
    })
    .await;
    let series: Vec<Series> = targets
        .iter()
        .zip(&samples)
        .map(|(target, samples)| Series {
            name: target.name.to_owned(),
            figures: samples.iter().map(|sample| sample.per_second).collect(),
        })
        .collect();
    let what = format!("{op}, {in_flight} in flight");
    for (index, ours) in series.iter().enumerate() {
        let note = latencies(&samples[index]);
        match index {
            0 => report.single(&what, "ops/s", &ours.name, ours.median(), None, note),
            _ => report.compare(&what, "ops/s", ours, &series[0], None::<Wish>, note),
        }
    }
}

/// `p50 130 µs, p99 400 µs`, the medians over the rounds.
fn latencies(samples: &[Sample]) -> String {
    let middle = |pick: fn(&Sample) -> u64| {
        let mut values: Vec<u64> = samples.iter().map(pick).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    format!(
        "p50 {} µs, p99 {} µs",
        middle(|sample| sample.p50_us),
        middle(|sample| sample.p99_us)
    )
}
