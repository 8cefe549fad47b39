//! Real servers for tests and benches, started on free loopback ports and stopped on drop.
//!
//! The benchmarks use it too, as `servers` (see `benches/support/mod.rs`).

#![allow(
    dead_code,
    unreachable_pub,
    clippy::missing_panics_doc,
    reason = "a toolbox: each user needs a part of it, and a helper that cannot help panics"
)]

pub mod api;
pub mod etcd;
pub mod lasting;
pub mod link;
pub mod mariadb;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod segue;
pub mod stores;
pub mod tables;
pub mod v2;
pub mod wait;

#[allow(unused_imports, reason = "benches run the program in their own way")]
pub use self::segue::Segue;
pub use etcd::Etcd;
#[allow(unused_imports, reason = "not every bench needs one")]
pub use mariadb::MariaDb;
#[allow(unused_imports, reason = "not every bench needs one")]
pub use postgres::Postgres;
pub use v2::V2;
pub use wait::eventually;
