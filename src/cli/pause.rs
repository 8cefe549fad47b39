//! `segue pause`, `segue resume` and `segue rates`

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::{Admin, Failure};
use crate::config::number;

/// Pause the backfill
///
/// Clients are served as before, and keys that they touch are still copied up. All members of the
/// fleet hold to it, also after a restart.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  segue pause")]
pub(super) struct Pause {
    #[command(flatten)]
    admin: Admin,
}

/// Let a paused backfill go on
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  segue resume")]
pub(super) struct Resume {
    #[command(flatten)]
    admin: Admin,
}

/// Change the limits of the backfill
///
/// What is not given is no limit.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  segue rates --keys 5000 --bytes 8M\n  segue rates")]
pub(super) struct Rates {
    #[command(flatten)]
    admin: Admin,
    /// Most keys per second
    #[arg(long, value_parser = number)]
    keys: Option<u64>,
    /// Most bytes per second; 8M is 8 MiB
    #[arg(long, value_parser = number)]
    bytes: Option<u64>,
}

impl Pause {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let _: Value = Client::new(&self.admin).post("/pause", None).await?;
        say!("the backfill is paused; `segue resume` lets it go on");
        Ok(())
    }
}

impl Resume {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let _: Value = Client::new(&self.admin).post("/resume", None).await?;
        say!("the backfill goes on");
        Ok(())
    }
}

impl Rates {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let body = json!({ "keys": self.keys, "bytes": self.bytes });
        let _: Value = Client::new(&self.admin).post("/rates", Some(body)).await?;
        let show = |limit: Option<u64>, unit: &str| match limit.filter(|limit| *limit > 0) {
            Some(limit) => format!("{limit} {unit}/s"),
            None => format!("any number of {unit}/s"),
        };
        say!(
            "the backfill copies at most {} and {}",
            show(self.keys, "keys"),
            show(self.bytes, "bytes")
        );
        Ok(())
    }
}
