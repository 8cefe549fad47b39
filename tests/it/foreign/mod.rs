//! Somebody writes to the old store past the proxies while a migration is under way.

mod tables;

use etcd_client::{Client, EventType, PutOptions, WatchOptions};
use serde_json::Value;

use crate::support::segue::Segue;
use crate::support::{Etcd, V2, eventually};

const KEYS: usize = 300;

/// Who writes to the old store itself.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Direct {
    V2(V2),
    V3(Client),
}

impl Direct {
    async fn put(&mut self, key: &str, value: &str) {
        match self {
            Self::V2(v2) => v2.put(key, value).await,
            Self::V3(client) => drop(client.put(key, value, None).await.unwrap()),
        }
    }

    async fn put_ttl(&mut self, key: &str, ttl_s: u32) {
        match self {
            Self::V2(v2) => v2.put_ttl(key, "short", ttl_s).await,
            Self::V3(client) => {
                let lease = client.lease_grant(ttl_s.into(), None).await.unwrap().id();
                let options = PutOptions::new().with_lease(lease);
                client.put(key, "short", Some(options)).await.unwrap();
            }
        }
    }

    async fn delete(&mut self, key: &str) {
        match self {
            Self::V2(v2) => v2.delete(key).await,
            Self::V3(client) => drop(client.delete(key, None).await.unwrap()),
        }
    }

    async fn has(&mut self, key: &str) -> bool {
        match self {
            Self::V2(v2) => {
                let path = format!("/v2/keys{key}?quorum=true");
                v2.send(http::Method::GET, &path, "").await.0.is_success()
            }
            Self::V3(client) => !client.get(key, None).await.unwrap().kvs().is_empty(),
        }
    }

    async fn fill(&mut self) {
        for number in 0..KEYS {
            self.put(&key(number), "old").await;
        }
    }
}

fn key(number: usize) -> String {
    format!("/k/{number:04}")
}

async fn connect(endpoint: String) -> Client {
    Client::connect([endpoint], None).await.unwrap()
}

async fn get(client: &mut Client, key: &str) -> Option<String> {
    let answer = client.get(key, None).await.unwrap();
    let kv = answer.kvs().first()?;
    Some(kv.value_str().unwrap().to_owned())
}

/// Waits until so many foreign changes were seen, followed, and found in conflict.
async fn counted(segue: &Segue, changes: u64, followed: u64, conflicts: u64) -> Value {
    let expected = [changes, followed, conflicts];
    let status = segue
        .until("the foreign changes are counted", |status| {
            status["foreign"]["changes"].as_u64() >= Some(changes)
        })
        .await;
    let foreign = &status["foreign"];
    let actual = ["changes", "followed", "conflicts"].map(|name| foreign[name].as_u64().unwrap());
    assert_eq!(actual, expected, "{foreign:#}");
    status
}

async fn is_only_told(old: &str, direct: &mut Direct) {
    direct.fill().await;
    let dir = tempfile::tempdir().unwrap();
    let new = format!("sqlite:{}", dir.path().join("new.db").display());
    let segue = Segue::start(["--old", old, "--new", &new]).await;
    let status = segue
        .until("verified", |status| status["verified"] == true)
        .await;
    assert_eq!(status["foreign"]["changes"], 0, "{status}");
    direct.put(&key(1), "foreign").await;
    direct.delete(&key(2)).await;
    let status = counted(&segue, 2, 0, 0).await;
    let foreign = &status["foreign"];
    assert_eq!(foreign["first"]["key"], key(1), "{foreign}");
    assert_eq!(foreign["latest"]["key"], key(2), "{foreign}");
    assert!(foreign["latest"]["seen_ms"].as_u64() > Some(0), "{foreign}");
    let text = segue.run(["status"]).await.out;
    assert!(
        text.contains("2 changes in the old store past the proxies"),
        "{text}"
    );
    assert!(text.contains(&key(1)) && text.contains(&key(2)), "{text}");
    let mut client = connect(segue.endpoint()).await;
    assert_eq!(get(&mut client, &key(1)).await.as_deref(), Some("old"));
    assert_eq!(get(&mut client, &key(2)).await.as_deref(), Some("old"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_etcd_v2_is_counted_and_named() {
    let old = Etcd::start_v2().await;
    is_only_told(&old.v2_url(), &mut Direct::V2(V2::of(&old))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_etcd_v3_is_counted_and_named() {
    let old = Etcd::start().await;
    let client = connect(old.endpoint()).await;
    is_only_told(&old.url(), &mut Direct::V3(client)).await;
}

async fn is_followed(old: &str, new: &str, direct: &mut Direct) {
    direct.fill().await;
    direct.put_ttl("/k/short", 8).await;
    let args = ["--old", old, "--new", new, "--rate-keys", "1", "--follow"];
    let mut segue = Segue::start(args).await;
    let watched = |status: &Value| status["foreign"]["watched"] == true;
    let status = segue.until("watched", watched).await;
    let base = status["base"].as_i64().unwrap();
    let mut client = connect(segue.endpoint()).await;
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(base + 1);
    let mut events = client.watch("/", Some(options)).await.unwrap();

    // Not copied yet: changed, gone, and new.
    direct.put(&key(250), "foreign").await;
    direct.delete(&key(251)).await;
    direct.put("/new", "foreign").await;
    counted(&segue, 3, 3, 0).await;
    assert_eq!(
        get(&mut client, &key(250)).await.as_deref(),
        Some("foreign")
    );
    assert_eq!(get(&mut client, &key(251)).await, None);
    assert_eq!(get(&mut client, "/new").await.as_deref(), Some("foreign"));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let message = events.message().await.unwrap().unwrap();
        for event in message.events() {
            let kv = event.kv().unwrap();
            assert!(kv.mod_revision() > base, "{event:?}");
            seen.push((event.event_type(), kv.key_str().unwrap().to_owned()));
        }
    }
    let expected = [
        (EventType::Put, key(250)),
        (EventType::Delete, key(251)),
        (EventType::Put, "/new".to_owned()),
    ];
    assert_eq!(seen, expected);

    // Changed through the proxy before: that is newer.
    client.put(key(252), "proxy", None).await.unwrap();
    client.delete(key(253), None).await.unwrap();
    direct.put(&key(252), "foreign").await;
    direct.put(&key(253), "foreign").await;
    let status = counted(&segue, 5, 3, 2).await;
    assert_eq!(status["foreign"]["conflict"]["key"], key(253), "{status}");
    let text = segue.run(["status"]).await.out;
    assert!(text.contains("2 in conflict, the latest one"), "{text}");
    assert_eq!(get(&mut client, &key(252)).await.as_deref(), Some("proxy"));
    assert_eq!(get(&mut client, &key(253)).await, None);

    // Copied, and changed by nobody but the same stranger.
    let rates = segue.run(["rates", "--keys", "0", "--bytes", "0"]).await;
    assert_eq!(rates.code, 0, "{rates:?}");
    let done = |status: &Value| status["backfill_complete"] == true;
    segue.until("all is copied", done).await;
    assert_eq!(get(&mut client, &key(251)).await, None);
    for value in ["one", "two"] {
        direct.put(&key(3), value).await;
    }
    direct.delete(&key(4)).await;
    direct.put(&key(4), "again").await;
    counted(&segue, 9, 7, 2).await;
    assert_eq!(get(&mut client, &key(3)).await.as_deref(), Some("two"));
    assert_eq!(get(&mut client, &key(4)).await.as_deref(), Some("again"));
    client.put(key(3), "proxy", None).await.unwrap();
    direct.put(&key(3), "three").await;
    counted(&segue, 10, 7, 3).await;
    assert_eq!(get(&mut client, &key(3)).await.as_deref(), Some("proxy"));

    // While no proxy is there.
    segue.kill();
    direct.put(&key(5), "foreign").await;
    segue.restart().await;
    counted(&segue, 11, 8, 3).await;
    assert_eq!(get(&mut client, &key(5)).await.as_deref(), Some("foreign"));

    // What runs out in the old store is nobody's change.
    eventually("it runs out in the old store", async || {
        if direct.has("/k/short").await {
            Err("still there")
        } else {
            Ok(())
        }
    })
    .await;
    // Where there is a way back, what a stranger has written over the proxy's value stands in it.
    let verified = segue.run(["verify"]).await;
    let mirrored = segue.status().await.unwrap()["mirror"] == true;
    assert_eq!(verified.code, i32::from(mirrored), "{verified:?}");
    let refused = verified.err.contains("a rollback would be refused");
    assert_eq!(refused, mirrored, "{verified:?}");
    let switched = segue.run(["switch", "--wait"]).await;
    assert_eq!(switched.code, 0, "{switched:?}");
    direct.put(&key(6), "foreign").await;
    counted(&segue, 12, 9, 3).await;
    assert_eq!(get(&mut client, &key(6)).await.as_deref(), Some("foreign"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_etcd_v2_is_followed_where_nothing_newer_is_undone() {
    let old = Etcd::start_v2().await;
    let dir = tempfile::tempdir().unwrap();
    let new = format!("sqlite:{}", dir.path().join("new.db").display());
    is_followed(&old.v2_url(), &new, &mut Direct::V2(V2::of(&old))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_etcd_v3_is_followed_where_nothing_newer_is_undone() {
    let (old, new) = tokio::join!(
        Etcd::start(),
        Etcd::with()
            .args(["--initial-cluster-token", "new"])
            .start()
    );
    let client = connect(old.endpoint()).await;
    is_followed(&old.url(), &new.url(), &mut Direct::V3(client)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_removed_in_etcd_v2_is_removed_in_the_new_store() {
    let old = Etcd::start_v2().await;
    let v2 = V2::of(&old);
    for key in ["/d/1", "/d/e/2", "/d!", "/e"] {
        v2.put(key, "old").await;
    }
    let dir = tempfile::tempdir().unwrap();
    let new = format!("sqlite:{}", dir.path().join("new.db").display());
    let segue = Segue::start(["--old", &old.v2_url(), "--new", &new, "--follow"]).await;
    segue
        .until("verified and watched", |status| {
            status["verified"] == true && status["foreign"]["watched"] == true
        })
        .await;
    v2.delete("/d").await;
    counted(&segue, 1, 1, 0).await;
    let mut client = connect(segue.endpoint()).await;
    for (key, value) in [
        ("/d/1", None),
        ("/d/e/2", None),
        ("/d!", Some("old")),
        ("/e", Some("old")),
    ] {
        assert_eq!(get(&mut client, key).await.as_deref(), value, "{key}");
    }
}
