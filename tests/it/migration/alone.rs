//! A proxy that serves a store alone, in which somebody begins something.

use std::sync::Arc;
use std::time::Duration;

use segue::config::Settings;
use segue::migration::phase::Phase;
use segue::server::{self, Server};
use segue::store::{EMPTYING, NewStore, RecordTxn, RecordWrite};

use super::fleet::{Stores, TIMING};
use crate::support::eventually;

async fn server_over(stores: server::Stores) -> Server {
    let anywhere = || Some("127.0.0.1:0".to_owned());
    let settings = Settings {
        new: Some("memory:".into()),
        listen: anywhere(),
        admin: anywhere(),
        ..Settings::default()
    };
    let config = settings.complete().unwrap();
    Server::over(stores, config, TIMING).await.unwrap()
}

async fn alone(new: &Arc<dyn NewStore>) -> Server {
    let new = new.clone();
    server_over(server::Stores { old: None, new }).await
}

/// The proxy gives up, and says why.
async fn gives_up(server: Server) {
    let why = tokio::time::timeout(Duration::from_secs(30), server.gone()).await;
    let why = why.expect("it gives up");
    assert!(why.contains("begun in the store"), "{why}");
    assert_eq!(server.stop().await, Vec::<String>::new());
}

/// It does not, for as long as many looks take.
async fn serves_on(server: &Server) {
    let why = tokio::time::timeout(TIMING.look * 10, server.gone()).await;
    assert!(why.is_err(), "{why:?}");
}

fn record(name: &str) -> RecordTxn {
    RecordTxn {
        writes: vec![RecordWrite {
            name: name.into(),
            value: Some("true".into()),
        }],
        ..RecordTxn::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gives_up_when_a_migration_or_a_copy_begins_there() {
    for offline in [false, true] {
        let stores = Stores::in_memory().await;
        stores.fill(3).await;
        let server = alone(&stores.new).await;
        serves_on(&server).await;
        let member = stores
            .join_as("a", |options| options.offline = offline)
            .await
            .unwrap();
        gives_up(server).await;
        member.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gives_up_when_the_store_is_being_emptied() {
    let stores = Stores::in_memory().await;
    // What was there before tells of nothing that begins.
    assert!(stores.new.write_records(record("before")).await.unwrap());
    let server = alone(&stores.new).await;
    serves_on(&server).await;
    assert!(stores.new.write_records(record(EMPTYING)).await.unwrap());
    gives_up(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_migration_that_is_complete_it_gives_up_when_the_next_one_begins() {
    let stores = Stores::in_memory().await;
    stores.fill(3).await;
    let server = server_over(server::Stores {
        old: Some(stores.old.clone()),
        new: stores.new.clone(),
    })
    .await;
    let controller = server.controller.clone().unwrap();
    for phase in [Phase::Normal, Phase::Settled] {
        eventually("it goes on", async || match controller.go_to(phase).await {
            Ok(Ok(())) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    controller.wait_until(|view| view.over).await;
    serves_on(&server).await;
    let other = Stores::to(stores.new.clone()).await;
    let member = other
        .join_as("b", |options| options.allow_nonempty = true)
        .await
        .unwrap();
    gives_up(server).await;
    member.kill().await;
}
