//! What `segue copy` notices, refuses and leaves behind, so that no key is lost without a word.

use std::path::Path;

use segue::store::{Guard, NewStore, RecordTxn, RecordWrite};
use segue::types::{Grant, LeaseId, Put};
use tempfile::TempDir;

use crate::copy::{
    content, copy, ended, fill, open, pairs, plain, receipt, refused, slow, some_of, sqlite,
};
use crate::support::process::Process;
use crate::support::segue::Segue;
use crate::support::tables::{ALL, Home, Kind};
use crate::support::{Etcd, V2};

/// An etcd with keys of the v2 API, one of which has a time to live of so many seconds.
async fn v2_store(ttl_s: u32) -> (Etcd, V2) {
    let old = Etcd::start_v2().await;
    let v2 = V2::of(&old);
    v2.fill((0..2000).map(|n| (format!("/app/{n:04}"), format!("{n}"))))
        .await;
    v2.put_ttl("/app/ttl", "x", ttl_s).await;
    (old, v2)
}

async fn code(process: &mut Process, expected: i32) -> String {
    let status = ended(process).await;
    let said = process.output();
    assert_eq!(status.code(), Some(expected), "{said}");
    said
}

fn log(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("log")
}

#[tokio::test]
async fn a_write_over_the_v2_api_is_noticed_although_there_are_keys_that_expire() {
    let dir = tempfile::tempdir().unwrap();
    let ((old, v2), new) = (v2_store(3600).await, Etcd::start().await);
    let mut process = slow(&old.v2_url(), &new.url(), 500, &log(&dir));
    some_of(&new.url(), "/app/").await;
    v2.put("/app/0000", "late").await;
    let said = code(&mut process, 3).await;
    assert!(said.contains("/app/0000 was written"), "{said}");
    // Whoever comes back later is told so as well.
    let hint = "changed since this copy was begun";
    refused(&old.v2_url(), &new.url(), &[], 3, hint).await;
}

#[tokio::test]
async fn a_key_that_expires_in_the_v2_api_is_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let ((old, _), new) = (v2_store(3).await, Etcd::start().await);
    let mut process = slow(&old.v2_url(), &new.url(), 500, &log(&dir));
    code(&mut process, 0).await;
    assert!(pairs(content(&new.url()).await).len() >= 2000);
}

#[tokio::test]
async fn what_the_v2_api_does_not_remember_any_more_counts_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let ((old, v2), new) = (v2_store(3600).await, Etcd::start().await);
    let mut process = slow(&old.v2_url(), &new.url(), 500, &log(&dir));
    some_of(&new.url(), "/app/").await;
    process.kill();
    v2.fill((0..1100).map(|n| (format!("/late/{n:04}"), "x".to_owned())))
        .await;
    refused(&old.v2_url(), &new.url(), &[], 3, "no longer known").await;
}

#[tokio::test]
async fn a_write_to_an_etcd_that_was_a_new_store_once_is_noticed_although_it_has_leases() {
    let dir = tempfile::tempdir().unwrap();
    let first = sqlite(&dir, "first.db");
    fill(&first, 2000).await;
    let etcds = (Etcd::start().await, Etcd::start().await);
    let (old, new) = (etcds.0.url(), etcds.1.url());
    receipt(&first, &old, &[]).await;
    let mut process = slow(&old, &new, 500, &log(&dir));
    some_of(&new, "key/").await;
    let store = plain(&old).await;
    store.put(Put::new("key/00000", "late")).await.unwrap();
    let said = code(&mut process, 3).await;
    assert!(said.contains("key/00000 was written"), "{said}");
}

/// A table with many rows, some of which expire.
async fn table(kind: Kind) -> Home {
    let home = Home::new(kind).await;
    home.run("CREATE TABLE kv (k varchar(50), v varchar(50), e {bigint|bigint|INTEGER})")
        .await;
    let rows = (0..2000).map(|n| match n % 100 {
        0 => format!("('key/{n:04}', '{n}', 4000000000)"),
        _ => format!("('key/{n:04}', '{n}', NULL)"),
    });
    let rows: Vec<String> = rows.collect();
    home.run(&format!("INSERT INTO kv VALUES {}", rows.join(", ")))
        .await;
    home
}

#[tokio::test]
async fn a_write_to_a_table_is_noticed() {
    for kind in ALL {
        for write in [
            "UPDATE kv SET v = 'late' WHERE k = 'key/0001'",
            "INSERT INTO kv VALUES ('late', 'x', NULL)",
            "DELETE FROM kv WHERE k = 'key/0001'",
            "UPDATE kv SET e = 4000000001 WHERE k = 'key/0100'",
        ] {
            let (home, new) = (table(kind).await, Etcd::start().await);
            let old = home.table("kv", "key=k&value=v&expires=e");
            let log = home.path("log");
            let mut process = slow(&old, &new.url(), 1000, Path::new(&log));
            some_of(&new.url(), "key/").await;
            home.run(write).await;
            let said = code(&mut process, 3).await;
            assert!(said.contains("while it was being copied"), "{said}");
            let hint = "changed since this copy was begun";
            refused(&old, &new.url(), &[], 3, hint).await;
            receipt(&old, &new.url(), &["--force"]).await;
            if kind != Kind::Sqlite {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_file_is_whole_without_what_stands_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (sqlite(&dir, "old.db"), sqlite(&dir, "new.db"));
    fill(&old, 1000).await;
    receipt(&old, &new, &[]).await;
    std::fs::copy(dir.path().join("new.db"), dir.path().join("moved.db")).unwrap();
    let moved = content(&sqlite(&dir, "moved.db")).await;
    assert_eq!(moved, content(&old).await);
    // The same when a proxy has served from it, and is told to stop.
    let mut segue = Segue::start(["--new", &new]).await;
    let mut client = etcd_client::Client::connect([segue.endpoint()], None)
        .await
        .unwrap();
    client.put("late", "x", None).await.unwrap();
    segue.process().terminate();
    crate::support::eventually("the proxy ends", async || {
        segue.ended().ok_or_else(|| segue.output())
    })
    .await;
    std::fs::copy(dir.path().join("new.db"), dir.path().join("again.db")).unwrap();
    let again = pairs(content(&sqlite(&dir, "again.db")).await);
    assert!(again.contains(&("late".into(), "x".into())));
}

/// Lets `work` do so many steps, and drops it then; answers whether it came to its end.
async fn steps(work: impl Future, most: usize) -> bool {
    let mut work = std::pin::pin!(work);
    let mut left = most;
    std::future::poll_fn(|cx| {
        if work.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(true);
        }
        left = left.saturating_sub(1);
        if left == 0 {
            return std::task::Poll::Ready(false);
        }
        std::task::Poll::Pending
    })
    .await
}

#[tokio::test]
async fn a_store_that_was_not_emptied_to_the_end_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start().await;
    for url in [sqlite(&dir, "new.db"), etcd.url()] {
        let store = open(&url).await;
        for most in 1.. {
            let plain = store.guarded(Guard::None);
            for n in 0..3 {
                let id = Some(LeaseId(n + 1));
                plain.grant(Grant { id, ttl_s: 600 }).await.unwrap();
                let put = Put {
                    lease: id,
                    ..Put::new(format!("k{n}"), "x")
                };
                plain.put(put).await.unwrap();
            }
            let keys = pairs(content_of(&*store).await).len();
            if steps(store.clear(), most).await {
                assert!(store.is_empty().await.unwrap(), "{url}");
                break;
            }
            // What was on its way may still arrive.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            let left = pairs(content_of(&*store).await).len();
            let said = !store.records("emptying").await.unwrap().is_empty();
            assert!(
                said || left == keys || store.is_empty().await.unwrap(),
                "{url}"
            );
            store.clear().await.unwrap();
        }
    }
}

async fn content_of(store: &dyn NewStore) -> (Vec<segue::types::KeyValue>, segue::types::Revision) {
    let all = segue::types::Range::of(segue::types::KeyRange::all());
    let all = store.guarded(Guard::None).range(all).await.unwrap();
    (all.reply.kvs, all.revision)
}

#[tokio::test]
async fn what_is_left_of_a_store_that_was_being_emptied_is_taken_for_no_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (sqlite(&dir, "old.db"), sqlite(&dir, "new.db"));
    fill(&old, 100).await;
    fill(&new, 300).await;
    let store = open(&new).await;
    let write = RecordWrite {
        name: "emptying".into(),
        value: Some("true".into()),
    };
    let txn = RecordTxn {
        writes: vec![write],
        ..RecordTxn::default()
    };
    assert!(store.write_records(txn).await.unwrap());
    let keys = content_of(&*store).await.0.len();
    drop(store);
    refused(&old, &new, &[], 3, "did not finish emptying").await;
    refused(&old, &new, &[], 3, &format!("{keys} keys")).await;
    refused(&old, &new, &[], 3, "--force").await;
    for args in [
        vec!["--new", &new],
        vec!["--old", &old, "--new", &new],
        vec!["--old", &old, "--new", &new, "--allow-nonempty"],
    ] {
        let Err(complaint) = Segue::try_start(args).await else {
            panic!("what is left of a store was served");
        };
        assert!(complaint.contains("being emptied"), "{complaint}");
    }
    receipt(&old, &new, &["--force"]).await;
    assert_eq!(pairs(content(&new).await), pairs(content(&old).await));
}

#[tokio::test]
async fn nothing_is_deleted_for_an_old_store_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let new = sqlite(&dir, "new.db");
    fill(&new, 100).await;
    let before = pairs(content(&new).await);
    let home = Home::new(Kind::Sqlite).await;
    home.run(
        "CREATE TABLE kv (k TEXT, v TEXT);\n\
         INSERT INTO kv VALUES ('a', '1'), ('b', NULL)",
    )
    .await;
    let old = home.table("kv", "key=k&value=v");
    refused(&old, &new, &["--force"], 1, "b: its value is NULL").await;
    refused(&old, &new, &["--force"], 1, "nothing was deleted").await;
    assert_eq!(pairs(content(&new).await), before);
    // An account that may not read one of the columns.
    let home = Home::new(Kind::Postgres).await;
    home.run(
        "CREATE TABLE kv (k text, v text);\n\
         INSERT INTO kv VALUES ('a', '1');\n\
         DO $$ BEGIN CREATE ROLE half_blind LOGIN PASSWORD 'x'; \
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;\n\
         GRANT SELECT (k) ON kv TO half_blind",
    )
    .await;
    home.run("DO $$ BEGIN EXECUTE format('GRANT USAGE ON SCHEMA %I TO half_blind', current_schema()); END $$")
        .await;
    let old = home.table("kv", "key=k&value=v");
    let (scheme, rest) = old.split_once("://").unwrap();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let old = format!("{scheme}://half_blind:x@{host}");
    let started = std::time::Instant::now();
    refused(&old, &new, &["--force"], 1, "SELECT").await;
    assert!(started.elapsed().as_secs() < 50);
    assert_eq!(pairs(content(&new).await), before);
}

#[tokio::test]
async fn keys_of_the_application_under_the_reserved_prefix_are_not_left_out_silently() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (sqlite(&dir, "old.db"), sqlite(&dir, "new.db"));
    fill(&old, 100).await;
    let store = plain(&old).await;
    for key in ["segue/mine", "segue/more", "segue/switch"] {
        store.put(Put::new(key, "x")).await.unwrap();
    }
    drop(store);
    refused(&old, &new, &[], 3, "2 keys").await;
    refused(&old, &new, &[], 3, "segue/mine").await;
    refused(&old, &new, &[], 3, "--reserved-prefix").await;
    receipt(&old, &new, &["--reserved-prefix", "own/"]).await;
    let home = Home::new(Kind::Sqlite).await;
    home.run(
        "CREATE TABLE kv (k TEXT, v TEXT);\n\
         INSERT INTO kv VALUES ('a', '1'), ('segue/mine', '2')",
    )
    .await;
    let old = home.table("kv", "key=k&value=v");
    refused(&old, &sqlite(&dir, "b.db"), &[], 3, "segue/mine").await;
    let (old, _) = v2_store(3600).await;
    let prefix = ["--reserved-prefix", "/app/000"];
    refused(&old.v2_url(), &sqlite(&dir, "c.db"), &prefix, 3, "10 keys").await;
    // The switch key alone is Segue's own.
    let (old, new) = (sqlite(&dir, "d.db"), sqlite(&dir, "e.db"));
    fill(&old, 10).await;
    let store = plain(&old).await;
    store.put(Put::new("segue/switch", "x")).await.unwrap();
    drop(store);
    receipt(&old, &new, &[]).await;
}

#[tokio::test]
async fn an_old_store_without_keys_is_named_and_so_is_the_other_api_of_the_same_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let (old, _) = v2_store(3600).await;
    let outcome = copy(&old.url(), &sqlite(&dir, "new.db"), &[]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for hint in ["holds no keys", "etcd2://"] {
        assert!(outcome.out.contains(hint), "{outcome:?}");
    }
    let empty = Etcd::start().await;
    let outcome = copy(&empty.url(), &sqlite(&dir, "other.db"), &[]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.out.contains("holds no keys"), "{outcome:?}");
    assert!(!outcome.out.contains("etcd2://"), "{outcome:?}");
}
