//! Opening a store.

use futures_util::future::join_all;
use segue::store::sql::Options;
use segue::store::{NewStore as _, Store as _, open_old};
use segue::types::{Put, Reserved};
use tempfile::TempDir;

use super::{complaint, open, open_with};
use crate::alike;
use crate::support::MariaDb;
use crate::support::mariadb::{database, run};

#[tokio::test(flavor = "multi_thread")]
async fn starters_that_meet_open_one_store() {
    let url = database().await;
    let opened = join_all((0..6).map(|_| open(&url))).await;
    alike::have_opened_one_store(&opened).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starter_that_died_in_the_middle_does_not_lock_out_the_next() {
    let url = database().await;
    drop(open(&url).await);
    // As if it had been killed before the last table, and before the head row.
    run(&url, "DROP TABLE segue_record; DELETE FROM segue_head").await;
    open(&url).await.put(Put::new("a", "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_of_two_prefixes_do_not_touch_each_other() {
    let url = database().await;
    let other = open(&format!("{url}?prefix=other_")).await;
    let store = open(&url).await;
    store.put(Put::new("a", "")).await.unwrap();
    assert!(other.is_empty().await.unwrap());
    assert_ne!(store.identity().await, other.identity().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_version_are_left_alone() {
    let url = database().await;
    let store = open(&url).await;
    run(&url, "UPDATE segue_head SET schema_version = 7").await;
    let told = complaint(&url, Options::default()).await;
    assert!(
        told.contains("version 7") && told.contains("later one"),
        "{told}"
    );
    // Also by one that has opened them before.
    let told = store.put(Put::new("a", "")).await.unwrap_err().to_string();
    assert!(told.contains("version 7"), "{told}");
    let rows = run(&url, "SELECT COUNT(*) FROM segue_kv").await;
    assert_eq!(rows, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_store_is_not_made() {
    let url = database().await;
    let opened = open_old(&url.parse().unwrap(), &Reserved::default()).await;
    let told = opened.err().unwrap().to_string();
    assert!(told.contains("no table segue_head"), "{told}");
    let tables = run(&url, "SHOW TABLES").await;
    assert_eq!(tables, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_lose_commits_is_refused_unless_that_is_allowed() {
    let server = MariaDb::start_with(&["--innodb-flush-log-at-trx-commit=2"]).await;
    let url = server.database().await;
    let told = complaint(&url, Options::default()).await;
    for part in ["innodb_flush_log_at_trx_commit is 2", "--allow-lossy"] {
        assert!(told.contains(part), "{told}");
    }
    let allowing = Options {
        allow_lossy: true,
        ..Options::default()
    };
    open_with(&url, allowing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_is_named() {
    let url = database().await;
    let name = url.rsplit('/').next().unwrap();
    let account = format!("{name}@127.0.0.1");
    let as_account = url.replace("segue:hunter2", &format!("{name}:secret7"));
    run(
        &url,
        &format!("CREATE USER {account} IDENTIFIED BY 'secret7'"),
    )
    .await;
    let grant = format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON `{name}`.* TO '{name}'@'127.0.0.1'"
    );

    // Without any, the database cannot even be named.
    let told = complaint(&as_account, Options::default()).await;
    assert!(told.contains("Access denied"), "{told}");
    for (granted, missing) in [
        ("SELECT", "CREATE"),
        ("SELECT, CREATE", "INSERT"),
        ("SELECT, CREATE, INSERT", "UPDATE"),
        ("SELECT, CREATE, INSERT, UPDATE", "DELETE"),
    ] {
        run(&url, &format!("GRANT {granted} ON `{name}`.* TO {account}")).await;
        let told = complaint(&as_account, Options::default()).await;
        let right = format!("lacks the right {missing};");
        assert!(told.contains(&right) && told.contains(&grant), "{told}");
        assert!(!told.contains("secret7"), "{told}");
    }
    run(&url, &grant).await;
    open(&as_account)
        .await
        .put(Put::new("a", ""))
        .await
        .unwrap();
    let told = complaint(&url.replace("hunter2", "secret8"), Options::default()).await;
    assert!(
        told.contains("Access denied") && !told.contains("secret8"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_used_and_the_servers_certificate_verified() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (name, text) in [
        ("ca.pem", include_str!("tls/ca.pem")),
        ("server.pem", include_str!("tls/server.pem")),
        ("server.key", include_str!("tls/server.key")),
        ("other.pem", include_str!("tls/other.pem")),
    ] {
        std::fs::write(path(name), text).unwrap();
    }
    let args = [
        format!("--ssl-ca={}", path("ca.pem")),
        format!("--ssl-cert={}", path("server.pem")),
        format!("--ssl-key={}", path("server.key")),
    ];
    let server = MariaDb::start_with(&args.each_ref().map(String::as_str)).await;
    let url = server.database().await;
    let account = "CREATE USER secret@127.0.0.1 IDENTIFIED BY 'secret' REQUIRE SSL; \
                   GRANT ALL ON *.* TO secret@127.0.0.1";
    run(&url, account).await;
    let url = url.replace("segue:hunter2", "secret:secret");
    let with = |ca: &str| format!("{url}?ssl-mode=VERIFY_IDENTITY&ssl-ca={}", path(ca));
    open(&with("ca.pem"))
        .await
        .put(Put::new("a", ""))
        .await
        .unwrap();
    let told = complaint(&with("other.pem"), Options::default()).await;
    assert!(told.contains("certificate"), "{told}");
    // It is for 127.0.0.1 alone.
    let elsewhere = with("ca.pem").replace("127.0.0.1", "localhost");
    let told = complaint(&elsewhere, Options::default()).await;
    assert!(told.contains("certificate"), "{told}");
    let told = complaint(&format!("{url}?ssl-mode=DISABLED"), Options::default()).await;
    assert!(told.contains("Access denied"), "{told}");
}
