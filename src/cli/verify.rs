//! `segue verify`

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::{Admin, Failure};
use crate::migration::verify::Report;

/// How often to look how far it is.
const LOOK: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Examples:
  segue verify
  segue verify --json > report.json

Exit code 0: everything agrees. 1: something is missing, different or stray.";

/// Compare both stores, key by key
///
/// Reads everything from the old store and the new one, while clients go on. Keys that clients have
/// changed since the migration began are counted, and not differences. Before it begins, keys that
/// were rejected are tried once more.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    #[command(flatten)]
    admin: Admin,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Progress {
    done: u64,
    report: Option<Report>,
}

impl Verify {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.admin);
        let asked: Value = client.post("/verify", None).await?;
        let number = asked["number"].as_u64().unwrap_or_default();
        let report = loop {
            let progress: Progress = client.get("/verify").await?;
            match progress.report {
                Some(report) if progress.done >= number => break report,
                None if progress.done >= number => {
                    return Err(Failure::Failed(
                        "the phase has changed in between; try again".into(),
                    ));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        };
        if self.json {
            let text = serde_json::to_string_pretty(&report);
            say!(
                "{}",
                text.map_err(|error| Failure::Failed(error.to_string()))?
            );
        } else {
            show(&report);
        }
        if report.good {
            Ok(())
        } else {
            Err(Failure::Failed("the stores do not agree".into()))
        }
    }
}

fn show(report: &Report) {
    say!("{:>10} keys of the old store compared", report.compared);
    for (count, what) in [
        (report.equal, "are the same in both"),
        (
            report.superseded,
            "were changed or deleted by clients since",
        ),
        (
            report.expired,
            "leased ones have run out in the old store since",
        ),
        (report.missing, "are MISSING in the new store"),
        (report.different, "are DIFFERENT in the new store"),
        (
            report.stray,
            "are in the new store only, though no client wrote them",
        ),
    ] {
        say!("{count:>10} {what}");
    }
    for finding in &report.findings {
        say!("{:?} {} {}", finding.kind, finding.key, finding.detail);
    }
    let found = report.missing + report.different + report.stray;
    if found > report.findings.len() as u64 {
        say!("… and {} more", found - report.findings.len() as u64);
    }
}
