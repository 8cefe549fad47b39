//! Explores the model of the protocol in `tests/model/`.
//!
//! `SEGUE_MODEL_REQUESTS=1 cargo test --test model` gives each member one request more than usual: a
//! run of many minutes and some gigabytes. `-- --nocapture` shows the figures.

use std::time::Instant;

use segue_model::{Rule, SCENARIOS, explore, explore_without};

#[test]
fn nothing_goes_wrong_in_any_order_of_steps() {
    let more = std::env::var("SEGUE_MODEL_REQUESTS")
        .map_or(0, |more| more.parse().expect("a number of requests"));
    let mut total = 0;
    for scenario in SCENARIOS {
        let begun = Instant::now();
        let explored = explore(scenario, more);
        println!(
            "{}: {} states, {} steps deep, {:.1} s",
            scenario.name,
            explored.states,
            explored.depth,
            begun.elapsed().as_secs_f32()
        );
        if let Some(problem) = explored.problem {
            assert!(!problem.steps.is_empty(), "never: {}", problem.property);
            panic!("not: {}\n{}", problem.property, problem.steps.join("\n"));
        }
        total += explored.states;
    }
    println!("{total} states in all");
}

#[test]
fn without_any_one_of_the_rules_something_goes_wrong() {
    for rule in Rule::ALL {
        let explored = explore_without(*rule);
        let problem = explored.problem.filter(|problem| !problem.steps.is_empty());
        let problem = problem.unwrap_or_else(|| panic!("nothing goes wrong without {rule:?}"));
        let count = problem.steps.len();
        println!(
            "without {rule:?}, not: {} ({count} steps)",
            problem.property
        );
        for step in problem.steps {
            println!("    {step}");
        }
    }
}
