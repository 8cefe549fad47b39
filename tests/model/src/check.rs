//! Runs the checker.

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::Migration;
use crate::rules::{Rule, Rules};
use crate::scenario::Scenario;
use crate::scenarios::in_need_of;

/// How an exploration went.
#[derive(Debug)]
pub struct Explored {
    /// States that differ, actors of one kind not told apart.
    pub states: usize,
    /// Steps to the farthest of them.
    pub depth: usize,
    /// What must always hold and did not, with the steps to it; what must be reached and was not.
    pub problem: Option<Problem>,
}

/// What was found.
#[derive(Debug)]
pub struct Problem {
    /// The property.
    pub property: &'static str,
    /// The shortest way to where it is broken; none if it was never reached.
    pub steps: Vec<String>,
}

/// Explores `scenario` to the end, with all rules. Each member has `more` requests than usual.
#[must_use]
pub fn explore(scenario: &Scenario, more: u8) -> Explored {
    let mut scenario = *scenario;
    for (_, requests) in &mut scenario.asks {
        *requests += more;
    }
    run(&Migration {
        scenario,
        rules: Rules::ALL,
        symmetry: true,
    })
}

/// Explores without `rule` until something is broken.
#[must_use]
pub fn explore_without(rule: Rule) -> Explored {
    run(&Migration {
        scenario: *in_need_of(rule),
        rules: Rules::without(rule),
        // Actors keep their names in the steps that are shown.
        symmetry: false,
    })
}

fn run(model: &Migration) -> Explored {
    let checker = model
        .clone()
        .checker()
        // One after the other, so that the first thing found is the nearest one.
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let mut found = checker.discoveries();
    let broken = model.properties().into_iter().find_map(|property| {
        let is_failure = property.expectation.discovery_is_failure();
        match found.remove(property.name) {
            Some(path) if is_failure => Some(Problem {
                property: property.name,
                steps: path
                    .into_actions()
                    .iter()
                    .map(|action| format!("{action:?}"))
                    .collect(),
            }),
            None if !is_failure => Some(Problem {
                property: property.name,
                steps: Vec::new(),
            }),
            _ => None,
        }
    });
    Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        problem: broken,
    }
}
