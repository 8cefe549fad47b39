//! The same in tables, which cannot tell.

use std::collections::BTreeSet;

use etcd_client::{EventType, WatchOptions};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use segue::store::foreign::{Bookmark, ForeignBatch, ForeignChange, ForeignChanges};
use segue::types::{Change, Revision};
use tokio::time::timeout;

use super::{KEYS, connect, counted, get, key};
use crate::support::etcd::http_get;
use crate::support::segue::Segue;
use crate::support::tables::Kind::{self, MariaDb, Postgres, Sqlite};
use crate::support::tables::{ALL, Home};
use crate::support::wait::{DEADLINE, eventually};

const COLUMNS: &str = "key=k&value=v&expires=e";

/// A table with keys, and an index on them; if they are not `unique`, two rows can have one.
async fn filled(kind: Kind, unique: bool) -> Home {
    let home = Home::new(kind).await;
    let unique = if unique { "UNIQUE" } else { "" };
    home.run(&format!(
        "CREATE TABLE kv (k varchar(50), v text, e {{bigint|bigint|INTEGER}});\n\
         CREATE {unique} INDEX kv_k ON kv (k)"
    ))
    .await;
    let rows: Vec<String> = (0..KEYS)
        .map(|number| format!("('{}', 'old', NULL)", key(number)))
        .collect();
    home.run(&format!("INSERT INTO kv VALUES {}", rows.join(", ")))
        .await;
    home
}

async fn set(home: &Home, key: &str, value: &str) {
    home.run(&format!("UPDATE kv SET v = '{value}' WHERE k = '{key}'"))
        .await;
}

async fn insert(home: &Home, key: &str, value: &str) {
    home.run(&format!("INSERT INTO kv VALUES ('{key}', '{value}', NULL)"))
        .await;
}

async fn delete(home: &Home, key: &str) {
    home.run(&format!("DELETE FROM kv WHERE k = '{key}'")).await;
}

async fn start(home: &Home, args: &[&str]) -> Segue {
    let old = home.table("kv", COLUMNS);
    let new = format!("sqlite:{}", home.path("new.db"));
    let args = ["--old", &old, "--new", &new]
        .into_iter()
        .chain(args.iter().copied());
    let segue = Segue::start(args).await;
    segue
        .until("watched", |status| status["foreign"]["watched"] == true)
        .await;
    segue
}

async fn is_only_told(kind: Kind) {
    let home = filled(kind, true).await;
    let segue = start(&home, &[]).await;
    let status = segue
        .until("verified", |status| status["verified"] == true)
        .await;
    assert_eq!(status["foreign"]["changes"], 0, "{status}");
    set(&home, &key(1), "foreign").await;
    counted(&segue, 1, 0, 0).await;
    delete(&home, &key(2)).await;
    counted(&segue, 2, 0, 0).await;
    insert(&home, "/new", "foreign").await;
    let status = counted(&segue, 3, 0, 0).await;
    let foreign = &status["foreign"];
    assert_eq!(foreign["first"]["key"], key(1), "{foreign}");
    assert_eq!(foreign["latest"]["key"], "/new", "{foreign}");
    assert!(foreign["latest"]["seen_ms"].as_u64() > Some(0), "{foreign}");
    assert_eq!(foreign["missed"], false, "{foreign}");
    let text = segue.run(["status"]).await.out;
    assert!(
        text.contains("3 changes in the old store past the proxies"),
        "{text}"
    );
    let port = segue.admin().rsplit_once(':').unwrap().1.parse().unwrap();
    let metrics = http_get(port, "/metrics").await.unwrap();
    assert!(
        metrics.contains("segue_foreign_changes_total 3"),
        "{metrics}"
    );
    let mut client = connect(segue.endpoint()).await;
    for (key, value) in [
        (key(1), Some("old")),
        (key(2), Some("old")),
        ("/new".into(), None),
    ] {
        assert_eq!(get(&mut client, &key).await.as_deref(), value, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_a_table_of_postgres_is_counted_and_named() {
    is_only_told(Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_a_table_of_mariadb_is_counted_and_named() {
    is_only_told(MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_a_table_of_sqlite_is_counted_and_named() {
    is_only_told(Sqlite).await;
}

async fn is_followed(kind: Kind) {
    let home = filled(kind, true).await;
    let mut segue = start(&home, &["--rate-keys", "1", "--follow"]).await;
    let base = segue.status().await.unwrap()["base"].as_i64().unwrap();
    let mut client = connect(segue.endpoint()).await;
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(base + 1);
    let mut events = client.watch("/", Some(options)).await.unwrap();

    // Not copied yet: changed, gone, and new.
    set(&home, &key(250), "foreign").await;
    counted(&segue, 1, 1, 0).await;
    delete(&home, &key(251)).await;
    counted(&segue, 2, 2, 0).await;
    insert(&home, "/new", "foreign").await;
    counted(&segue, 3, 3, 0).await;
    assert_eq!(
        get(&mut client, &key(250)).await.as_deref(),
        Some("foreign")
    );
    assert_eq!(get(&mut client, &key(251)).await, None);
    assert_eq!(get(&mut client, "/new").await.as_deref(), Some("foreign"));

    // Changed through the proxy before: that is newer.
    client.put(key(252), "proxy", None).await.unwrap();
    client.delete(key(253), None).await.unwrap();
    set(&home, &key(252), "foreign").await;
    counted(&segue, 4, 3, 1).await;
    set(&home, &key(253), "foreign").await;
    let status = counted(&segue, 5, 3, 2).await;
    assert_eq!(status["foreign"]["conflict"]["key"], key(253), "{status}");
    assert_eq!(get(&mut client, &key(252)).await.as_deref(), Some("proxy"));
    assert_eq!(get(&mut client, &key(253)).await, None);

    // Copied, and changed by nobody but the same stranger.
    let rates = segue.run(["rates", "--keys", "0", "--bytes", "0"]).await;
    assert_eq!(rates.code, 0, "{rates:?}");
    segue
        .until("all is copied", |status| {
            status["backfill_complete"] == true
        })
        .await;
    assert_eq!(get(&mut client, &key(251)).await, None);
    set(&home, &key(3), "one").await;
    counted(&segue, 6, 4, 2).await;
    set(&home, &key(3), "two").await;
    counted(&segue, 7, 5, 2).await;
    delete(&home, &key(4)).await;
    counted(&segue, 8, 6, 2).await;
    assert_eq!(get(&mut client, &key(4)).await, None);
    insert(&home, &key(4), "again").await;
    counted(&segue, 9, 7, 2).await;
    assert_eq!(get(&mut client, &key(3)).await.as_deref(), Some("two"));
    assert_eq!(get(&mut client, &key(4)).await.as_deref(), Some("again"));
    client.put(key(3), "proxy", None).await.unwrap();
    set(&home, &key(3), "three").await;
    counted(&segue, 10, 7, 3).await;
    assert_eq!(get(&mut client, &key(3)).await.as_deref(), Some("proxy"));

    // Watchers see what is followed, and what clients do, as they would have.
    let expected = [
        (EventType::Put, key(250)),
        (EventType::Delete, key(251)),
        (EventType::Put, "/new".to_owned()),
        (EventType::Put, key(252)),
        (EventType::Delete, key(253)),
        (EventType::Put, key(3)),
        (EventType::Put, key(3)),
        (EventType::Delete, key(4)),
        (EventType::Put, key(4)),
        (EventType::Put, key(3)),
    ];
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        let message = events.message().await.unwrap().unwrap();
        for event in message.events() {
            let kv = event.kv().unwrap();
            assert!(kv.mod_revision() > base, "{event:?}");
            seen.push((event.event_type(), kv.key_str().unwrap().to_owned()));
        }
    }
    assert_eq!(seen, expected);

    let verified = segue.run(["verify"]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    let switched = segue.run(["switch", "--wait"]).await;
    assert_eq!(switched.code, 0, "{switched:?}");
    set(&home, &key(6), "foreign").await;
    let status = counted(&segue, 11, 8, 3).await;
    assert_eq!(status["foreign"]["missed"], false, "{status}");
    assert_eq!(get(&mut client, &key(6)).await.as_deref(), Some("foreign"));

    // While no proxy is there: nobody knows what it was, but that there was something.
    segue.kill();
    set(&home, &key(5), "foreign").await;
    segue.restart().await;
    let missed = |status: &serde_json::Value| status["foreign"]["missed"] == true;
    segue.until("something was missed", missed).await;
    let text = segue.run(["status"]).await.out;
    assert!(
        text.contains("and others that the old store no longer knows"),
        "{text}"
    );
    set(&home, &key(7), "foreign").await;
    counted(&segue, 12, 9, 3).await;
    assert_eq!(get(&mut client, &key(7)).await.as_deref(), Some("foreign"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_a_table_of_postgres_is_followed_where_nothing_newer_is_undone() {
    is_followed(Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_a_table_of_mariadb_is_followed_where_nothing_newer_is_undone() {
    is_followed(MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_a_table_of_sqlite_is_followed_where_nothing_newer_is_undone() {
    is_followed(Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_a_table_while_no_proxy_runs_is_missed_also_if_it_is_the_first() {
    let home = filled(Sqlite, true).await;
    let mut segue = start(&home, &[]).await;
    let marked = |status: &serde_json::Value| status["foreign"]["mark"].is_u64();
    segue.until("what there is is written down", marked).await;
    segue.kill();
    set(&home, &key(1), "foreign").await;
    segue.restart().await;
    let missed = |status: &serde_json::Value| status["foreign"]["missed"] == true;
    let status = segue.until("something was missed", missed).await;
    assert_eq!(status["foreign"]["changes"], 0, "{status}");
    let verified = segue.run(["verify"]).await;
    assert!(verified.out.contains(&key(1)), "{verified:?}");
}

const NOW: &str =
    "{extract(epoch from now())::bigint|UNIX_TIMESTAMP()|CAST(strftime('%s', 'now') AS INTEGER)}";

async fn is_quiet(kind: Kind) {
    let home = filled(kind, true).await;
    home.run(&format!(
        "INSERT INTO kv VALUES ('/short/1', 'old', {NOW} + 8), ('/short/2', 'old', {NOW} + 8), \
         ('/long/1', 'old', {NOW} + 1000), ('/long/2', 'old', {NOW} + 1000)"
    ))
    .await;
    let segue = start(&home, &["--follow"]).await;
    let store = home.open("kv", COLUMNS).await;
    let short = || async {
        let keys = ["/short/1", "/short/2"].map(Into::into).to_vec();
        store.get(keys).await.unwrap().into_iter().flatten().count()
    };
    assert_eq!(short().await, 2, "the machine is too slow for this test");
    let mut client = connect(segue.endpoint()).await;
    for number in 0..40 {
        client.put(key(number), "proxy", None).await.unwrap();
        client.delete(key(number + 40), None).await.unwrap();
        client
            .put(format!("/n/{number}"), "proxy", None)
            .await
            .unwrap();
    }
    eventually("they run out", async || match short().await {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    home.run(&format!("DELETE FROM kv WHERE e <= {NOW}")).await;
    // Each of these is the only one, and so there was nothing before.
    set(&home, &key(200), "foreign").await;
    counted(&segue, 1, 1, 0).await;
    // Gone before its time.
    delete(&home, "/long/1").await;
    counted(&segue, 2, 2, 0).await;
    assert_eq!(get(&mut client, "/long/1").await, None, "{kind:?}");
    home.run("UPDATE kv SET e = e + 1000 WHERE k = '/long/2'")
        .await;
    let status = counted(&segue, 3, 2, 1).await;
    let conflict = &status["foreign"]["conflict"];
    assert_eq!(conflict["key"], "/long/2", "{status}");
    let why = conflict["why"].as_str().unwrap();
    assert!(why.contains("it has a lease"), "{why}");
    assert_eq!(status["foreign"]["missed"], false, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_expire_and_what_clients_do_are_no_foreign_changes() {
    join_all(ALL.map(is_quiet)).await;
}

async fn goes_on_over_rejects(kind: Kind) {
    let home = filled(kind, false).await;
    insert(&home, "bad", "old").await;
    home.run("UPDATE kv SET v = NULL WHERE k = 'bad'").await;
    let segue = start(&home, &["--follow"]).await;
    segue
        .until("all is copied", |status| {
            status["backfill_complete"] == true
        })
        .await;
    let mut client = connect(segue.endpoint()).await;
    let why = |status: &serde_json::Value| {
        let conflict = &status["foreign"]["conflict"];
        format!("{}: {}", conflict["key"], conflict["why"])
    };
    home.run(
        "INSERT INTO kv VALUES ('/null', NULL, NULL), (NULL, 'x', NULL), ('', 'x', NULL), \
         ('segue/own', 'x', NULL)",
    )
    .await;
    let status = counted(&segue, 1, 0, 1).await;
    assert_eq!(why(&status), r#""/null": "its value is NULL""#, "{kind:?}");
    insert(&home, &key(1), "second").await;
    let status = counted(&segue, 2, 0, 2).await;
    let twice = format!("\"{}\": \"more than one row has this key\"", key(1));
    assert_eq!(why(&status), twice, "{kind:?}");
    // What was no key is gone, here as there.
    home.run("DELETE FROM kv WHERE v IS NULL OR k IS NULL OR k = ''")
        .await;
    counted(&segue, 4, 0, 2).await;
    // One row has the key again, and has what it had.
    home.run("DELETE FROM kv WHERE v = 'second'").await;
    counted(&segue, 5, 1, 2).await;
    assert_eq!(get(&mut client, &key(1)).await.as_deref(), Some("old"));
    set(&home, &key(2), "foreign").await;
    counted(&segue, 6, 2, 2).await;
    assert_eq!(get(&mut client, &key(2)).await.as_deref(), Some("foreign"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_keys_come_and_go_and_the_watch_goes_on() {
    join_all(ALL.map(goes_on_over_rejects)).await;
}

/// A watcher of the table itself.
struct Watcher {
    changes: ForeignChanges,
    seen: Bookmark,
}

impl Watcher {
    /// Begins, or goes on; answers whether something was missed as well.
    async fn of(store: &dyn segue::store::OldStore, seen: Bookmark) -> (Self, bool) {
        let changes = store.foreign(seen).await.unwrap().unwrap();
        let mut watcher = Self { changes, seen };
        let first = watcher.next().await;
        assert_eq!(first.changes, []);
        (watcher, first.missed)
    }

    async fn next(&mut self) -> ForeignBatch {
        let batch = timeout(DEADLINE, self.changes.next()).await;
        let batch = batch.expect("there is something in time");
        let batch = batch.unwrap().unwrap();
        self.seen = Bookmark {
            through: batch.through,
            mark: batch.mark,
        };
        batch
    }

    /// What is put next, with its number.
    async fn put(&mut self) -> (String, String, Revision) {
        let batch = self.next().await;
        assert!(!batch.missed);
        let [ForeignChange::Key(event)] = &batch.changes[..] else {
            panic!("{batch:?}");
        };
        let Change::Put(kv) = &event.change else {
            panic!("{batch:?}");
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(&kv.key), text(&kv.value), event.revision())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_and_not_taken_is_told_again_and_what_was_taken_is_not() {
    let home = filled(Sqlite, true).await;
    let store = home.open("kv", COLUMNS).await;
    let begin = Bookmark {
        through: Revision(1),
        mark: None,
    };
    let (mut watcher, missed) = Watcher::of(&*store, begin).await;
    assert!(!missed, "there was nobody to miss anything");
    let begin = watcher.seen;
    set(&home, &key(1), "one").await;
    let (name, value, first) = watcher.put().await;
    assert_eq!((name, &*value, first), (key(1), "one", Revision(2)));
    // Whoever was told of it has gone before writing it down.
    drop(watcher);
    set(&home, &key(1), "two").await;
    let (mut watcher, missed) = Watcher::of(&*store, begin).await;
    assert!(!missed);
    let (name, value, again) = watcher.put().await;
    assert_eq!((name, &*value), (key(1), "two"));
    assert!(again > first, "a number is used twice");
    // And behind it.
    let taken = watcher.seen;
    drop(watcher);
    set(&home, &key(2), "one").await;
    let (mut watcher, missed) = Watcher::of(&*store, taken).await;
    assert!(!missed);
    let (name, ..) = watcher.put().await;
    assert_eq!(name, key(2));
    let taken = watcher.seen;
    drop(watcher);

    // Another process.
    let other = home.open("kv", COLUMNS).await;
    let (watcher, missed) = Watcher::of(&*other, taken).await;
    assert!(!missed, "nothing has changed");
    drop(watcher);
    set(&home, &key(3), "one").await;
    let (watcher, missed) = Watcher::of(&*home.open("kv", COLUMNS).await, taken).await;
    assert!(missed, "something has changed");
    drop(watcher);
    // The first one does not tell what that one has seen.
    let (mut watcher, missed) = Watcher::of(&*store, taken).await;
    assert!(!missed);
    assert_eq!(watcher.put().await.0, key(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_changes_than_are_remembered_are_all_told_once() {
    const ROWS: usize = 25_000;
    let home = filled(Sqlite, true).await;
    let store = home.open("kv", COLUMNS).await;
    let (mut watcher, _) = Watcher::of(&*store, Bookmark::default()).await;
    home.run(&format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {ROWS}) \
         INSERT INTO kv SELECT '/more/' || n, 'new', NULL FROM n; DELETE FROM kv WHERE v = 'old'"
    ))
    .await;
    let mut told = BTreeSet::new();
    while told.len() < ROWS + KEYS {
        for change in watcher.next().await.changes {
            assert!(told.insert(change.key().clone()), "{change:?}");
        }
    }
    set(&home, "/more/7", "other").await;
    assert_eq!(watcher.put().await.0, "/more/7");
}
