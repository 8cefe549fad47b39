//! The clients and the judgement are themselves tried on a store that nobody migrates.

use super::*;
use crate::api::{ApiConfig, Identity, Member, Members, serve};
use crate::cli::demo::ledger::Ledger;
use crate::cli::demo::meter::{Meter, Period};
use crate::cli::demo::seed::{Survey, seed};
use crate::metrics::Metrics;
use crate::store::memory::Memory;
use crate::store::old::AsOld;
use crate::store::{Guard, NewStore as _};

struct Nobody;

impl Members for Nobody {
    fn members(&self) -> Vec<Member> {
        Vec::new()
    }
}

/// Serves `store` on a free port.
async fn served(store: &Memory, tasks: &Tasks) -> Address {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let identity = Identity {
        cluster_id: 1,
        member_id: 2,
    };
    let config = ApiConfig::new(identity, Arc::new(Nobody));
    let (handle, metrics) = (store.guarded(Guard::None), Arc::new(Metrics::default()));
    let stop = tasks.token().clone().cancelled_owned();
    tasks.spawn("api", async move {
        serve(listener, config, handle, metrics, stop)
            .await
            .unwrap();
    });
    Address {
        endpoints: vec![endpoint],
        account: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_store_that_works_nothing_is_found_and_on_one_with_a_fault_it_is() {
    let store = Memory::new();
    seed(store.guarded(Guard::None), 1_000, &|_, _| {})
        .await
        .unwrap();
    let old = AsOld::new(store.guarded(Guard::None), "it".into());
    let survey = Survey::of(&old).await.unwrap();
    let show = Arc::new(Show {
        ledger: Ledger::open(survey.revision, survey.keys.clone()),
        meter: Meter::new(),
        props: survey.props(true),
    });
    let tasks = Tasks::new();
    let troupe = Troupe::of(&show);
    // Two acts with a break, in which the clients move to another address.
    let first = troupe.perform(served(&store, &tasks).await, &tasks);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let troupe = first.end().await.unwrap();
    show.meter.begin(Period::After);
    let second = troupe.perform(served(&store, &tasks).await, &tasks);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (findings, finals) = second.finale().await.unwrap();
    let readings = show.meter.read();
    assert_eq!(findings, Findings::default());
    assert_eq!((readings.failed, readings.failures.clone()), (0, vec![]));
    assert!(readings.operations(Period::Before) > 100);
    assert!(readings.operations(Period::After) > 100);
    let entries = show.ledger.entries().clone();
    assert!(
        entries
            .watches
            .iter()
            .all(|watched| !watched.events.is_empty())
    );
    assert!(!entries.expiring.is_empty() && !entries.held.is_empty());
    // The same ledger against contents in which a key is missing.
    let mut worse = finals.clone();
    let victim = worse.keys.keys().next().cloned().unwrap();
    worse.keys.remove(&victim);
    assert_eq!(check::check(&entries, &worse).lost.count, 1);
    tasks.shut_down(Duration::from_secs(5)).await;
}
