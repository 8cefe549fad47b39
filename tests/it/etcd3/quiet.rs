//! What etcd has to do for the proxy besides what clients ask for.

use crate::support::etcd::http_get;
use crate::support::{Etcd, Segue};

/// How many events etcd has sent to watchers.
async fn events_sent(etcd: &Etcd) -> u64 {
    let metrics = http_get(etcd.port(), "/metrics").await.unwrap();
    let figure = metrics
        .lines()
        .find_map(|line| line.strip_prefix("etcd_debugging_mvcc_events_total "));
    figure.unwrap().parse().unwrap()
}

#[tokio::test]
async fn while_no_client_watches_writes_make_no_events() {
    // The mirror watches everything.
    let (old, new) = tokio::join!(Etcd::start(), Etcd::start());
    let segue = Segue::start(["--old", &old.url(), "--new", &new.url(), "--no-mirror"]).await;
    segue
        .until("verified", |status| status["verified"] == true)
        .await;
    let mut client = etcd_client::Client::connect([segue.endpoint()], None)
        .await
        .unwrap();
    for number in 0..100 {
        client.put(format!("key/{number}"), "", None).await.unwrap();
    }
    // Only the switch key is watched, which tells all members at once.
    client.put("segue/switch", "normal", None).await.unwrap();
    segue
        .until("normal", |status| status["phase"] == "normal")
        .await;
    let sent = events_sent(&new).await;
    assert!(
        sent <= 2,
        "{sent} events for 100 writes that nobody watches"
    );
}
