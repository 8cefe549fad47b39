//! `segue status`

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::client::Client;
use super::complete::OVER;
use super::figures::{bytes, number, span};
use super::{Admin, Failure};
use crate::migration::foreign::Named;
use crate::migration::records::Outcome;
use crate::migration::status::Status as Report;

/// How often the live view looks.
const LOOK: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  segue status
  segue status --watch
  segue status --json | jq .keys_left";

/// Show how the migration stands
///
/// Phase, progress with an estimate of the time left, rejects, members, what the switch waits for,
/// and which store answered the reads.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {
    #[command(flatten)]
    admin: Admin,
    /// Print one JSON object, for scripts
    #[arg(long)]
    json: bool,
    /// Show it live until interrupted
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let client = Client::new(&self.admin);
        if !self.watch {
            let status = client.get("/status").await?;
            let text = if self.json {
                json(&status, false)?
            } else {
                render(&status)
            };
            say!("{text}");
            return Ok(());
        }
        tokio::select! {
            shown = self.show_live(&client) => shown,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    }

    async fn show_live(&self, client: &Client) -> Result<(), Failure> {
        let terminal = std::io::stdout().is_terminal();
        loop {
            let text = match client.get::<Report>("/status").await {
                Ok(status) if self.json => json(&status, true)?,
                Ok(status) => render(&status),
                // Whoever watches a migration does so when a proxy is restarted, too.
                Err(Failure::Failed(why)) if self.json => {
                    serde_json::json!({ "trouble": why }).to_string()
                }
                Err(Failure::Failed(why)) => {
                    let mut text = String::new();
                    line(&mut text, "trouble", &why);
                    text.trim_end().to_owned()
                }
                Err(failure) => return Err(failure),
            };
            if self.json {
                say!("{text}");
            } else if terminal {
                // Home, the text with every line's rest cleared, then everything below cleared.
                let lines = text.replace('\n', "\x1b[K\n");
                say!("\x1b[H{lines}\x1b[K\x1b[J");
            } else {
                say!("{text}\n");
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn json(status: &Report, one_line: bool) -> Result<String, Failure> {
    let text = if one_line {
        serde_json::to_string(status)
    } else {
        serde_json::to_string_pretty(status)
    };
    text.map_err(|error| Failure::Failed(error.to_string()))
}

/// The status as people read it.
fn render(status: &Report) -> String {
    let mut out = String::new();
    let stores = match &status.old {
        Some(old) => format!("{old} → {}", status.new),
        None => status.new.clone(),
    };
    line(&mut out, "stores", &stores);
    let phase = match status.stage.as_str() {
        "fencing" => format!("{} (fencing the old store, clients wait)", status.phase),
        "opening" => format!(
            "{} (opening: leased keys are on their way, clients wait)",
            status.phase
        ),
        "draining" => "rollback (the last changes are on their way back, clients wait)".into(),
        _ => status.phase.clone(),
    };
    line(
        &mut out,
        "phase",
        &format!("{phase}, epoch {}", status.epoch),
    );
    line(
        &mut out,
        "serving",
        &format!(
            "etcd API on {}, up {}",
            status.listen,
            span(Duration::from_secs(status.uptime_s))
        ),
    );
    if status.migration.is_empty() {
        line(&mut out, "migration", "none: the new store is served alone");
        return out.trim_end().to_owned();
    }
    if status.complete {
        line(&mut out, "migration", &format!("complete: {OVER}"));
    }
    // Before the migration begins there is nothing to tell of.
    if status.phase != "passthrough" {
        line(&mut out, "backfill", &backfill(status));
        let verified = match (status.verifying, status.verified) {
            (Some(keys), _) => format!("under way: {} keys compared", number(keys)),
            (None, true) => "yes: both stores agree".into(),
            (None, false) => "no".into(),
        };
        line(&mut out, "verified", &verified);
        let rejects = match status.rejects {
            0 => "none".into(),
            count => format!("{} (`segue rejects` lists them)", number(count)),
        };
        line(&mut out, "rejects", &rejects);
    }
    line(
        &mut out,
        "reads here",
        &format!(
            "{} by the new store alone, {} with the old one; {} keys copied up on demand",
            number(status.reads_new),
            number(status.reads_old),
            number(status.copy_ups)
        ),
    );
    if let Some(switch) = switch(status) {
        line(&mut out, "switch", &switch);
    }
    if let Some(way_back) = way_back(status) {
        line(&mut out, "way back", &way_back);
    }
    members(&mut out, status);
    if let Some(text) = foreign(status) {
        line(&mut out, "foreign", &text);
    }
    if let Some(trouble) = &status.trouble {
        line(&mut out, "trouble", trouble);
    }
    out.trim_end().to_owned()
}

fn members(out: &mut String, status: &Report) {
    for (index, member) in status.members.iter().enumerate() {
        let name = if index == 0 { "members" } else { "" };
        let marks = [
            (member.this, "this one"),
            (
                status.owner.as_ref() == Some(&member.id),
                "runs the backfill",
            ),
            (
                member.acknowledged < status.epoch,
                "has yet to acknowledge the epoch",
            ),
        ];
        let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark);
        let mut marks: Vec<String> = marks.map(str::to_owned).collect();
        if member.stall_ms > 0 {
            marks.push(format!(
                "a request waited {} ms for epoch {}",
                member.stall_ms, member.acknowledged
            ));
        }
        let marks = if marks.is_empty() {
            String::new()
        } else {
            format!(" ({})", marks.join(", "))
        };
        line(out, name, &format!("{}{marks}", member.name));
    }
}

fn backfill(status: &Report) -> String {
    let total = status.keys_copied + status.rejects + status.keys_left;
    if status.backfill_complete {
        return format!(
            "complete: {} keys, {}",
            number(status.keys_copied),
            bytes(status.bytes_copied)
        );
    }
    let percent = (status.keys_copied * 100).checked_div(total).unwrap_or(0);
    let mut text = format!(
        "{percent} %: {} keys copied, {} left, {}",
        number(status.keys_copied),
        number(status.keys_left),
        bytes(status.bytes_copied)
    );
    if status.paused {
        text.push_str("; paused (`segue resume`)");
        return text;
    }
    let _ = write!(
        text,
        "; {} keys/s, {}/s",
        number(status.keys_per_s),
        bytes(status.bytes_per_s)
    );
    if let Some(eta) = status.eta_s {
        let _ = write!(text, ", about {} left", span(Duration::from_secs(eta)));
    }
    text
}

/// What others did to the old store; nothing to say as long as they did nothing.
fn foreign(status: &Report) -> Option<String> {
    let foreign = &status.foreign;
    let (Some(first), Some(latest)) = (&foreign.first, &foreign.latest) else {
        return foreign
            .missed
            .then(|| "the old store could not tell all that was changed in it".into());
    };
    let when = |named: &Named| {
        let ago = now_ms().saturating_sub(named.seen_ms) / 1000;
        format!("{} ({} ago)", named.key, span(Duration::from_secs(ago)))
    };
    let mut text = format!(
        "{} changes in the old store past the proxies: first {}, latest {}; {} followed, {} in conflict",
        number(foreign.changes),
        when(first),
        when(latest),
        number(foreign.followed),
        number(foreign.conflicts)
    );
    if let Some(conflict) = &foreign.conflict {
        let why = conflict.why.as_deref().unwrap_or_default();
        let _ = write!(text, ", the latest one {}: {why}", when(conflict));
    }
    if foreign.missed {
        text.push_str("; and others that the old store no longer knows");
    }
    Some(text)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn switch(status: &Report) -> Option<String> {
    let latest = &status.switch;
    let refused = latest.outcome == Outcome::Refused;
    match &status.blocked {
        _ if latest.outcome == Outcome::Waiting => {
            Some(format!("`{}` waits: {}", latest.value, latest.reason))
        }
        // For as long as its reason holds: what could not be read stays so, and nobody asks of the other phases.
        blocked
            if refused
                && (latest.to.is_none()
                    || status.phase != "migration"
                    || blocked.as_ref() == Some(&latest.reason)) =>
        {
            Some(format!("`{}` was refused: {}", latest.value, latest.reason))
        }
        _ if status.phase != "migration" => None,
        blocked => {
            let mut text = match blocked {
                Some(why) => format!("not yet: {why}"),
                None => "ready: `segue switch` goes to the normal phase".into(),
            };
            if refused {
                let _ = write!(text, " (an earlier request was refused: {})", latest.reason);
            }
            Some(text)
        }
    }
}

/// What a rollback would cost.
fn way_back(status: &Report) -> Option<String> {
    if status.phase != "migration" && status.phase != "normal" {
        return None;
    }
    let waits = &status.way_back_waits;
    let mut text = match (&status.way_back, &status.way_back_closed) {
        _ if !status.mirror => "none: the old store does not follow".into(),
        (_, Some(why)) => format!("closed: {why}"),
        (None, None) => match waits {
            None => "not now: the mirror has not begun, or the old store does not answer".into(),
            Some(why) => format!("not now ({why})"),
        },
        (Some(standing), None) => {
            let open = match waits {
                None => "open (`segue rollback`)".into(),
                Some(why) => format!("not now ({why})"),
            };
            format!(
                "{open}: the old store is {} {} behind, {}.{} s",
                number(standing.behind),
                if standing.behind == 1 {
                    "change"
                } else {
                    "changes"
                },
                standing.behind_ms / 1000,
                standing.behind_ms % 1000 / 100,
            )
        }
    };
    if let Some(why) = &status.called_off {
        let _ = write!(text, "; the last rollback was called off: {why}");
    }
    Some(text)
}

fn line(out: &mut String, name: &str, text: &str) {
    let _ = writeln!(out, "{name:<11} {text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::mirror::Standing;

    #[test]
    fn people_see_whether_there_is_a_way_back_and_why_not() {
        let open = Report {
            phase: "normal".into(),
            mirror: true,
            way_back: Some(Standing {
                behind: 1,
                behind_ms: 1234,
                ..Standing::default()
            }),
            ..Report::default()
        };
        let why = || Some("this is why".to_owned());
        for (status, expected) in [
            (
                Report {
                    phase: "passthrough".into(),
                    ..open.clone()
                },
                None,
            ),
            (
                Report {
                    mirror: false,
                    way_back_closed: why(),
                    ..open.clone()
                },
                Some("none: the old store does not follow"),
            ),
            (
                Report {
                    way_back_closed: why(),
                    ..open.clone()
                },
                Some("closed: this is why"),
            ),
            (
                Report {
                    way_back_waits: why(),
                    ..open.clone()
                },
                Some("not now (this is why): the old store is 1 change behind, 1.2 s"),
            ),
            (
                Report {
                    way_back: None,
                    way_back_waits: why(),
                    ..open.clone()
                },
                Some("not now (this is why)"),
            ),
            (
                Report {
                    called_off: why(),
                    ..open.clone()
                },
                Some(
                    "open (`segue rollback`): the old store is 1 change behind, 1.2 s; the last rollback \
                     was called off: this is why",
                ),
            ),
        ] {
            assert_eq!(way_back(&status).as_deref(), expected);
        }
    }

    #[test]
    fn a_refusal_is_shown_for_as_long_as_its_reason_holds() {
        use crate::migration::phase::Phase;
        use crate::migration::records::Switch;
        let why = || "the backfill is not complete".to_owned();
        let status = |blocked, to| Report {
            phase: "migration".into(),
            blocked,
            switch: Switch {
                value: "it".into(),
                to,
                outcome: Outcome::Refused,
                reason: why(),
                ..Switch::default()
            },
            ..Report::default()
        };
        for (blocked, to, expected) in [
            (
                Some(why()),
                Some(Phase::Normal),
                "`it` was refused: the backfill is not complete",
            ),
            (None, None, "`it` was refused: the backfill is not complete"),
            (
                None,
                Some(Phase::Normal),
                "ready: `segue switch` goes to the normal phase (an earlier request was refused: the backfill is \
                 not complete)",
            ),
            (
                Some("another".into()),
                Some(Phase::Normal),
                "not yet: another (an earlier request was refused: the backfill is not complete)",
            ),
        ] {
            assert_eq!(switch(&status(blocked, to)).as_deref(), Some(expected));
        }
    }

    #[test]
    fn people_see_what_the_switch_waits_for() {
        let status = Report {
            phase: "migration".into(),
            migration: "m".into(),
            keys_copied: 30,
            keys_left: 10,
            eta_s: Some(61),
            blocked: Some("the backfill is not complete".into()),
            ..Report::default()
        };
        let text = render(&status);
        for part in [
            "75 %",
            "10 left",
            "about 1 min 1 s",
            "not yet: the backfill",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
