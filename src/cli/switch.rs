//! `segue switch`

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::client::Client;
use super::dry_run::dry_run;
use super::{Admin, Failure};
use crate::migration::records::Outcome;
use crate::migration::rehearsal::Rehearsal;
use crate::migration::status::Status;

/// How often to look whether the switch has come through.
const LOOK: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Examples:
  segue switch                        to the normal phase: the old store is no longer asked
  segue switch --when-ready --wait    as soon as backfill and verification are done
  segue switch --dry-run              whether it would be done now, and what would happen
  segue switch --rehearse             what pause it would cost, measured; the phase stays
  segue switch migration              back to the migration phase; also takes a request back that waits

The same with any etcd client: etcdctl put segue/switch normal
(or `true`, `migration`; with ` when-ready` behind it to let it wait).";

/// Switch the fleet to another phase
///
/// Refused, with the reason and exit code 3, while it is not safe: until every key is copied and the
/// copy is verified.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Switch {
    #[command(flatten)]
    admin: Admin,
    /// The phase to go to
    #[arg(value_enum, default_value = "normal")]
    to: To,
    /// If it is not safe yet, do it as soon as it is
    #[arg(long)]
    when_ready: bool,
    /// Return when all members have acknowledged the switch
    #[arg(long)]
    wait: bool,
    /// Say whether it would be done now and what would happen, and change nothing
    #[arg(long, conflicts_with_all = ["when_ready", "wait"])]
    dry_run: bool,
    /// Have the fleet do all that a switch makes it do, but stay in its phase, and tell the pause
    #[arg(long, conflicts_with_all = ["to", "when_ready", "wait", "dry_run"])]
    rehearse: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum To {
    Normal,
    Migration,
}

impl Switch {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.admin);
        let to = match self.to {
            To::Normal => "normal",
            To::Migration => "migration",
        };
        if self.rehearse {
            return rehearse(&client).await;
        }
        if self.dry_run {
            return dry_run(&client, to).await;
        }
        let body = json!({ "to": to, "when_ready": self.when_ready });
        let answer: Value = client.post("/switch", Some(body)).await?;
        let message = answer["message"].as_str().unwrap_or_default();
        match answer["switch"]["outcome"].as_str() {
            Some("waiting") => say!("the switch to {to} waits until it is safe: {message}"),
            _ => say!("switched to {to}: {message}"),
        }
        if self.wait {
            wait(&client, to).await?;
        }
        Ok(())
    }
}

async fn rehearse(client: &Client) -> Result<(), Failure> {
    let rehearsal: Rehearsal = client.post("/rehearse", None).await?;
    let Rehearsal { phase, epoch, .. } = &rehearsal;
    say!("rehearsed: the phase is {phase} as before, in epoch {epoch}");
    say!(
        "all members ({}) have acknowledged within {} ms; the longest pause of a request was {} ms",
        rehearsal.members.len(),
        rehearsal.acknowledged_ms,
        rehearsal.pause_ms
    );
    for member in &rehearsal.members {
        let (name, after, stall) = (&member.name, member.acknowledged_ms, member.stall_ms);
        match stall {
            0 => say!("  {name}: acknowledged after {after} ms; no request had to wait"),
            _ => say!("  {name}: acknowledged after {after} ms; a request waited {stall} ms"),
        }
    }
    Ok(())
}

async fn wait(client: &Client, to: &str) -> Result<(), Failure> {
    loop {
        let status: Status = client.get("/status").await?;
        let all = status
            .members
            .iter()
            .all(|member| member.acknowledged >= status.epoch);
        if status.phase == to && all {
            say!("all {} members are in the {to} phase", status.members.len());
            return Ok(());
        }
        if status.switch.outcome == Outcome::Refused {
            return Err(Failure::Refused(status.switch.reason));
        }
        tokio::time::sleep(LOOK).await;
    }
}
