//! The outcome: as one JSON object, and as a table for people.

use serde::Serialize;

use super::check::{Findings, Tally};
use super::clients::LINE_UP;
use super::meter::{Kind, Percentiles, Period, Readings, millis};
use super::screen::{Screen, padded};
use crate::cli::figures::{bytes, number};

/// Everything that was measured and found. `segue demo --json` prints it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    /// Every promise was kept.
    pub kept: bool,
    /// The phase at the end.
    pub phase: String,
    /// The old store, without secrets.
    pub old: String,
    /// The new store, without secrets.
    pub new: String,
    /// Keys of the old store that are in the new one.
    pub keys_moved: u64,
    /// Their keys and values.
    pub bytes_moved: u64,
    /// How long that took.
    pub migration_ms: u64,
    /// From the write of the switch key to the normal phase.
    pub switch_ms: u64,
    /// Requests that were answered, in the whole show.
    pub operations: u64,
    /// Requests that were answered while keys moved.
    pub operations_during: u64,
    /// Requests that failed; watches and leases that were ended.
    pub failed_operations: u64,
    /// See [`Findings::lost`].
    pub lost_keys: u64,
    /// See [`Findings::resurrected`].
    pub resurrected_keys: u64,
    /// See [`Findings::altered`].
    pub altered_keys: u64,
    /// See [`Findings::wrong_answers`].
    pub wrong_answers: u64,
    /// See [`Findings::wrong_sums`].
    pub wrong_sums: u64,
    /// See [`Findings::lost_leases`].
    pub lost_leases: u64,
    /// Events that watches delivered.
    pub watch_events: u64,
    /// See [`Findings::missed_events`].
    pub missed_watch_events: u64,
    /// See [`Findings::repeated_events`].
    pub repeated_watch_events: u64,
    /// See [`Findings::wrong_events`].
    pub wrong_watch_events: u64,
    /// The longest that a client waited for an answer from the start of the migration on.
    pub longest_stall_ms: f64,
    /// Keys that were compared one by one at the end.
    pub keys_checked: u64,
    /// Acknowledged writes that they were compared with.
    pub writes_checked: u64,
    /// Reads that were compared with the state at their revision.
    pub reads_checked: u64,
    /// What "before" means here.
    pub before: String,
    /// Latencies.
    pub latency: Latency,
    /// The first few broken promises and failures, in words.
    pub complaints: Vec<String>,
}

/// Latencies by period; nothing where there was none.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Latency {
    /// On the old store alone.
    pub before: Option<Latencies>,
    /// While keys moved.
    pub during: Option<Latencies>,
    /// When the new store had taken over.
    pub after: Option<Latencies>,
}

/// Latencies of one period.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Latencies {
    /// Of all requests.
    #[serde(flatten)]
    pub all: Percentiles,
    /// Of those that only read.
    pub reads: Percentiles,
    /// Of those that write.
    pub writes: Percentiles,
}

impl Report {
    /// Takes over what the meter shows.
    pub(super) fn measure(&mut self, readings: &Readings) {
        let latencies = |period| {
            readings.percentiles(period, None).map(|all| Latencies {
                all,
                reads: readings
                    .percentiles(period, Some(Kind::Read))
                    .unwrap_or_default(),
                writes: readings
                    .percentiles(period, Some(Kind::Write))
                    .unwrap_or_default(),
            })
        };
        let [before, during, after] = Period::ALL.map(latencies);
        self.latency = Latency {
            before,
            during,
            after,
        };
        self.operations = readings.answered;
        self.operations_during = readings.operations(Period::During);
        self.failed_operations = readings.failed;
        self.longest_stall_ms = millis(readings.stall);
        let failures = readings.failures.iter().map(|why| format!("failed: {why}"));
        self.complaints.extend(failures);
    }

    /// Takes over the judgement.
    pub(super) fn judge(&mut self, findings: &Findings) {
        self.lost_keys = findings.lost.count;
        self.resurrected_keys = findings.resurrected.count;
        self.altered_keys = findings.altered.count;
        self.wrong_answers = findings.wrong_answers.count;
        self.wrong_sums = findings.wrong_sums.count;
        self.lost_leases = findings.lost_leases.count;
        self.missed_watch_events = findings.missed_events.count;
        self.repeated_watch_events = findings.repeated_events.count;
        self.wrong_watch_events = findings.wrong_events.count;
        let complain = |(kind, tally): (&'static str, &Tally)| {
            let cases = tally.examples.iter();
            let cases: Vec<_> = cases.map(|case| format!("{kind}: {case}")).collect();
            cases
        };
        let complaints = findings.all().into_iter().flat_map(complain);
        self.complaints.extend(complaints);
    }

    /// Whether every promise was kept, from all that the report says.
    pub(super) fn conclude(&mut self) {
        let broken: u64 = self.promises().iter().map(|promise| promise.broken).sum();
        self.kept = broken == 0 && self.complaints.is_empty();
    }

    fn promises(&self) -> [Promise; 10] {
        let promise = |what, broken, of| Promise { what, broken, of };
        let of = |count, what| format!("{} {what}", number(count));
        let none = String::new;
        [
            promise(
                "requests failed",
                self.failed_operations,
                of(self.operations, "requests"),
            ),
            promise("keys lost", self.lost_keys, of(self.keys_checked, "keys")),
            promise("keys resurrected", self.resurrected_keys, none()),
            promise(
                "keys altered",
                self.altered_keys,
                of(self.writes_checked, "acknowledged writes"),
            ),
            promise(
                "answers wrong or stale",
                self.wrong_answers,
                of(self.reads_checked, "reads"),
            ),
            promise("sums and counters wrong", self.wrong_sums, none()),
            promise("leases lost", self.lost_leases, none()),
            promise(
                "watch events missed",
                self.missed_watch_events,
                of(self.watch_events, "events"),
            ),
            promise("watch events repeated", self.repeated_watch_events, none()),
            promise(
                "watch events wrong or out of order",
                self.wrong_watch_events,
                none(),
            ),
        ]
    }

    /// Tells it to people.
    pub(super) fn show(&self, screen: &Screen) {
        screen.say("");
        self.show_latencies(screen);
        screen.say("");
        for promise in self.promises() {
            let count = padded_left(&number(promise.broken), 9);
            let (mark, count) = if promise.broken == 0 {
                (screen.good("✓"), screen.good(&count))
            } else {
                (screen.bad("✗"), screen.bad(&count))
            };
            let of = match &promise.of[..] {
                "" => String::new(),
                of => screen.faint(&format!("of {of}")),
            };
            screen.say(&format!(
                "  {mark} {count}  {} {of}",
                padded(promise.what, 34)
            ));
        }
        screen.say("");
        for complaint in &self.complaints {
            screen.say(&format!("  {} {complaint}", screen.bad("✗")));
        }
        if !self.complaints.is_empty() {
            screen.say("");
        }
        screen.say(&self.verdict(screen));
    }

    fn verdict(&self, screen: &Screen) -> String {
        if !self.kept {
            let verdict = "Promises were broken; what is listed above should never happen.";
            return screen.bad(&format!("  {verdict}"));
        }
        let moved = format!(
            "{} keys ({})",
            number(self.keys_moved),
            bytes(self.bytes_moved)
        );
        let stall = ms(self.longest_stall_ms);
        screen.strong(&format!(
            "  {moved} moved under a running application.\n  Nothing was lost, and nobody waited \
             longer than {stall}."
        ))
    }

    fn show_latencies(&self, screen: &Screen) {
        let periods = [self.latency.before, self.latency.during, self.latency.after];
        let row = |title: &str, cell: &dyn Fn(&Latencies) -> String| {
            let mut line = padded(&format!("  {title}"), 26);
            for period in &periods {
                let cell = period.as_ref().map_or("–".into(), cell);
                line.push_str(&padded_left(&cell, 12));
            }
            screen.say(&line);
        };
        let mut head = padded("  What the clients saw", 26);
        for period in ["before", "during", "after"] {
            head.push_str(&padded_left(period, 12));
        }
        screen.say(&screen.strong(&head));
        row("requests answered", &|period| number(period.all.operations));
        row("reads, p50", &|period| ms(period.reads.p50_ms));
        row("reads, p99", &|period| ms(period.reads.p99_ms));
        row("writes, p50", &|period| ms(period.writes.p50_ms));
        row("writes, p99", &|period| ms(period.writes.p99_ms));
        row("longest wait", &|period| ms(period.all.max_ms));
        screen.say(&screen.faint(&format!("  before: {}", self.before)));
        screen.say(&screen.faint(&format!("  clients: {}", LINE_UP[0])));
        screen.say(&screen.faint(&format!("           {}", LINE_UP[1])));
    }
}

/// A promise and how often it was broken.
struct Promise {
    what: &'static str,
    broken: u64,
    /// Of how many.
    of: String,
}

fn padded_left(text: &str, width: usize) -> String {
    let blanks = width.saturating_sub(text.chars().count());
    format!("{}{text}", " ".repeat(blanks))
}

/// Milliseconds, as many digits as mean something.
pub(super) fn ms(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else if ms < 100.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_promise_of_any_kind_is_enough() {
        let mut report = Report::default();
        report.conclude();
        assert!(report.kept);
        let breaks: [fn(&mut Report); 11] = [
            |report| report.failed_operations = 1,
            |report| report.lost_keys = 1,
            |report| report.resurrected_keys = 1,
            |report| report.altered_keys = 1,
            |report| report.wrong_answers = 1,
            |report| report.wrong_sums = 1,
            |report| report.lost_leases = 1,
            |report| report.missed_watch_events = 1,
            |report| report.repeated_watch_events = 1,
            |report| report.wrong_watch_events = 1,
            |report| report.complaints = vec!["the old store was not let go".into()],
        ];
        for (index, damage) in breaks.into_iter().enumerate() {
            let mut report = Report::default();
            damage(&mut report);
            report.conclude();
            assert!(!report.kept, "break number {index}");
        }
    }

    #[test]
    fn every_finding_arrives_in_the_report() {
        let mut tally = Tally::default();
        tally.add(|| "a case".into());
        let findings = Findings {
            lost: tally.clone(),
            resurrected: tally.clone(),
            altered: tally.clone(),
            wrong_answers: tally.clone(),
            wrong_sums: tally.clone(),
            lost_leases: tally.clone(),
            missed_events: tally.clone(),
            repeated_events: tally.clone(),
            wrong_events: tally,
        };
        let mut report = Report::default();
        report.judge(&findings);
        let broken: u64 = report.promises().iter().map(|promise| promise.broken).sum();
        assert_eq!((broken, report.complaints.len()), (9, 9));
    }
}
