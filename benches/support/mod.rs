//! What the benchmarks share: servers, one load generator, rounds in turn, a table at the end.
//!
//! The machine that runs them is busy and noisy, so no figure stands alone: everything is measured
//! next to its peer in the same run, in rounds that take turns, and judged by the ratio.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::missing_panics_doc,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    reason = "a toolbox: each benchmark needs a part of it, waits for its own tasks, and fails when it cannot go on"
)]

pub mod args;
pub mod client;
pub mod database;
pub mod grpc_proxy;
pub mod kine;
pub mod kubernetes;
pub mod kv;
pub mod load;
pub mod raw;
pub mod report;
pub mod rounds;
pub mod segue;
pub mod usage;
pub mod waits;
pub mod watch;

#[allow(unused_imports, reason = "the toolbox offers more than is needed here")]
#[path = "../../tests/it/support/mod.rs"]
pub mod servers;
