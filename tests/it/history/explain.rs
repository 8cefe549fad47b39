//! What is told of a history that breaks promises: enough to look for the reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::check::Violation;
use super::{Call, History, Operation, Outcome};

/// Violations that are told in full.
const TOLD: usize = 20;

/// The violations, who watched when, and all that happened to the key that the first of them is about.
pub fn explain(history: &History, violations: &[Violation]) -> String {
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    for violation in violations {
        *rules.entry(format!("{:?}", violation.rule)).or_default() += 1;
    }
    let mut text = format!("{} violations: {rules:?}\n", violations.len());
    for violation in violations.iter().take(TOLD) {
        writeln!(text, "  {violation:?}").unwrap();
    }
    for watch in &history.watches {
        let events: usize = watch.batches.iter().map(|batch| batch.events.len()).sum();
        writeln!(
            text,
            "  {} watched {:?} from {} through {}: {events} events",
            watch.name, watch.prefix, watch.start, watch.through
        )
        .unwrap();
    }
    let key = violations.iter().find_map(|violation| {
        let mut keys = history.keys().into_iter();
        keys.find(|key| violation.what.contains(&format!("{key:?}")))
    });
    if let Some(key) = key {
        writeln!(text, "  all about {key}, in the order of revisions:").unwrap();
        let mut story = history.about(&key);
        story.sort();
        for (revision, line) in story {
            writeln!(text, "    {revision}: {line}").unwrap();
        }
    }
    text
}

impl History {
    fn keys(&self) -> Vec<String> {
        let batches = self.watches.iter().flat_map(|watch| &watch.batches);
        let events = batches.flat_map(|batch| &batch.events);
        let mut keys: Vec<_> = events.map(|event| event.key.clone()).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    fn about(&self, key: &str) -> Vec<(i64, String)> {
        let mut story = Vec::new();
        for watch in &self.watches {
            for batch in &watch.batches {
                for event in batch.events.iter().filter(|event| event.key == key) {
                    let line = format!("{} at {:?}: {event:?}", watch.name, batch.at);
                    story.push((event.revision, line));
                }
            }
        }
        let mut shown_before = None;
        for operation in &self.operations {
            let revision = match &operation.outcome {
                Outcome::Done(reply) => reply.revision,
                Outcome::Failed(_) | Outcome::Unknown(_) => i64::MAX,
            };
            let wrote = super::check::written(&operation.call)
                .iter()
                .any(|(written, _)| *written == key);
            let asked = matches!(&operation.call, Call::Get { key: asked } if asked == key);
            let shown = match &operation.outcome {
                Outcome::Done(reply) => reply.pairs.iter().find(|pair| pair.key == key),
                Outcome::Failed(_) | Outcome::Unknown(_) => None,
            };
            // Clients read the same again and again.
            let news = shown.is_some() && shown != shown_before;
            shown_before = shown.or(shown_before);
            if wrote || (asked && shown.is_none()) || news {
                story.push((revision, brief(operation, shown)));
            }
        }
        story
    }
}

/// The operation without the other pairs that it shows.
fn brief(operation: &Operation, shown: Option<&super::Pair>) -> String {
    let Operation {
        client,
        start,
        end,
        call,
        outcome,
    } = operation;
    let outcome = match outcome {
        Outcome::Done(reply) => format!("done at {} ({})", reply.revision, reply.changed),
        other => format!("{other:?}"),
    };
    format!("client {client}, {start:?} to {end:?}: {call:?}: {outcome}, shown {shown:?}")
}
