//! Several proxies on one database: they are one store, whatever happens to their connections.

use std::time::Duration;

use super::assert_good;
use super::load::{Crew, Load};
use super::old::fill_v3;
use crate::history::History;
use crate::support::segue::Segue;
use crate::support::{MariaDb, Postgres, mariadb, postgres};

/// Keys to begin with, and those that clients work on.
const KEYS: usize = 300;

/// Clients that read, write and swap; with those that count and do other things about 64.
const MIXERS: u64 = 46;

/// Requests that have to be done before the next thing happens.
const ROUND: usize = 1500;

/// What can be done to a database server.
trait Server: Sized {
    /// A server of its own, and the URL of a store that is to be in it.
    async fn with_a_store() -> (Self, String);

    /// Ends the connections of all proxies from the server's side.
    async fn cut(&self, url: &str);

    /// Kills the server and starts it anew.
    async fn restart(&mut self);
}

impl Server for Postgres {
    async fn with_a_store() -> (Self, String) {
        let server = Self::start().await;
        let url = server.schema();
        (server, url)
    }

    async fn cut(&self, url: &str) {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                      WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
        postgres::run(url, others).await;
    }

    async fn restart(&mut self) {
        self.restart().await;
    }
}

impl Server for MariaDb {
    async fn with_a_store() -> (Self, String) {
        let server = Self::start().await;
        let url = server.database().await;
        (server, url)
    }

    async fn cut(&self, url: &str) {
        let list = "SELECT ID FROM information_schema.PROCESSLIST \
                    WHERE ID <> CONNECTION_ID() AND USER = SUBSTRING_INDEX(USER(), '@', 1)";
        for id in mariadb::run(url, list).await {
            // It may have ended by itself.
            mariadb::try_run(url, &format!("KILL {id}")).await.ok();
        }
    }

    async fn restart(&mut self) {
        self.restart().await;
    }
}

/// What happens while the clients are at work.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Nothing,
    CutConnections,
    Restarts,
}

async fn three_proxies_are_one_store(mut server: impl Server, url: String, trouble: Trouble) {
    let start = || Segue::start(["--new", url.as_str()]);
    let proxies: [Segue; 3] = tokio::join!(start(), start(), start()).into();
    let (base, initial) = fill_v3(&proxies[0].endpoint(), KEYS).await;
    let endpoints: Vec<_> = proxies.iter().map(Segue::endpoint).collect();
    let crew = Crew {
        mixers: MIXERS,
        seed: 0,
        restless: false,
    };
    let load = Load::start_crew(&endpoints, base, KEYS, crew).await;
    for _ in 0..4 {
        load.round(ROUND).await;
        match trouble {
            Trouble::Nothing => {}
            Trouble::CutConnections => {
                for _ in 0..5 {
                    server.cut(&url).await;
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
            }
            Trouble::Restarts => server.restart().await,
        }
    }
    load.round(ROUND).await;
    let recorder = load.recorder.clone();
    let history = load.finish(&endpoints[1], base, initial).await;
    let (done, failed, unknown) = recorder.counts();
    println!("{done} requests, {failed} failed, {unknown} cut off");
    if trouble == Trouble::Nothing {
        assert_eq!((failed, unknown), (0, 0), "no request may fail");
    }
    assert_good(&history);
    assert_gapless(&history);
}

/// Every revision is a change that the watcher of everything saw.
fn assert_gapless(history: &History) {
    let all = history.watches.iter().find(|watch| watch.prefix == "/");
    let batches = &all.expect("somebody watches everything").batches;
    let events = batches.iter().flat_map(|batch| &batch.events);
    let mut revisions: Vec<_> = events.map(|event| event.revision).collect();
    revisions.dedup();
    let last = revisions.last().copied().unwrap_or_default();
    let expected: Vec<_> = (history.base + 1..=last).collect();
    let gap = revisions
        .iter()
        .zip(&expected)
        .find(|(is, should)| is != should);
    assert_eq!(gap, None, "a revision that nothing happened in");
    assert_eq!(revisions.len(), expected.len());
}

macro_rules! on {
    ($module:ident: $server:ident) => {
        mod $module {
            use super::*;

            async fn check(trouble: Trouble) {
                let (server, url) = <$server as Server>::with_a_store().await;
                three_proxies_are_one_store(server, url, trouble).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn three_proxies_are_one_store_for_all_clients() {
                check(Trouble::Nothing).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn three_proxies_are_one_store_when_connections_are_cut() {
                check(Trouble::CutConnections).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn three_proxies_are_one_store_when_the_server_is_killed() {
                check(Trouble::Restarts).await;
            }
        }
    };
}

on!(on_postgres: Postgres);
on!(on_mariadb: MariaDb);
