//! The servers that tests start are real, and do what the tests' helpers say.

use crate::support::etcd::http_get;
use crate::support::{Etcd, eventually};

#[tokio::test]
async fn an_etcd_can_be_killed_and_restarted_with_its_data() {
    let mut etcd = Etcd::start_v2().await;
    let port = etcd.port();
    let tree = http_get(port, "/v2/keys/").await.unwrap();
    assert!(tree.contains("X-Etcd-Cluster-Id"), "{tree}");
    let cluster = |answer: &str| {
        answer
            .lines()
            .find(|line| line.starts_with("X-Etcd-Cluster-Id"))
            .map(str::to_owned)
    };
    etcd.kill();
    assert!(http_get(port, "/health").await.is_err());
    etcd.restart().await;
    let again = http_get(port, "/v2/keys/").await.unwrap();
    assert_eq!(cluster(&again), cluster(&tree));
}

#[tokio::test]
async fn a_paused_etcd_answers_when_it_is_resumed() {
    let etcd = Etcd::start().await;
    etcd.pause();
    let asked = tokio::time::timeout(
        std::time::Duration::from_millis(200),
        http_get(etcd.port(), "/health"),
    );
    assert!(asked.await.is_err(), "a stopped process answered");
    etcd.resume();
    eventually("the server answers", async || {
        http_get(etcd.port(), "/health").await
    })
    .await;
}
