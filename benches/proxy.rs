//! What Segue costs in front of etcd: the same load straight at etcd, through etcd's own
//! `grpc-proxy`, and through Segue in the normal phase (with and without a mirror, which does every
//! write again in the old store) and in the migration phase, there above the frontier (the backfill is
//! held back) and below it (everything is copied).

#![allow(clippy::cast_precision_loss, reason = "figures are rounded anyway")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::Channel;

use support::args::Args;
use support::grpc_proxy::GrpcProxy;
use support::load::{self, Op, Workload};
use support::report::{Report, Target as Wish};
use support::rounds::{Series, take_turns};
use support::segue::Segue;
use support::servers::Etcd;
use support::{client, usage};

/// Keys that are read, and never written.
const READ: &str = "bench/read/";
/// Keys that are written.
const WRITTEN: &str = "bench/written/";
/// Keys that come before both: the backfill begins with them.
const FIRST: &str = "bench/first/";
/// How many of them. The backfill works on some parts of a few thousand keys at the same time.
const FIRST_COUNT: usize = 40_000;
/// Arguments that keep the backfill from coming any further while it is measured.
const HELD_BACK: [&str; 2] = ["--rate-keys", "1"];

/// Of direct throughput, in the normal phase.
const NORMAL: Wish = Wish::AtLeast(0.80);
/// Of direct throughput, above the frontier.
const ABOVE: Wish = Wish::AtLeast(0.50);
/// Of the throughput in the normal phase, below the frontier: the same but for noise.
const BELOW: Wish = Wish::AtLeast(0.95);

/// Something that serves the etcd API.
struct Target {
    name: &'static str,
    address: String,
    /// The etcd behind it that takes the writes.
    etcd: Channel,
    /// Puts have the condition that this key exists.
    condition: Option<Bytes>,
    /// Every process that works for it.
    processes: Vec<u32>,
}

/// Segue between two etcds in one phase.
struct Phase {
    segue: Segue,
    old: Etcd,
    new: Etcd,
}

impl Phase {
    async fn start(data: &[&[Bytes]], args: &[&str]) -> Self {
        let (old, new) = (filled(data).await, Etcd::start().await);
        let (from, to) = (old.url(), new.url());
        let args = [&["--old", &from, "--new", &to], args].concat();
        let segue = Segue::serve(&args).await;
        Self { segue, old, new }
    }

    /// With everything copied.
    async fn copied(data: &[&[Bytes]], args: &[&str]) -> Self {
        let phase = Self::start(data, args).await;
        phase.segue.until_copied().await;
        phase
    }

    async fn target(&self, name: &'static str) -> Target {
        Target {
            name,
            address: self.segue.address(),
            etcd: client::connect(&self.new.address()).await,
            condition: None,
            processes: vec![
                self.segue.id(),
                self.new.process().id(),
                self.old.process().id(),
            ],
        }
    }
}

#[tokio::main]
async fn main() {
    let args = Args::read();
    let mut report = Report::new("proxy");
    let read = client::keys(READ, args.scale(20_000, 2_000));
    let written = client::keys(WRITTEN, args.scale(210_000, 21_000));

    let first = client::keys(FIRST, FIRST_COUNT);
    let data = [&first[..], &read, &written];

    let direct = filled(&data).await;
    let grpc_proxy = GrpcProxy::start(&direct.address()).await;
    let above = Phase::start(&data, &HELD_BACK).await;
    let below = Phase::copied(&data, &[]).await;
    let normal = Phase::copied(&data, &["--no-mirror"]).await;
    normal.segue.to_normal().await;
    let mirrored = Phase::copied(&data, &[]).await;
    mirrored.segue.to_normal().await;
    let alone = Segue::serve(&["--new", &direct.url()]).await;
    let direct_channel = client::connect(&direct.address()).await;
    let targets = [
        Target {
            name: "etcd",
            address: direct.address(),
            etcd: direct_channel.clone(),
            condition: None,
            processes: vec![direct.process().id()],
        },
        Target {
            name: "grpc-proxy",
            address: grpc_proxy.address(),
            etcd: direct_channel.clone(),
            condition: None,
            processes: vec![grpc_proxy.id(), direct.process().id()],
        },
        normal.target("segue, normal").await,
        below.target("segue, below").await,
        above.target("segue, above").await,
        Target {
            name: "etcd, conditional",
            address: direct.address(),
            etcd: direct_channel.clone(),
            condition: Some(read[0].clone()),
            processes: vec![direct.process().id()],
        },
        Target {
            name: "segue, alone",
            address: alone.address(),
            etcd: direct_channel,
            condition: None,
            processes: vec![alone.id(), direct.process().id()],
        },
        mirrored.target("segue, mirrored").await,
    ];
    for op in [Op::Get, Op::Put] {
        if !args.wants(&op.to_string()) {
            continue;
        }
        for (index, &in_flight) in args.in_flight.iter().enumerate() {
            // Above the frontier the first write of a key costs more than the next: each measurement
            // has a part of the keys for itself.
            let keys = match op {
                Op::Get | Op::Range => &read,
                Op::Put => part(&written, index, args.in_flight.len()),
            };
            measure(&args, &mut report, &targets, op, in_flight, keys).await;
        }
    }
    report.finish(&args);
}

/// An etcd with these keys.
async fn filled(data: &[&[Bytes]]) -> Etcd {
    let etcd = Etcd::start().await;
    let channel = client::connect(&etcd.address()).await;
    for keys in data {
        client::bulk_load(&channel, keys).await;
    }
    etcd
}

/// Processor time that all of them have taken.
fn cpu_us(processes: &[u32]) -> f64 {
    let total: Duration = processes.iter().map(|process| usage::cpu(*process)).sum();
    total.as_secs_f64() * 1e6
}

/// One of so many equal parts.
fn part(keys: &[Bytes], index: usize, parts: usize) -> &[Bytes] {
    let size = keys.len() / parts;
    &keys[index * size..(index + 1) * size]
}

/// One row per target and wish: `op` with so many requests in flight.
async fn measure(
    args: &Args,
    report: &mut Report,
    targets: &[Target],
    op: Op,
    in_flight: usize,
    keys: &[Bytes],
) {
    let mut connections = Vec::new();
    for target in targets {
        connections.push((target, load::connect(&target.address, in_flight).await));
    }
    let keys = Arc::new(keys.to_vec());
    let samples = take_turns(
        args.rounds(),
        &connections,
        async |round, (target, channels)| {
            client::settle(&target.etcd).await;
            let workload = Workload {
                op,
                in_flight,
                condition: target.condition.clone(),
                keys: match op {
                    Op::Get | Op::Range => keys.clone(),
                    Op::Put => Arc::new(part(&keys, round, args.rounds()).to_vec()),
                },
            };
            let before = cpu_us(&target.processes);
            let mut sample = load::run(channels, &workload, args.round()).await;
            let took = cpu_us(&target.processes) - before;
            sample.server_cpu_us = took / sample.operations as f64;
            sample
        },
    )
    .await;
    let series: Vec<Series> = targets
        .iter()
        .zip(&samples)
        .map(|(target, samples)| load::series(target.name, samples))
        .collect();
    let what = format!("{op}, {in_flight} in flight");
    let notes: Vec<String> = samples
        .iter()
        .map(|samples| load::latencies(samples))
        .collect();
    let [
        etcd,
        grpc_proxy,
        normal,
        _below,
        _above,
        conditional,
        _alone,
        _mirrored,
    ] = &series[..]
    else {
        panic!("one series per target");
    };
    let row = |report: &mut Report, ours: usize, peer: &Series, wish: Option<Wish>| {
        report.compare(
            &what,
            "ops/s",
            &series[ours],
            peer,
            wish,
            notes[ours].as_str(),
        );
    };
    report.single(
        &what,
        "ops/s",
        &etcd.name,
        etcd.median(),
        None,
        notes[0].as_str(),
    );
    row(report, 1, etcd, None);
    row(report, 2, etcd, Some(NORMAL));
    row(report, 2, grpc_proxy, Some(Wish::AtLeast(1.0)));
    row(report, 3, normal, Some(BELOW));
    row(report, 4, etcd, Some(ABOVE));
    row(report, 5, etcd, None);
    row(report, 6, etcd, None);
    row(report, 7, etcd, None);
    row(report, 2, conditional, None);
}
