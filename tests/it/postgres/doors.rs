//! Opening a store.

use futures_util::future::join_all;
use segue::store::sql::Options;
use segue::store::{NewStore as _, Store as _, open_old};
use segue::types::{Put, Reserved};
use tempfile::TempDir;

use super::{complaint, open, open_with};
use crate::alike;
use crate::support::Postgres;
use crate::support::postgres::{give_away, run, schema, schema_of};

#[tokio::test(flavor = "multi_thread")]
async fn starters_that_meet_open_one_store() {
    let url = schema().await;
    let opened = join_all((0..6).map(|_| open(&url))).await;
    alike::have_opened_one_store(&opened).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starters_that_meet_need_no_advisory_lock() {
    let url = schema().await;
    // Engines that only speak the protocol may have none.
    run(
        &url,
        "CREATE SCHEMA IF NOT EXISTS bare; CREATE OR REPLACE FUNCTION bare.pg_advisory_lock(integer) \
         RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not here'; END $$; \
         DO $$ BEGIN CREATE ROLE bare LOGIN SUPERUSER PASSWORD 'hunter2'; \
         EXCEPTION WHEN duplicate_object THEN NULL; END $$; \
         ALTER ROLE bare SET search_path = bare, pg_catalog",
    )
    .await;
    let url = url.replace("segue:", "bare:");
    let opened = join_all((0..6).map(|_| open(&url))).await;
    for store in &opened {
        store.put(Put::new("a", "")).await.unwrap();
    }
    assert_eq!(opened[0].status().await.unwrap().revision.0, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starter_that_died_in_the_middle_does_not_lock_out_the_next() {
    let url = schema().await;
    drop(open(&url).await);
    // An engine whose changes of tables are in no transaction can stop anywhere.
    run(&url, "DROP TABLE segue_head").await;
    open(&url).await.put(Put::new("a", "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_of_two_prefixes_do_not_touch_each_other() {
    let url = schema().await;
    let other = open(&format!("{url}&prefix=other_")).await;
    let store = open(&url).await;
    store.put(Put::new("a", "")).await.unwrap();
    assert!(other.is_empty().await.unwrap());
    assert_ne!(store.identity().await, other.identity().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_version_are_left_alone() {
    let url = schema().await;
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
    let rows = run(&url, "SELECT count(*) FROM segue_kv").await;
    assert_eq!(rows, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_store_is_not_made() {
    let url = schema().await;
    let opened = open_old(&url.parse().unwrap(), &Reserved::default()).await;
    let told = opened.err().unwrap().to_string();
    assert!(told.contains("no table segue_head"), "{told}");
    let schemas = format!(
        "SELECT nspname FROM pg_namespace WHERE nspname = '{}'",
        schema_of(&url)
    );
    assert_eq!(run(&url, &schemas).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_lose_commits_is_refused_unless_that_is_allowed() {
    let server = Postgres::start_with(&["-cfsync=off", "-cfull_page_writes=off"]).await;
    let url = server.schema();
    let told = complaint(&url, Options::default()).await;
    for part in ["fsync=off", "full_page_writes=off", "--allow-lossy"] {
        assert!(told.contains(part), "{told}");
    }
    let allowing = Options {
        allow_lossy: true,
        ..Options::default()
    };
    open_with(&url, allowing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_waited_for_even_if_the_server_would_not_by_itself() {
    let server = Postgres::start_with(&["-csynchronous_commit=off"]).await;
    let url = server.schema();
    open(&url).await.put(Put::new("a", "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_is_missing_is_named() {
    let url = schema().await;
    let name = schema_of(&url);
    let as_account = url.replace("segue:hunter2", &format!("{name}:secret7"));
    run(
        &url,
        &format!("CREATE ROLE {name} LOGIN PASSWORD 'secret7'"),
    )
    .await;
    let told = complaint(&as_account, Options::default()).await;
    let create = format!("GRANT CREATE ON DATABASE \"postgres\" TO \"{name}\"");
    assert!(told.contains(&create), "{told}");
    run(&url, &format!("CREATE SCHEMA {name}")).await;
    let told = complaint(&as_account, Options::default()).await;
    let usage = format!("GRANT USAGE, CREATE ON SCHEMA \"{name}\" TO \"{name}\"");
    assert!(told.contains(&usage), "{told}");
    // Somebody else makes the tables, and this account is only to use them.
    drop(open(&url).await);
    run(&url, &format!("GRANT USAGE ON SCHEMA {name} TO {name}")).await;
    let mut had = String::from("SELECT");
    let told = complaint(&as_account, Options::default()).await;
    assert!(
        told.contains("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES"),
        "{told}"
    );
    for (missing, rest) in [
        ("INSERT", "INSERT, UPDATE, DELETE"),
        ("UPDATE", "UPDATE, DELETE"),
        ("DELETE", "DELETE"),
    ] {
        let tables = format!("ON ALL TABLES IN SCHEMA {name} TO {name}");
        run(&url, &format!("GRANT {had} {tables}")).await;
        let told = complaint(&as_account, Options::default()).await;
        let grant = format!("GRANT {rest} ON ALL TABLES IN SCHEMA \"{name}\" TO \"{name}\"");
        assert!(told.contains(&grant), "{told}");
        assert!(!told.contains("secret7"), "{told}");
        had = missing.to_owned();
    }
    run(
        &url,
        &format!("GRANT DELETE ON ALL TABLES IN SCHEMA {name} TO {name}"),
    )
    .await;
    let store = open(&as_account).await;
    store.put(Put::new("a", "")).await.unwrap();
    store.defragment().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_not_shown() {
    let url = schema().await.replace("hunter2", "secret8");
    let told = complaint(&url, Options::default()).await;
    assert!(
        told.contains("password authentication failed") && !told.contains("secret8"),
        "{told}"
    );
    let nowhere = url
        .replace("/postgres?", "/nowhere?")
        .replace("secret8", "hunter2");
    let told = complaint(&nowhere, Options::default()).await;
    assert!(told.contains("create the database"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_used_and_the_servers_certificate_verified() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (name, text) in [
        ("ca.pem", include_str!("../mariadb/tls/ca.pem")),
        ("server.pem", include_str!("../mariadb/tls/server.pem")),
        ("server.key", include_str!("../mariadb/tls/server.key")),
        ("other.pem", include_str!("../mariadb/tls/other.pem")),
    ] {
        std::fs::write(path(name), text).unwrap();
    }
    // The server reads its key as another user, and insists that nobody else can.
    std::fs::set_permissions(
        path("server.key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    for file in ["server.pem", "server.key", ""] {
        give_away(&dir.path().join(file));
    }
    let args = [
        "-cssl=on".to_owned(),
        format!("-cssl_cert_file={}", path("server.pem")),
        format!("-cssl_key_file={}", path("server.key")),
    ];
    let server = Postgres::start_with(&args.each_ref().map(String::as_str)).await;
    let url = server.schema();
    let with = |ca: &str| format!("{url}&sslmode=verify-full&sslrootcert={}", path(ca));
    let store = open(&with("ca.pem")).await;
    store.put(Put::new("a", "")).await.unwrap();
    let encrypted = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'segue'";
    assert_eq!(run(&url, encrypted).await, ["t"]);
    let told = complaint(&with("other.pem"), Options::default()).await;
    assert!(told.contains("certificate"), "{told}");
    // It is for 127.0.0.1 alone.
    let elsewhere = with("ca.pem").replace("127.0.0.1", "localhost");
    let told = complaint(&elsewhere, Options::default()).await;
    assert!(told.contains("certificate"), "{told}");
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("postgres://segue:hunter2@127.0.0.1:{port}/segue");
    let opening = complaint(&url, Options::default());
    let told = tokio::time::timeout(std::time::Duration::from_secs(30), opening).await;
    let told = told.expect("it is not waited for without end");
    assert!(told.contains("no answer within"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}
