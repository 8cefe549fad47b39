//! `segue rollback`

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::Client;
use super::dry_run::dry_run;
use super::waiting::{Waiting, gone};
use super::{Admin, Failure};
use crate::migration::status::Status;

/// How often to look whether the old store serves.
const LOOK: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  segue status                        the line `way back` says what it would cost
  segue rollback --dry-run
  segue rollback
  segue start                         to begin anew, when the reason is mended";

/// Go back to the old store, with every write that was made since
///
/// From the migration and the normal phase, until `segue complete`. The new store is fenced, the last
/// changes are replayed into the old one, leases go on with their numbers, and the old store
/// serves again, in the passthrough phase. No request fails and nothing is lost; the longest pause is
/// shown. The new store is emptied afterwards.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Rollback {
    #[command(flatten)]
    admin: Admin,
    /// Say whether it would be done now and what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Rollback {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.admin);
        if self.dry_run {
            return dry_run(&client, "passthrough").await;
        }
        let before: Status = client.get("/status").await?;
        let _: Value = client.post("/rollback", None).await?;
        let mut waiting = Waiting::default();
        loop {
            let status = client.get::<Status>("/status").await;
            let status = status.map_err(gone("the rollback"))?;
            let begun = status.epoch > before.epoch && status.stage == "open";
            if begun && status.phase == "passthrough" {
                say!(
                    "the old store serves again, behind revision {}; the longest pause of a request here \
                     was {} ms",
                    status.base,
                    status.longest_stall_ms
                );
                return Ok(());
            }
            if begun {
                let why = status.called_off.unwrap_or_default();
                return Err(Failure::Refused(format!(
                    "the rollback was called off, and the {} phase goes on: {why}",
                    status.phase
                )));
            }
            waiting.tell(status.trouble.as_deref());
            tokio::time::sleep(LOOK).await;
        }
    }
}
