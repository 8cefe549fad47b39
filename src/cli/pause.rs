//! `segue pause`, `segue resume` and `segue rates`

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::figures::{bytes, number};
use super::{Admin, Failure};
use crate::config;
use crate::migration::records::Control;

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

/// Show the limits of the backfill, or change them
///
/// What is not given stays as it is; 0 is no limit.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  segue rates\n  segue rates --keys 5000 --bytes 8M\n  segue rates --keys 0            no limit any more"
)]
pub(super) struct Rates {
    #[command(flatten)]
    admin: Admin,
    /// Most keys per second; 0 is no limit
    #[arg(long, value_parser = config::number)]
    keys: Option<u64>,
    /// Most bytes per second; 8M is 8 MiB, 0 is no limit
    #[arg(long, value_parser = config::number)]
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
        let set: Control = Client::new(&self.admin).post("/rates", Some(body)).await?;
        match (set.rate_keys, set.rate_bytes) {
            (None, None) => say!("the backfill copies without limit"),
            (Some(keys), None) => say!("the backfill copies at most {} keys/s", number(keys)),
            (None, Some(rate)) => say!("the backfill copies at most {}/s", bytes(rate)),
            (Some(keys), Some(rate)) => say!(
                "the backfill copies at most {} keys/s and {}/s",
                number(keys),
                bytes(rate)
            ),
        }
        Ok(())
    }
}
