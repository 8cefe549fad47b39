//! `segue start`

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::Client;
use super::dry_run::dry_run;
use super::waiting::{Waiting, gone};
use super::{Admin, Failure};
use crate::migration::status::Status;

/// How often to look whether clients are let in.
const LOOK: Duration = Duration::from_millis(50);
/// How often to ask while the migration cannot begin yet.
const AGAIN: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Examples:
  segue serve --start passthrough --old etcd://10.0.0.1:2379 --new postgres://segue@10.0.0.2/app
  segue start --dry-run               whether it would begin, and what comes of it
  segue start                         once all applications talk to segue

The same with any etcd client: etcdctl put segue/switch migration";

/// Begin the migration of a fleet that was started in the passthrough phase
///
/// The old store is fenced, so that nothing can change it any more, and leases are brought over. No
/// request fails; the longest pause is shown. In any other phase it is refused.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Start {
    #[command(flatten)]
    admin: Admin,
    /// Say whether it would be done now and what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Start {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.admin);
        if self.dry_run {
            return dry_run(&client, "start").await;
        }
        let mut waiting = Waiting::default();
        let epoch = begin(&client, &mut waiting).await?;
        loop {
            let status = client.get::<Status>("/status").await;
            let status = status.map_err(gone("the migration"))?;
            if status.epoch >= epoch && status.stage == "open" {
                say!(
                    "the migration has begun behind revision {}; the longest pause of a request here \
                     was {} ms",
                    status.base,
                    status.longest_stall_ms
                );
                return Ok(());
            }
            waiting.tell(status.trouble.as_deref());
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Asks until the migration begins, and answers the epoch that it begins with.
async fn begin(client: &Client, waiting: &mut Waiting) -> Result<u64, Failure> {
    loop {
        let answer: Value = client.post("/start", None).await?;
        if let Some(epoch) = answer["epoch"].as_u64() {
            return Ok(epoch);
        }
        waiting.tell(answer["message"].as_str());
        tokio::time::sleep(AGAIN).await;
    }
}
