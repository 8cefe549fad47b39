//! Connections, locks and servers that fail in the middle, and what fits into a row.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use mysql_async::prelude::Queryable as _;
use segue::store::sql::mysql::MysqlStore;
use segue::store::{
    CopyUp, Guard, NewStore as _, Read, RecordTxn, RecordWrite, RequestError, Store, StoreError,
    Watch, WatchItem,
};
use segue::tasks::spawn_owned;
use segue::types::{Delete, Grant, KeyRange, KeyValue, LeaseId, Op, Put, Range, Revision, Txn};

use super::open;
use crate::alike;
use crate::support::link::{Cut, Link, Signs};
use crate::support::mariadb::{database, run, try_run};
use crate::support::wait::within;
use crate::support::{MariaDb, eventually};

/// A batch is known by its row in the table of processes; whatever is answered then, it has happened.
const COMMIT: Signs = Signs {
    commits: |sent| {
        let mark = b"process (id, batch";
        sent.ends_with(b";\nCOMMIT") && sent.windows(mark.len()).any(|part| part == mark)
    },
    has_happened: |_| true,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_not_answered_is_looked_up() {
    let url = database().await;
    let link = Link::watching(&url, COMMIT).await;
    let store = open(&link.url(&url)).await;
    alike::commits_are_looked_up(&*store, &link).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_can_be_asked_about_is_no_clean_failure_and_watches_see_it() {
    let url = database().await;
    let link = Link::watching(&url, COMMIT).await;
    let store = open(&link.url(&url)).await;
    let mut watching = store.watch(Watch::of(KeyRange::all(), None)).await.unwrap();
    link.cut_next(Cut::After);
    link.close_behind();
    let told = store.put(Put::new("a", "1")).await.unwrap_err();
    assert!(matches!(told, StoreError::Unknown(_)), "{told}");
    // It has happened, in fact.
    link.open();
    for revision in [2, 3] {
        let next = tokio::time::timeout(Duration::from_secs(10), watching.items.next());
        let Ok(Some(WatchItem::Events(batch))) = next.await else {
            panic!("revision {revision} is not seen");
        };
        assert_eq!(batch.revision, Revision(revision));
        if revision == 2 {
            let answer = store.put(Put::new("a", "2")).await.unwrap();
            assert_eq!(answer.revision, Revision(3));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_clients_gave_up_are_in_nobodys_way() {
    let url = database().await;
    let store = open(&url).await;
    store.put(Put::new("a", "")).await.unwrap();
    let mut other = mysql_async::Conn::from_url(&url).await.unwrap();
    other
        .query_drop("LOCK TABLES segue_kv WRITE")
        .await
        .unwrap();
    let under_way = async || {
        let waiting = "SELECT CAST(count(*) AS CHAR) FROM information_schema.processlist \
                       WHERE db = DATABASE() AND state LIKE '%metadata lock%'";
        run(&url, waiting).await[0].parse::<usize>().unwrap()
    };
    // More than there are connections.
    let lists: Vec<_> = (0..12)
        .map(|_| {
            let store = store.clone();
            spawn_owned(async move { store.range(Range::of(KeyRange::all())).await })
        })
        .collect();
    eventually("lists are under way", async || {
        let count = under_way().await;
        if count >= 5 { Ok(()) } else { Err(count) }
    })
    .await;
    // Short reads find a connection all the same, and lists leave it to them.
    let soon = Duration::from_secs(10);
    let lease = tokio::time::timeout(soon, store.time_to_live(LeaseId(1), false));
    assert_eq!(lease.await.unwrap().unwrap().reply, None);
    assert_eq!(under_way().await, 5);
    for list in &lists {
        list.abort();
    }
    // The server would end them after half a minute.
    let left = within(Duration::from_secs(15), async || match under_way().await {
        0 => Ok(()),
        count => Err(count),
    });
    left.await.unwrap();
    other.query_drop("UNLOCK TABLES").await.unwrap();
    let read = store.range(Range::of(KeyRange::all())).await.unwrap();
    assert_eq!(read.reply.count, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_somebody_holds_for_long_is_waited_for_but_not_by_clients() {
    let url = database().await;
    let store = open(&url).await;
    let mut other = mysql_async::Conn::from_url(&url).await.unwrap();
    other
        .query_drop("START TRANSACTION; SELECT * FROM segue_head FOR UPDATE")
        .await
        .unwrap();
    // Longer than the server lets a statement wait, and than a client waits.
    let held = Duration::from_secs(8);
    let begun = Instant::now();
    let release = async {
        tokio::time::sleep(held).await;
        other.query_drop("ROLLBACK").await.unwrap();
    };
    // Reads do not wait.
    let read = store.range(Range::key("a")).await.unwrap();
    assert!(begun.elapsed() < held && read.reply.kvs.is_empty());
    let record = RecordWrite {
        name: "r".into(),
        value: Some("".into()),
    };
    let txn = RecordTxn {
        writes: vec![record],
        ..RecordTxn::default()
    };
    let put = async {
        let told = store.put(Put::new("a", "")).await;
        assert!(matches!(told, Err(StoreError::Late(_))), "{told:?}");
        assert!(begun.elapsed() < held);
    };
    let (written, (), ()) = tokio::join!(store.write_records(txn), put, release);
    assert!(written.unwrap() && begun.elapsed() >= held);
    let read = store.range(Range::key("a")).await.unwrap();
    assert_eq!((read.revision, read.reply.count), (Revision(1), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_loses_a_deadlock_is_tried_again() {
    let url = database().await;
    let store = open(&url).await;
    store.put(Put::new("a", "1")).await.unwrap();
    let mut other = mysql_async::Conn::from_url(&url).await.unwrap();
    // The one who has written less loses.
    other
        .query_drop(
            "CREATE TABLE heavy (n INT) ENGINE=InnoDB; START TRANSACTION; \
             INSERT INTO heavy SELECT seq FROM seq_1_to_5000; \
             UPDATE segue_kv SET version = version + 0, lease = 1 WHERE `key` = 'a'",
        )
        .await
        .unwrap();
    let put = store.put(Put::new("a", "2"));
    let deadlock = async {
        let waits = "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() \
                     AND info LIKE '%INSERT INTO segue_kv%' AND id <> CONNECTION_ID() \
                     AND time_ms > 300";
        eventually("the batch waits for the row", async || {
            let waiting: Option<u64> = other.query_first(waits).await.unwrap();
            if waiting == Some(0) {
                Err("it does not")
            } else {
                Ok(())
            }
        })
        .await;
        // It succeeds, so the batch has lost.
        other
            .query_drop("SELECT * FROM segue_head FOR UPDATE")
            .await
            .unwrap();
        other.query_drop("ROLLBACK").await.unwrap();
    };
    let (answer, ()) = tokio::join!(put, deadlock);
    assert_eq!(answer.unwrap().revision, Revision(3));
    let read = store.range(Range::key("a")).await.unwrap();
    assert_eq!(
        (read.reply.kvs[0].version, &read.reply.kvs[0].value[..]),
        (2, &b"2"[..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_stays_exact_while_connections_are_killed_and_the_server_is_restarted() {
    let mut server = MariaDb::start().await;
    let url = server.database().await;
    let store = open(&url).await;
    alike::a_counter_stays_exact(&*store, async |part| {
        if part % 2 == 0 {
            server.kill();
            server.restart().await;
        } else {
            end_connections(&url).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_see_what_another_process_writes() {
    let url = database().await;
    let (writer, reader) = (open(&url).await, open(&url).await);
    alike::watches_see_what_another_writes(&*writer, &*reader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_outlive_compactions_of_another_process() {
    let url = database().await;
    let (writer, reader) = (open(&url).await, open(&url).await);
    alike::watches_outlive_compactions_of_another(&*writer, &*reader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_byte_and_the_longest_keys_and_values_go_through_unchanged() {
    let store = open(&database().await).await;
    let longest = alike::all_keys_go_through_unchanged(&*store).await;
    let longer = [&longest[..], b"x"].concat();
    let refused = store.put(Put::new(longer, "")).await.unwrap_err();
    let StoreError::Request(RequestError::Unacceptable(why)) = refused else {
        panic!("{refused}");
    };
    assert!(why.contains("3072"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_past_skip_no_keys_that_are_alike_for_long() {
    const KEYS: usize = 300;
    let url = database().await;
    let store = open(&url).await;
    let key = |number: usize| format!("{}{number:04}", "k".repeat(1100));
    // In another order than that of the keys, so that the history is in it.
    let put_all = async |value: &str| {
        let numbers = (0..KEYS).map(|number| number * 7 % KEYS);
        let puts = numbers.map(|number| Op::Put(Put::new(key(number), value.to_owned())));
        store.txn(Txn::of(puts.collect())).await.unwrap().revision
    };
    let past = put_all("old").await;
    put_all("new").await;
    for limit in [7, 100] {
        let mut seen = Vec::new();
        let mut rest = Some(KeyRange::all());
        while let Some(keys) = rest {
            let page = Range {
                at: Some(past),
                limit,
                ..Range::of(keys.clone())
            };
            let page = store.range(page).await.unwrap().reply;
            assert!(page.kvs.iter().all(|kv| kv.value == "old"));
            seen.extend(page.kvs.iter().map(|kv| kv.key.clone()));
            rest = keys.after(&page.kvs[page.kvs.len() - 1].key);
            rest = rest.filter(|_| page.more);
        }
        let expected: Vec<Bytes> = (0..KEYS).map(|number| key(number).into()).collect();
        assert!(seen == expected, "{limit}: {} keys", seen.len());
    }
}

/// Ends all connections to a database.
async fn end_connections(url: &str) {
    let ids = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() \
               AND id <> CONNECTION_ID()";
    for id in run(url, ids).await {
        // It may have gone by itself.
        try_run(url, &format!("KILL {id}")).await.ok();
    }
}

/// The numbers of the connections of an account, but for that which asks.
async fn connections(url: &str, user: &str) -> Vec<String> {
    let ids = format!("SELECT id FROM information_schema.processlist WHERE user = '{user}'");
    run(url, &ids).await
}

/// URLs of a new database: one for whoever may do anything, and one with an account that has the rights which
/// Segue needs.
async fn account(server: &MariaDb, user: &str, options: &str) -> (String, String) {
    let url = server.database().await;
    let (_, name) = url.rsplit_once('/').unwrap();
    let grant = format!(
        "CREATE USER {user}@127.0.0.1 IDENTIFIED BY 'hunter2' {options}; \
         GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON {name}.* TO {user}@127.0.0.1"
    );
    run(&url, &grant).await;
    let own = url.replace("segue:", &format!("{user}:"));
    (url, own)
}

/// Reads until no more than so many of the connections that were there `before` are there `now`: each of
/// those that read notices when it is needed again.
async fn until_left(
    store: &MysqlStore,
    before: &[String],
    most: usize,
    now: impl AsyncFn() -> Vec<String>,
) {
    eventually("the connections are new ones", async || {
        store.range(Range::key("a")).await.unwrap();
        store.range(Range::of(KeyRange::all())).await.unwrap();
        let now = now().await;
        let left = before.iter().filter(|id| now.contains(id)).count();
        if left > most {
            Err((before.to_vec(), now))
        } else {
            Ok(())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_to_write_on_is_enough_where_there_is_no_second_one() {
    let server = MariaDb::start().await;
    // Of an account that has no limit, the server does not count the connections.
    let (url, limited) = account(&server, "limited", "WITH MAX_USER_CONNECTIONS 50").await;
    let store = open(&limited).await;
    for _ in 0..10 {
        store.put(Put::new("one", "")).await.unwrap();
        store.range(Range::key("one")).await.unwrap();
    }
    let before = connections(&url, "limited").await.len();
    let alter = format!("ALTER USER limited@127.0.0.1 WITH MAX_USER_CONNECTIONS {before}");
    run(&url, &alter).await;
    // There is always a batch behind the one that is committed.
    let client = async |key: String| {
        for _ in 0..10 {
            store.put(Put::new(key.clone(), "")).await.unwrap();
        }
    };
    join_all((0..64).map(|number| client(format!("many/{number}")))).await;
    // One that is being refused is among them for a moment.
    eventually("no more connections than before", async || {
        let now = connections(&url, "limited").await.len();
        if now > before {
            Err((before, now))
        } else {
            Ok(())
        }
    })
    .await;
    let read = store.range(Range::key("many/0")).await.unwrap();
    assert_eq!(read.revision, Revision(1 + 10 + 640));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_read_only_is_left() {
    let server = MariaDb::start().await;
    // Others may write to a server that is read-only.
    let (url, plain) = account(&server, "plain", "").await;
    let store = open(&plain).await;
    store.put(Put::new("a", "1")).await.unwrap();
    store.range(Range::key("a")).await.unwrap();
    store.range(Range::of(KeyRange::all())).await.unwrap();
    let before = connections(&url, "plain").await;
    run(&url, "SET GLOBAL read_only = 1").await;
    let told = store.put(Put::new("a", "2")).await.unwrap_err();
    assert!(told.to_string().contains("name the primary"), "{told}");
    assert!(!matches!(told, StoreError::Unknown(_)), "{told}");
    // The one for small commits is not needed.
    until_left(&store, &before, 1, async || {
        connections(&url, "plain").await
    })
    .await;
    run(&url, "SET GLOBAL read_only = 0").await;
    let answer = store.put(Put::new("a", "3")).await.unwrap();
    assert_eq!(answer.revision, Revision(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_leave_a_server_that_is_read_only_though_nobody_writes() {
    let server = MariaDb::start().await;
    let url = server.database().await;
    let store = open(&url).await;
    let mut watching = store.watch(Watch::of(KeyRange::all(), None)).await.unwrap();
    store.range(Range::of(KeyRange::all())).await.unwrap();
    let reads = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() \
                 AND id <> CONNECTION_ID()";
    let before = run(&url, reads).await;
    run(&url, "SET GLOBAL read_only = 1").await;
    // The one that writes and the one for small commits are not needed.
    until_left(&store, &before, 2, async || run(&url, reads).await).await;
    // This account may write there, and so it does.
    let written = store.put(Put::new("a", "")).await.unwrap().revision;
    let Some(WatchItem::Events(batch)) = watching.items.next().await else {
        panic!("the watch has ended");
    };
    assert_eq!(batch.revision, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_what_another_process_wrote_does_without_a_connection_that_was_ended() {
    let url = database().await;
    let (writer, reader) = (open(&url).await, open(&url).await);
    for number in 1..=3 {
        let written = writer.put(Put::new("a", "")).await.unwrap().revision;
        let read = reader.range(Range::key("a")).await.unwrap();
        assert_eq!((read.revision, written), (written, Revision(1 + number)));
        end_connections(&url).await;
    }
}

/// A commit is seen before it is on the disk. Whoever reads what another process has written waits until it
/// is, and has committed something small himself for that.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_wrote_without_a_revision_is_on_the_disk_as_well_before_it_is_told() {
    let url = database().await;
    let (writer, reader) = (open(&url).await, open(&url).await);
    let small_commits = async || {
        let sum = "SELECT COALESCE(SUM(batch), 0) FROM segue_process WHERE id < 0";
        run(&url, sum).await[0].parse::<i64>().unwrap()
    };
    let lease = LeaseId(7);
    for change in ["record", "copy", "grant", "revoke"] {
        let before = small_commits().await;
        match change {
            "record" => {
                let record = RecordTxn {
                    writes: vec![RecordWrite {
                        name: "frontier".into(),
                        value: Some("m".into()),
                    }],
                    ..RecordTxn::default()
                };
                assert!(writer.write_records(record).await.unwrap());
            }
            "copy" => {
                let copied = KeyValue {
                    key: "copied".into(),
                    create_revision: Revision(1),
                    mod_revision: Revision(1),
                    version: 1,
                    ..KeyValue::default()
                };
                let copy_up = CopyUp {
                    kvs: vec![copied],
                    record: None,
                };
                let store = writer.clone().guarded(Guard::None);
                store.copy_up(copy_up).await.unwrap();
            }
            "grant" => {
                let grant = Grant {
                    id: Some(lease),
                    ttl_s: 60,
                };
                writer.grant(grant).await.unwrap();
            }
            _ => {
                writer.revoke(lease).await.unwrap();
            }
        }
        let read = reader.range(Range::key("copied")).await.unwrap();
        assert_eq!(read.revision, Revision(1), "{change}");
        assert!(small_commits().await > before, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_server_does_not_take_is_refused_and_harms_nobody() {
    let server = MariaDb::start_with(&["--max-allowed-packet=1M"]).await;
    let url = server.database().await;
    let store = open(&url).await;
    let put = |size| store.put(Put::new("a", vec![7; size]));
    let (large, small) = tokio::join!(put(600_000), store.put(Put::new("b", "")));
    let told = large.unwrap_err().to_string();
    assert!(told.contains("max_allowed_packet"), "{told}");
    small.unwrap();
    // What is said to be possible is.
    let most: usize = told
        .split("takes ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    put(most).await.unwrap();
    assert!(put(most + 1).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_ten_thousand_keys_in_one_revision_are_found_again_quickly() {
    let store = open(&database().await).await;
    alike::many_changes_of_a_revision_are_found(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compacted_is_deleted_and_its_room_given_back() {
    const KEYS: usize = 100;
    let url = database().await;
    let store = open(&url).await;
    // More than is deleted in one step.
    for round in 0..50 {
        let puts = (0..KEYS).map(|key| Op::Put(Put::new(format!("{key}"), format!("{round}"))));
        store.txn(Txn::of(puts.collect())).await.unwrap();
    }
    let all = Delete {
        keys: KeyRange::One("1".into()),
        prev_kv: false,
    };
    store.delete(all).await.unwrap();
    let last = store.put(Put::new("last", "")).await.unwrap().revision;
    store.compact(last).await.unwrap();
    eventually("what was superseded is gone", async || {
        let left = run(&url, "SELECT COUNT(*) FROM segue_log").await;
        if left == [KEYS.to_string()] {
            Ok(())
        } else {
            Err(left)
        }
    })
    .await;
    store.defragment().await.unwrap();
    let status = store.status().await.unwrap();
    assert!(
        status.size >= status.size_in_use && status.size_in_use > 0,
        "{status:?}"
    );
    let read = store.range(Range::of(KeyRange::all())).await.unwrap().reply;
    assert_eq!(read.kvs.len(), KEYS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_is_set_to_do_behind_a_commit_is_not_done() {
    let server = MariaDb::start().await;
    for behind in ["CHAIN", "RELEASE"] {
        let url = server.database().await;
        run(&url, &format!("SET GLOBAL completion_type = '{behind}'")).await;
        let store = open(&url).await;
        let all = store.clone().guarded(Guard::None);
        // More keys than go beside the head row in one statement, and so in a transaction.
        let many = || -> Vec<Read> {
            let keys = ('a'..='f').map(String::from);
            keys.map(|key| Read::Range(Range::key(key))).collect()
        };
        for number in 2..6 {
            let written = store.put(Put::new("a", "")).await.unwrap().revision;
            assert_eq!(written, Revision(number), "{behind}");
            let single = |_| store.range(Range::key("a"));
            for read in join_all((0..4).map(single)).await {
                assert_eq!(read.unwrap().revision, written, "{behind}");
            }
            for read in join_all((0..4).map(|_| all.snapshot(None, many()))).await {
                assert_eq!(read.unwrap().revision, written, "{behind}");
            }
            for read in join_all((0..4).map(single)).await {
                assert_eq!(read.unwrap().revision, written, "{behind}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_among_many_pairs_are_found_in_short_steps_and_dropped_in_small_packets() {
    const LIVE: usize = 50_000;
    let server = MariaDb::start_with(&[
        "--max-allowed-packet=1M",
        "--log-output=TABLE",
        "--slow-query-log=1",
        "--long-query-time=0",
    ])
    .await;
    let url = server.database().await;
    let store = open(&url).await;
    let fill = format!(
        "INSERT INTO segue_kv SELECT CONCAT('m', seq), 2, 2, 1, 0, 1, 1, '' FROM seq_1_to_{LIVE}; \
         INSERT INTO segue_kv SELECT CONCAT(IF(seq % 2, 'a', 'z'), REPEAT('k', 3000), seq), \
         0, 3, 0, 0, 0, 1, NULL FROM seq_1_to_400"
    );
    run(&url, &fill).await;
    store.drop_claims().await.unwrap();
    let left = run(
        &url,
        "SELECT COUNT(*) FROM segue_kv UNION ALL SELECT SUM(live) FROM segue_kv",
    )
    .await;
    assert_eq!(left, [LIVE.to_string(), LIVE.to_string()]);
    let most =
        "SELECT MAX(rows_examined) FROM mysql.slow_log WHERE sql_text LIKE 'SELECT%kv FORCE%'";
    let most: usize = run(&url, most).await[0].parse().unwrap();
    assert!(
        (1..LIVE / 2).contains(&most),
        "{most} rows in one statement"
    );
}
