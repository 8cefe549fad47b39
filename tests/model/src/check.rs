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
    /// The way to where it is broken; none if it was never reached.
    pub steps: Vec<String>,
}

/// Explores `scenario` to the end, with all rules. Each member has `more` requests than usual.
#[must_use]
pub fn explore(scenario: &Scenario, more: u8) -> Explored {
    let mut scenario = *scenario;
    for (_, requests) in &mut scenario.asks {
        *requests += more;
    }
    let model = Migration {
        scenario,
        rules: Rules::ALL,
        symmetry: true,
    };
    run(&model, None)
}

/// Explores without `rule` until something is broken, in as few steps as it takes.
#[must_use]
pub fn explore_without(rule: Rule) -> Explored {
    let model = Migration {
        scenario: *in_need_of(rule),
        rules: Rules::without(rule),
        // Actors keep their names in the steps that are shown.
        symmetry: false,
    };
    // The checker looks at many states before it asks whether it has found enough, so that what it
    // finds is not the nearest unless it may go no farther.
    for depth in 1.. {
        let explored = run(&model, Some(depth));
        let found = explored.problem.as_ref();
        if found.is_some_and(|found| !found.steps.is_empty()) || explored.depth < depth {
            return explored;
        }
    }
    unreachable!("depths do not end")
}

fn run(model: &Migration, depth: Option<usize>) -> Explored {
    let checker = model
        .clone()
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures);
    let checker = match depth {
        Some(depth) => checker.target_max_depth(depth),
        None => checker,
    };
    let checker = checker.spawn_bfs().join();
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
