//! `segue verify`

use std::time::{Duration, Instant};

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::figures::number as figure;
use super::screen::Screen;
use super::waiting::Waiting;
use super::{Admin, Failure};
use crate::migration::verify::{Kind, Report};

/// How often to look how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// A verification that has compared nothing more for this long is not waited for.
const PATIENCE: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  segue verify
  segue verify --json > report.json

Exit codes: 0 everything agrees; 1 something is missing, different or stray, or not in the old store as
the mirror has replayed it (a rollback would be refused), or a store does not answer; 3 not everything is copied yet.";

/// Compare both stores, key by key
///
/// Reads everything from the old store and the new one, while clients go on. Keys that clients have
/// changed since the migration began are counted, and not differences; what the mirror has brought back
/// into the old store is compared. Before it begins, keys that were rejected are tried once more.
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
    #[serde(default)]
    trouble: Option<String>,
}

impl Verify {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.admin);
        let asked: Value = client.post("/verify", None).await?;
        let number = asked["number"].as_u64().unwrap_or_default();
        let report = wait(&client, number).await?;
        if self.json {
            let text = serde_json::to_string_pretty(&report);
            say!(
                "{}",
                text.map_err(|error| Failure::Failed(error.to_string()))?
            );
        } else {
            show(&report);
        }
        verdict(&report)?;
        if !self.json {
            say!("the stores agree");
        }
        Ok(())
    }
}

/// Waits for the verification with this number, and shows how far it is.
async fn wait(client: &Client, number: u64) -> Result<Report, Failure> {
    // Standard output is for the report alone.
    let screen = Screen::new(true);
    screen.begin("verifying");
    let mut waiting = Waiting::default();
    let (mut furthest, mut since) = (None, Instant::now());
    loop {
        let progress: Progress = client.get("/verify").await?;
        match progress.report {
            Some(report) if progress.done >= number => return Ok(report),
            None if progress.done >= number => {
                return Err(Failure::Failed(
                    "the phase has changed in between; try again".into(),
                ));
            }
            under_way => {
                let compared = under_way.filter(|report| !report.complete);
                let compared = compared.map_or(0, |report| report.compared);
                if furthest != Some(compared) {
                    (furthest, since) = (Some(compared), Instant::now());
                } else if since.elapsed() > PATIENCE {
                    screen.clear();
                    let why = progress
                        .trouble
                        .unwrap_or_else(|| "no store tells why".into());
                    return Err(Failure::Failed(format!(
                        "nothing was compared for {PATIENCE:?}: {why}. The proxy goes on trying; verify again when \
                         `segue status` tells of no trouble"
                    )));
                }
                let text = format!("{} keys compared", figure(compared));
                match &progress.trouble {
                    Some(trouble) if !screen.is_live() => {
                        waiting.tell(Some(trouble));
                    }
                    Some(trouble) => {
                        let text = format!("{text}; trying again: {trouble}");
                        screen.progress(compared, None, &text);
                    }
                    None => screen.progress(compared, None, &text),
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// What is missing only because it is not copied yet.
fn not_copied(report: &Report) -> u64 {
    if report.backfill_complete {
        0
    } else {
        report.missing
    }
}

/// What it comes to; an error unless both stores agree.
fn verdict(report: &Report) -> Result<(), Failure> {
    let missing = report.missing - not_copied(report);
    if missing + report.different + report.stray > 0 {
        return Err(Failure::Failed("the stores do not agree".into()));
    }
    if report.missing > 0 {
        return Err(Failure::Refused(format!(
            "{} not copied yet, and everything else agrees; verify again when the backfill is complete \
             (`segue status` shows how far it is)",
            keys(report.missing)
        )));
    }
    if report.unmirrored > 0 {
        return Err(Failure::Failed(format!(
            "the copy is good, but a rollback would be refused: {} not in the old store as the mirror has \
             replayed it. Whoever has written there past the proxies has to be stopped; what is written \
             once more through a proxy is replayed again. Then verify again",
            keys(report.unmirrored)
        )));
    }
    Ok(())
}

fn keys(count: u64) -> String {
    match count {
        1 => "1 key is".into(),
        _ => format!("{} keys are", figure(count)),
    }
}

fn show(report: &Report) {
    let waiting = not_copied(report);
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
        (report.missing - waiting, "are MISSING in the new store"),
        (report.different, "are DIFFERENT in the new store"),
        (
            report.stray,
            "are in the new store only, though no client wrote them",
        ),
    ] {
        say!("{count:>10} {what}");
    }
    // Of no concern where there is no mirror, or everything is copied.
    for (count, what) in [
        (report.mirrored, "are in the old store as they were changed"),
        (
            report.unmirrored,
            "are NOT in the old store as they were changed",
        ),
        (waiting, "are not copied yet"),
    ] {
        if count > 0 {
            say!("{count:>10} {what}");
        }
    }
    let mut listed = 0;
    for finding in &report.findings {
        if waiting > 0 && finding.kind == Kind::Missing {
            continue;
        }
        listed += 1;
        say!("{:?} {} {}", finding.kind, finding.key, finding.detail);
    }
    let found = report.missing - waiting + report.different + report.stray + report.unmirrored;
    if found > listed {
        say!("… and {} more", found - listed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_exit_code_and_says_what_to_do() {
        let good = Report {
            backfill_complete: true,
            complete: true,
            ..Report::default()
        };
        let of = |change: &dyn Fn(&mut Report)| {
            let mut report = good.clone();
            change(&mut report);
            verdict(&report)
        };
        assert!(verdict(&good).is_ok());
        for (outcome, part) in [
            (of(&|r| r.missing = 1), "do not agree"),
            (of(&|r| r.different = 1), "do not agree"),
            (of(&|r| r.stray = 1), "do not agree"),
            (
                of(&|r| r.unmirrored = 3),
                "a rollback would be refused: 3 keys",
            ),
            (
                of(&|r| {
                    r.backfill_complete = false;
                    r.missing = 9;
                    r.different = 1;
                }),
                "do not agree",
            ),
        ] {
            let Err(Failure::Failed(why)) = outcome else {
                panic!("{part}: {outcome:?}");
            };
            assert!(why.contains(part), "{why}");
        }
        let early = of(&|r| {
            r.backfill_complete = false;
            r.missing = 9;
        });
        let Err(Failure::Refused(why)) = early else {
            panic!("{early:?}");
        };
        assert!(why.starts_with("9 keys are not copied yet"), "{why}");
    }
}
