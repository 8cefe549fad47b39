//! What `segue copy` notices, refuses and leaves behind, so that no key is lost without a word.

use std::path::Path;

use segue::types::Put;
use tempfile::TempDir;

use crate::copy::{
    content, ended, fill, pairs, plain, receipt, refused, slow, some_of, sqlite,
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
