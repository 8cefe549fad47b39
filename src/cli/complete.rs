//! `segue complete`

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::client::Client;
use super::dry_run::dry_run;
use super::{Admin, Failure};
use crate::migration::status::Status;

/// What is told of a migration that is complete.
pub(super) const OVER: &str = "nothing of it is left in the new store, which is served alone (in an etcd \
                               only what the numbers hang on that clients know)";

/// How often to look whether everything is removed.
const LOOK: Duration = Duration::from_millis(100);
/// Longer than a dead member is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Settle the migration for good
///
/// From the normal phase only, when all members have acknowledged it. Everything of the migration is
/// removed from the new store, and the old store is let go; nothing leads back. The proxies serve on, and
/// are started without --old from then on. In a new store that gives keys its own numbers (etcd), what
/// those hang on that clients know stays below the reserved prefix.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  segue complete --dry-run\n  segue complete")]
pub(super) struct Complete {
    #[command(flatten)]
    admin: Admin,
    /// Say whether it would be done now and what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Complete {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.admin);
        if self.dry_run {
            return dry_run(&client, "settled").await;
        }
        let answer: Value = client.post("/complete", None).await?;
        say!("{}", answer["message"].as_str().unwrap_or_default());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let status: Status = client.get("/status").await?;
            if status.complete {
                say!("{OVER}");
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        say!(
            "what is left of it in the new store is still being removed; see `complete` in `segue status \
             --json`"
        );
        Ok(())
    }
}
