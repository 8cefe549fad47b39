//! Locks whose requests end in other ways than they should.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, LeaseGrantOptions, LockOptions};
use segue::store::Store as _;
use segue::store::memory::Memory;
use segue::types::{Range, RangeReply};
use tokio::time::timeout;

use super::faulty::Faulty;
use crate::support::api::Api;
use crate::support::eventually;

/// A client with leases of these numbers.
async fn client(api: &Api, leases: &[i64]) -> Client {
    let mut client = Client::connect([api.endpoint()], None).await.unwrap();
    for id in leases {
        let options = LeaseGrantOptions::new().with_id(*id);
        client.lease_grant(600, Some(options)).await.unwrap();
    }
    client
}

/// Asks for the lock `l` and waits for it for so long. Answers whether it was given.
async fn lock(client: &Client, lease: i64, within: Duration) -> bool {
    let options = LockOptions::new().with_lease(lease);
    let mut client = client.clone();
    match timeout(within, client.lock("l", Some(options))).await {
        Ok(locked) => !locked.unwrap().key().is_empty(),
        Err(_) => false,
    }
}

async fn read(store: &Memory, key: &'static str) -> RangeReply {
    store.range(Range::key(key)).await.unwrap().reply
}

const SOON: Duration = Duration::from_secs(20);
/// Enough for an answer, and no more than a test may wait for what must not come.
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn who_has_a_lock_keeps_it_when_he_asks_for_it_again_in_vain() {
    let store = Faulty::new();
    let api = Api::start(store.clone()).await;
    let client = client(&api, &[1, 2]).await;
    assert!(lock(&client, 1, SOON).await);
    // He is known by his key, and then goes away before anything else is read.
    store.freeze();
    assert!(!lock(&client, 1, SHORT).await);
    store.thaw();
    assert!(!lock(&client, 2, SHORT).await);
    assert_eq!(read(&store.inner, "l/1").await.count, 1);
}

#[tokio::test]
async fn who_waits_keeps_his_place_when_a_proxy_ends() {
    let store = Arc::new(Memory::new());
    let (first, second) = tokio::join!(Api::start(store.clone()), Api::start(store.clone()));
    let holder = client(&second, &[1, 2]).await;
    assert!(lock(&holder, 1, SOON).await);
    let waits = {
        let mut client = client(&first, &[]).await;
        segue::tasks::spawn_owned(async move {
            let options = LockOptions::new().with_lease(2);
            client.lock("l", Some(options)).await
        })
    };
    eventually("he is in the queue", async || {
        let found = read(&store, "l/2").await;
        if found.count == 1 { Ok(()) } else { Err(found) }
    })
    .await;
    let place = read(&store, "l/2").await.kvs.pop();
    first.stop().await;
    waits.await.unwrap().unwrap_err();
    assert_eq!(read(&store, "l/2").await.kvs.pop(), place);
}
