//! etcd over the v2 keys API as an old store, against a real one.

use bytes::Bytes;
use http::Method;
use segue::store::etcd2::Etcd2;
use segue::store::{OldStore, PageSize, RequestError, StoreError, StoreUrl};
use segue::types::{Content, KeyRange, KeyValue, LeaseId, Reserved, Revision};

use crate::contract::page::{holds_to_sizes, uneven};
use crate::support::{Etcd, V2, eventually};

async fn open(url: &str) -> Result<Etcd2, StoreError> {
    let StoreUrl::Etcd2(cluster) = url.parse().unwrap() else {
        panic!("{url} is not an etcd2:// URL");
    };
    Etcd2::open(&cluster, Reserved::default()).await
}

/// Everything in the range, in pages of `limit`, and the rejects.
async fn read(
    store: &Etcd2,
    mut keys: KeyRange,
    limit: usize,
) -> (Vec<KeyValue>, Vec<(Bytes, String)>) {
    let (mut kvs, mut rejects) = (Vec::new(), Vec::new());
    loop {
        let page = store
            .scan(keys.clone(), PageSize::pairs(limit), Content::Full)
            .await
            .unwrap();
        assert!(page.kvs.len() <= limit);
        kvs.extend(page.kvs);
        rejects.extend(page.rejects);
        if !page.more {
            return (kvs, rejects);
        }
        let KeyRange::Span { end, .. } = keys else {
            panic!("one key does not need two pages");
        };
        let last = &kvs
            .last()
            .expect("a page that is not the last has pairs")
            .key;
        keys = KeyRange::span([last, &[0][..]].concat(), end);
    }
}

fn texts(kvs: &[KeyValue]) -> Vec<&str> {
    kvs.iter()
        .map(|kv| std::str::from_utf8(&kv.key).unwrap())
        .collect()
}

#[tokio::test]
async fn a_page_ends_where_its_bytes_are_reached() {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    let pairs = uneven("/a/");
    for (key, value) in &pairs {
        v2.put(key, std::str::from_utf8(value).unwrap()).await;
    }
    let store = open(&etcd.v2_url()).await.unwrap();
    holds_to_sizes(&store, &pairs).await;
}

#[tokio::test]
async fn every_range_of_a_tree_comes_in_the_byte_order_of_its_keys() {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    let mut keys = [
        "/a!",
        "/a-b",
        "/a/b",
        "/a/b!",
        "/a/c/d",
        "/a/c-",
        "/a.d/x",
        "/a0",
        "/a0/x0",
        "/ab",
        "/a b",
        "/ä/ö",
        "/日本/語",
        "/z/%41",
        "/z/?q=1",
        "/z/#",
        "/z/a+b&c",
        "/z/\"\\",
        "/z/\t\n",
        "/z/x_",
        "/z/:~;@",
        "/root",
        "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20",
    ]
    .to_vec();
    // A file cannot be a directory too.
    keys.retain(|key| *key != "/a0/x0");
    for key in &keys {
        v2.put(key, &format!("value of {key}")).await;
    }
    v2.make_dir("/empty/dir", 0).await;
    keys.sort_unstable();

    let store = open(&etcd.v2_url()).await.unwrap();
    for limit in [1, 2, 7, 1000] {
        let (kvs, rejects) = read(&store, KeyRange::all(), limit).await;
        assert_eq!(texts(&kvs), keys, "in pages of {limit}");
        assert_eq!(rejects, []);
        for kv in &kvs {
            let key = String::from_utf8_lossy(&kv.key);
            assert_eq!(kv.value, format!("value of {key}"));
        }
    }
    // Every pair of bounds out of the keys, what lies between them, and some that are no keys.
    let mut bounds: Vec<String> = keys.iter().map(ToString::to_string).collect();
    bounds.extend(["", "/", "/a", "/a/", "/a/c", "/a/c/", "0", "zz", "/1/2/3"].map(String::from));
    for start in &bounds {
        for end in bounds.iter().map(Some).chain([None]) {
            let end = end.map(|end| Bytes::from(end.clone()));
            let range = KeyRange::span(start.clone(), end);
            let expected: Vec<_> = keys
                .iter()
                .filter(|key| range.contains(key.as_bytes()))
                .copied()
                .collect();
            let (kvs, _) = read(&store, range.clone(), 3).await;
            assert_eq!(texts(&kvs), expected, "{range:?}");
            assert_eq!(store.count(range).await.unwrap(), expected.len());
        }
    }
    let one = store
        .scan(
            KeyRange::One("/a/b".into()),
            PageSize::pairs(5),
            Content::KeysOnly,
        )
        .await
        .unwrap();
    assert_eq!(texts(&one.kvs), ["/a/b"]);
    assert!(one.kvs[0].value.is_empty() && !one.more);

    let all: Vec<Bytes> = keys.iter().map(|key| Bytes::from(*key)).collect();
    let (scanned, _) = read(&store, KeyRange::all(), 1000).await;
    let got = store.get(all).await.unwrap();
    assert_eq!(got, scanned.into_iter().map(Some).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_empty_store_has_an_index_and_nothing_else() {
    let etcd = Etcd::start_v2().await;
    let store = open(&etcd.v2_url()).await.unwrap();
    let page = store
        .scan(KeyRange::all(), PageSize::pairs(10), Content::Full)
        .await
        .unwrap();
    assert!(page.kvs.is_empty() && page.rejects.is_empty() && !page.more);
    assert_eq!(store.count(KeyRange::all()).await.unwrap(), 0);
    assert_eq!(store.leases().await.unwrap(), []);
    assert!(store.revision().await.unwrap() > Revision(0));
}

#[tokio::test]
async fn indexes_are_revisions() {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    v2.put("/a", "1").await;
    v2.set(b"/a", b"2", "&prevExist=true").await;
    v2.put("/b", "").await;
    let store = open(&etcd.v2_url()).await.unwrap();
    let revision = store.revision().await.unwrap();
    let (kvs, _) = read(&store, KeyRange::all(), 10).await;
    assert_eq!(kvs[0].value, "2");
    assert_eq!(kvs[0].mod_revision.next(), revision);
    assert_eq!(kvs[0].create_revision.next(), kvs[0].mod_revision);
    assert_eq!((kvs[1].mod_revision, kvs[1].version), (revision, 1));
    assert_eq!((&kvs[1].value[..], kvs[1].lease), (&b""[..], LeaseId::NONE));
    v2.delete("/b").await;
    assert_eq!(store.revision().await.unwrap(), revision.next());
}

#[tokio::test]
async fn keys_that_no_node_can_have_are_not_mistaken_for_others() {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    v2.put("/a/b", "x").await;
    v2.put("/_hidden/c", "x").await;
    v2.put("/a/_hidden", "x").await;
    let store = open(&etcd.v2_url()).await.unwrap();
    let keys = [
        "a/b",
        "/a",
        "/a/",
        "/a//b",
        "//a/b",
        "/a/./b",
        "/a/x/../b",
        "/a/b/",
        "/",
        "/a/b/c",
        // Not to be seen by a range, so not by name either.
        "/_hidden/c",
        "/a/_hidden",
    ];
    let got = store.get(keys.map(Bytes::from).to_vec()).await.unwrap();
    assert_eq!(got, vec![None; keys.len()]);
    let (kvs, _) = read(&store, KeyRange::all(), 10).await;
    assert_eq!(texts(&kvs), ["/a/b"]);
}

#[tokio::test]
async fn a_time_to_live_becomes_a_lease() {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    v2.put("/stays", "x").await;
    v2.put_ttl("/own", "x", 100).await;
    v2.make_dir("/d", 50).await;
    v2.put("/d/below/deep", "x").await;
    v2.put_ttl("/d/shorter", "x", 20).await;
    v2.put_ttl("/d/longer", "x", 500).await;
    let store = open(&etcd.v2_url()).await.unwrap();
    let leases = store.leases().await.unwrap();
    assert!(leases.is_sorted_by_key(|lease| lease.id));
    assert!(leases.iter().all(|lease| lease.id.0 > 0));
    let mut ttls: Vec<_> = leases
        .iter()
        .map(|lease| {
            (
                String::from_utf8(lease.keys[0].to_vec()).unwrap(),
                lease.ttl_s,
            )
        })
        .collect();
    ttls.sort();
    for ((key, ttl_s), (expected, most_s)) in ttls.iter().zip([
        ("/d/below/deep", 50),
        ("/d/longer", 50),
        ("/d/shorter", 20),
        ("/own", 100),
    ]) {
        assert_eq!(key, expected);
        assert!((most_s - 15..=most_s).contains(ttl_s), "{key}: {ttl_s}");
    }
    assert_eq!(ttls.len(), 4);
    // However a key is read, it carries its lease.
    let keys: Vec<_> = leases.iter().map(|lease| lease.keys[0].clone()).collect();
    let got = store.get(keys).await.unwrap();
    let below = store.scan(KeyRange::prefix("/d/"), PageSize::pairs(10), Content::Full);
    let below = below.await.unwrap().kvs;
    assert_eq!(below.len(), 3);
    for kv in got.iter().flatten().chain(&below) {
        let lease = leases.iter().find(|lease| lease.keys[0] == kv.key).unwrap();
        assert_eq!(kv.lease, lease.id);
    }
    let (kvs, _) = read(&store, KeyRange::prefix("/stays"), 10).await;
    assert_eq!(kvs[0].lease, LeaseId::NONE);
}

#[tokio::test]
async fn what_json_cannot_hold_is_rejected_and_stops_nothing() {
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    v2.put("/a", "fine").await;
    v2.set(b"/b", b"\xff\xfe", "").await;
    v2.set(b"/c\xff", b"x", "").await;
    v2.set(b"/d\xff/e", b"x", "").await;
    v2.put("/f", "really \u{fffd} and \\ufffd").await;
    let store = open(&etcd.v2_url()).await.unwrap();
    for limit in [1, 10] {
        let (kvs, rejects) = read(&store, KeyRange::all(), limit).await;
        assert_eq!(texts(&kvs), ["/a", "/f"]);
        assert_eq!(kvs[1].value, "really \u{fffd} and \\ufffd");
        let rejected: Vec<_> = rejects
            .iter()
            .map(|(key, reason)| (std::str::from_utf8(key).unwrap(), reason.as_str()))
            .collect();
        assert_eq!(
            rejected.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
            ["/b", "/c\u{fffd}", "/d\u{fffd}/"]
        );
        assert!(rejected[0].1.contains("value is not UTF-8"), "{rejected:?}");
        assert!(rejected[1].1.contains("key is not UTF-8"), "{rejected:?}");
        assert!(rejected[2].1.contains("directory"), "{rejected:?}");
    }
    // Not "there is no such key": that would let it be lost without a word.
    let error = store.get(vec!["/b".into()]).await.unwrap_err();
    assert!(error.to_string().contains("/b"), "{error}");
}

#[tokio::test]
async fn a_large_tree_is_walked_whole_by_several_readers() {
    let etcd = Etcd::start_v2().await;
    let mut keys: Vec<_> = (0..1500)
        .map(|n| format!("/flat/{n:05}"))
        .chain((0..1500).map(|n| format!("/{}/{}/{n}", n % 10, n % 70)))
        .collect();
    let pairs = keys.iter().map(|key| (key.clone(), key.clone()));
    V2::of(&etcd).fill(pairs).await;
    keys.sort_unstable();
    let store = open(&etcd.v2_url()).await.unwrap();
    let third = |start: &'static str, end: &'static str| {
        KeyRange::span(start, (!end.is_empty()).then(|| end.into()))
    };
    let ((a, _), (b, _), (c, _)) = tokio::join!(
        read(&store, third("", "/5"), 100),
        read(&store, third("/5", "/flat/00700"), 77),
        read(&store, third("/flat/00700", ""), 100),
    );
    assert_eq!(texts(&[a, b, c].concat()), keys);
}

#[tokio::test]
async fn a_server_without_the_v2_api_is_told_apart() {
    let etcd = Etcd::start().await;
    let error = open(&etcd.v2_url()).await.err().unwrap();
    assert!(
        matches!(&error, StoreError::Request(RequestError::Unsupported(what)) if what.contains("--enable-v2")),
        "{error}"
    );
}

#[tokio::test]
async fn a_dead_host_is_passed_over_and_a_dead_cluster_is_said_to_be() {
    let mut etcd = Etcd::start_v2().await;
    V2::of(&etcd).put("/a", "x").await;
    let mut dead = Etcd::start_v2().await;
    dead.kill();
    let url = format!("etcd2://{},{}", dead.address(), etcd.address());
    let store = open(&url).await.unwrap();
    assert!(store.get(vec!["/a".into()]).await.unwrap()[0].is_some());

    etcd.kill();
    let error = store.revision().await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(_)), "{error}");
    for host in [dead.address(), etcd.address()] {
        assert!(error.to_string().contains(&host), "{error}");
    }
    assert!(open(&url).await.is_err());

    etcd.restart().await;
    eventually("the store answers again", async || store.revision().await).await;
    assert!(store.get(vec!["/a".into()]).await.unwrap()[0].is_some());
}

#[tokio::test]
async fn hosts_of_two_clusters_are_not_taken_for_one() {
    let mut one = Etcd::start_v2().await;
    let other = Etcd::start_v2().await;
    let url = format!("etcd2://{},{}", one.address(), other.address());
    let store = open(&url).await.unwrap();
    assert_ne!(
        store.identity().await.unwrap(),
        open(&other.v2_url())
            .await
            .unwrap()
            .identity()
            .await
            .unwrap()
    );
    one.kill();
    let error = store.revision().await.unwrap_err();
    assert!(error.to_string().contains("different clusters"), "{error}");
}

#[tokio::test]
async fn wrong_credentials_are_said_to_be_wrong() {
    // `root:right` and `root:wrong`
    const RIGHT: &str = "Basic cm9vdDpyaWdodA==";
    let etcd = Etcd::start_v2().await;
    let v2 = V2::of(&etcd);
    v2.put("/a", "x").await;
    let user = r#"{"user":"root","password":"right"}"#;
    v2.must(Method::PUT, "/v2/auth/users/root", user).await;
    v2.must(Method::PUT, "/v2/auth/enable", "").await;
    let v2 = v2.authorized(RIGHT);
    let guest = r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#;
    v2.must(Method::PUT, "/v2/auth/roles/guest", guest).await;

    let url = |account: &str| format!("etcd2://{account}{}", etcd.address());
    let store = open(&url("root:right@")).await.unwrap();
    assert!(store.get(vec!["/a".into()]).await.unwrap()[0].is_some());
    for (account, hint) in [("root:wrong@", "check user"), ("", "name a user")] {
        let error = open(&url(account)).await.err().unwrap();
        assert!(
            matches!(&error, StoreError::Request(RequestError::Credentials(what)) if what.contains(hint)),
            "{account}: {error}"
        );
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
}
