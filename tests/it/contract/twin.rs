//! Random requests on a store and on the reference model: every answer and every event is the same.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use segue::store::memory::Memory;
use segue::store::{RequestError, Store, StoreError, Watch};
use segue::types::{KeyRange, Put, Revision};
use tokio::runtime::Runtime;

use super::Fixture;
use super::dsl::Watched;
use super::stores::{Fixed, Kind, claiming, overlay, plain};
use crate::random::{self, Outcome, Request};

/// Requests in one sequence, at most.
const REQUESTS_MAX: usize = 60;

#[test]
fn sqlite_answers_as_the_reference_model() {
    check(60, || plain(Kind::Sqlite).into_inner());
}

#[test]
fn sqlite_with_claims_answers_as_the_reference_model() {
    check(60, || claiming(Kind::Sqlite).into_inner());
}

#[test]
fn postgres_answers_as_the_reference_model() {
    check(25, || plain(Kind::Postgres).into_inner());
}

#[test]
fn postgres_with_claims_answers_as_the_reference_model() {
    check(15, || claiming(Kind::Postgres).into_inner());
}

#[test]
fn mariadb_answers_as_the_reference_model() {
    check(25, || plain(Kind::MariaDb).into_inner());
}

#[test]
fn mariadb_with_claims_answers_as_the_reference_model() {
    check(15, || claiming(Kind::MariaDb).into_inner());
}

#[test]
fn memory_with_claims_answers_as_without() {
    check(100, || claiming(Kind::Memory).into_inner());
}

#[test]
fn etcd_answers_as_the_reference_model() {
    check(8, || plain(Kind::Etcd).into_inner());
}

#[test]
fn the_overlay_answers_as_the_reference_model() {
    check(60, || overlay(Kind::Memory, Kind::Sqlite).into_inner());
}

/// Runs random sequences, each on a fresh store of `fixture`.
fn check(cases: u32, fixture: fn() -> Fixed) {
    let runtime = Runtime::new().unwrap();
    let config = Config {
        cases,
        max_shrink_iters: 4 * cases,
        failure_persistence: None,
        ..Config::default()
    };
    let requests = vec(random::request(), 0..REQUESTS_MAX);
    let outcome = TestRunner::new(config).run(&requests, |requests| {
        let difference = runtime.block_on(difference(&fixture(), requests));
        difference.map_err(TestCaseError::fail)
    });
    if let Err(difference) = outcome {
        panic!("{difference}");
    }
}

/// The first difference, in words.
async fn difference(fixture: &dyn Fixture, requests: Vec<Request>) -> Result<(), String> {
    let (store, twin) = (fixture.store().await, Arc::new(Memory::new()));
    let begin = align(&*store, &*twin).await;
    let (mut live, mut expected_live) = (watch(&*store, None).await, watch(&*twin, None).await);
    let mut now = begin;
    let mut readable = begin;
    for request in requests {
        let request = request.at(now, begin);
        let told = format!("{request:?}");
        let compacts = match request {
            Request::Compact(at) => Some(at),
            _ => None,
        };
        let expected = comparable(request.clone().carry_out(&*twin).await);
        let seen = comparable(request.carry_out(&*store).await);
        if seen != expected {
            return Err(format!(
                "{told}\nis answered {seen:?}\nand not {expected:?}"
            ));
        }
        let Ok((revision, _)) = expected.0 else {
            continue;
        };
        readable = compacts.unwrap_or(readable);
        // Read at once: what came before a change may be compacted later.
        if revision > now {
            let (seen, expected) = (live.batch().await, expected_live.batch().await);
            if seen != expected {
                return Err(format!("{told}\nis seen as {seen:?}\nand not {expected:?}"));
            }
            now = revision;
        }
    }
    live.assert_quiet(now).await;
    let start = Some(readable.next());
    let (mut past, mut expected_past) = (watch(&*store, start).await, watch(&*twin, start).await);
    let mut at = readable;
    while at < now {
        let (seen, expected) = (past.batch().await, expected_past.batch().await);
        if seen != expected {
            return Err(format!("the past is {seen:?}\nand not {expected:?}"));
        }
        at = expected.revision;
    }
    past.assert_quiet(now).await;
    Ok(())
}

/// Brings both to one revision, with changes of a key that no request sees.
async fn align(store: &dyn Store, twin: &dyn Store) -> Revision {
    let revision = async |store: &dyn Store| store.status().await.unwrap().revision;
    let goal = revision(store).await.max(revision(twin).await);
    for store in [store, twin] {
        while revision(store).await < goal {
            store.put(Put::new("segue/step", "")).await.unwrap();
        }
    }
    goal
}

async fn watch(store: &dyn Store, start: Option<Revision>) -> Watched {
    let request = Watch {
        prev_kv: true,
        ..Watch::of(KeyRange::all(), start)
    };
    Watched(store.watch(request).await.unwrap())
}

/// Without the revision that a "compacted" names, which etcd keeps to itself.
fn comparable(outcome: Outcome) -> Outcome {
    match outcome.0 {
        Err(StoreError::Request(RequestError::Compacted(_))) => {
            Outcome(Err(RequestError::Compacted(Revision(0)).into()))
        }
        _ => outcome,
    }
}
