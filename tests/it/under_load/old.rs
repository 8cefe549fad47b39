//! Old stores with something in them.

use etcd_client::{Client, GetOptions, PutOptions};
use serde_json::Value;

use crate::history::Pair;
use crate::history::client::pair;
use crate::support::V2;

/// Directories of the old store that clients work in.
pub(crate) const DIRS: usize = 8;

/// Keys that all clients meet on.
pub(crate) const HOT: usize = 5;

/// An old store with this many keys, in directories of several depths.
pub(crate) async fn fill(v2: &V2, keys: usize) {
    let pairs = (0..keys).map(|n| (old_key(n), format!("old value {n} {}", "x".repeat(n % 300))));
    v2.fill(pairs).await;
    v2.fill((0..HOT).map(|n| (format!("/hot/{n}"), format!("hot {n}"))))
        .await;
    v2.put("/root-level", "old").await;
    v2.make_dir("/empty", 0).await;
    for n in 0..20 {
        // Longer than any test: they have to come over with their leases, and to stay.
        v2.put_ttl(&format!("/sessions/{n}"), &format!("session {n}"), 3600)
            .await;
    }
}

pub(crate) fn old_key(n: usize) -> String {
    match n % 3 {
        0 => format!("/d{}/{n:05}", n % DIRS),
        1 => format!("/d{}/sub{}/{n:05}", n % DIRS, n % 7),
        _ => format!("/d{}!/{n:05}", n % DIRS),
    }
}

/// Everything that a v2 store holds, read in one piece and by other means than Segue's.
pub(crate) async fn everything(v2: &V2) -> (i64, Vec<Pair>) {
    let answer = v2
        .must(
            http::Method::GET,
            "/v2/keys/?recursive=true&quorum=true",
            "",
        )
        .await;
    let tree: Value = serde_json::from_str(&answer).unwrap();
    let mut pairs = Vec::new();
    leaves(&tree["node"], &mut pairs);
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    let newest = pairs.iter().map(|pair| pair.modified).max();
    (newest.unwrap_or_default(), pairs)
}

fn leaves(node: &Value, pairs: &mut Vec<Pair>) {
    if node["dir"] == true {
        for child in node["nodes"].as_array().into_iter().flatten() {
            leaves(child, pairs);
        }
        return;
    }
    let text = |name: &str| node[name].as_str().unwrap().to_owned();
    let created = node["createdIndex"].as_i64().unwrap();
    pairs.push(Pair {
        key: text("key"),
        value: text("value"),
        created,
        modified: node["modifiedIndex"].as_i64().unwrap(),
        version: 1,
        lease: if node["ttl"].is_null() {
            0
        } else {
            0x5e60_0000_0000_0000 + created
        },
    });
}

/// The same in a store that speaks etcd's v3 API: its revision and its pairs.
pub(crate) async fn fill_v3(endpoint: &str, keys: usize) -> (i64, Vec<Pair>) {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    for n in 0..keys {
        client
            .put(old_key(n), format!("old value {n}"), None)
            .await
            .unwrap();
        if n % 5 == 0 {
            client
                .put(old_key(n), format!("newer value {n}"), None)
                .await
                .unwrap();
        }
        if n % 50 == 0 {
            client.delete(old_key(n), None).await.unwrap();
        }
    }
    for n in 0..20 {
        let lease = client.lease_grant(3600, None).await.unwrap().id();
        let options = PutOptions::new().with_lease(lease);
        let key = format!("/sessions/{n}");
        client.put(key, "session", Some(options)).await.unwrap();
    }
    let all = client
        .get("/", Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    let revision = all.header().unwrap().revision();
    (revision, all.kvs().iter().map(pair).collect())
}
