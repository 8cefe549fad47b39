//! Storms: three proxies, real stores, clients at work, an operator who goes through the phases; and
//! all the time processes are killed and stopped, and connections cut, slowed down and held up. When
//! it is over, the clients' history has to keep every promise.
//!
//! All choices follow from a seed, which is told with what goes wrong. The same seed gives the same
//! storm, but not to the millisecond. `./test storm --minutes N --seed S` goes on for longer.

mod operator;
mod parties;
mod plan;
mod server;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use self::operator::Operator;
use self::parties::Parties;
use self::plan::Plan;
use crate::history::Outcome;
use crate::support::eventually;
use crate::under_load::assert_good;
use crate::under_load::load::{Crew, Load};
use crate::under_load::old::fill_v3;

/// How long the faults of one storm go on.
const LENGTH: Duration = Duration::from_secs(15);

/// How long those of the longer ones do.
const LONG: Duration = Duration::from_secs(40);

/// How long everything else may take: starting servers, recovering, checking.
const ALLOWANCE: Duration = Duration::from_mins(3);

/// Keys to begin with.
const KEYS: usize = 300;

/// With those that count, list, write two keys and hold leases: sixteen clients.
const MIXERS: u64 = 9;

async fn storm(seed: u64, length: Duration) {
    let plan = Plan::new(seed, length);
    println!("{plan}");
    let storm = tokio::time::timeout(length + ALLOWANCE, blow(&plan));
    storm.await.expect("everybody recovers from a storm");
}

async fn blow(plan: &Plan) {
    let mut parties = Parties::start(plan).await;
    let (base, initial) = fill_v3(&parties.proxies[0].endpoint(), KEYS).await;
    let endpoints = parties.endpoints();
    let crew = Crew {
        mixers: MIXERS,
        seed: plan.seed,
        restless: true,
    };
    let load = Load::start_crew(&endpoints, base, KEYS, crew).await;
    load.round(100).await;

    let mut operator = Operator::of(parties.admins());
    tokio::join!(parties.suffer(plan), operator.carry_out(&plan.transitions));
    eventually("all proxies come to the same epoch", async || {
        // One that has ended by itself tells why.
        parties.assert_well();
        let agreed = operator.all_agree().await;
        agreed.map_err(|told| (told, parties.last_words()))
    })
    .await;
    load.round(500).await;

    let recorder = load.recorder.clone();
    let history = load.finish(&endpoints[0], base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests, {failed} failed, {unknown} cut off or given up");
    let watchers: HashSet<_> = history.watches.iter().map(|log| &log.name).collect();
    let anew = history.watches.len() - watchers.len();
    println!("{anew} times a watcher had to begin anew");
    for operation in &history.operations {
        if let Outcome::Failed(what) | Outcome::Unknown(what) = &operation.outcome {
            let code = what.to_lowercase();
            let known = [
                "unavailable",
                "transport error",
                // Of the client's own connection.
                "h2 protocol error",
                "deadline",
                "no answer",
                "cancel",
                "lease not found",
            ];
            assert!(
                known.iter().any(|known| code.contains(known)),
                "{operation:?}"
            );
        }
    }
    assert_good(&history);
    parties.assert_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_between_postgres_and_etcd_breaks_no_promise() {
    storm(1, LENGTH).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_between_etcd_and_mariadb_breaks_no_promise() {
    storm(6, LENGTH).await;
}

/// The settings come from the environment; see `./test`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "as long as one likes: ./test storm --minutes N --seed S"]
async fn storms_for_as_long_as_one_likes_break_no_promise() {
    let number = |name, otherwise| {
        std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let length = Duration::from_secs(number("STORM_MINUTES", 1) * 60);
    let first = number("STORM_SEED", 1);
    let begun = Instant::now();
    for seed in first.. {
        storm(seed, LONG.min(length)).await;
        if begun.elapsed() >= length {
            println!("seeds {first} to {seed}: every promise was kept");
            return;
        }
    }
}
