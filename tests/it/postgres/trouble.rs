//! Connections, locks and servers that fail in the middle, and what fits into a row.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use segue::store::sql::postgres::PostgresStore;
use segue::store::{
    Guard, Line, NewStore as _, RecordTxn, Store, StoreError, Watch, WatchEnd, WatchItem,
};
use segue::tasks::spawn_owned;
use segue::types::{Epoch, Grant, KeyRange, Put, Range, Revision};

use super::open;
use crate::alike;
use crate::support::link::{Link, Signs};
use crate::support::postgres::{connect, run, schema, schema_of};
use crate::support::wait::within;
use crate::support::{Postgres, eventually};

/// The name of the channel that hears of a batch is sent before its commit and with it.
const COMMIT: Signs = Signs {
    commits: |sent| {
        let is_channel = |part: &[u8]| {
            part.starts_with(b"segue_") && part[6..].iter().all(u8::is_ascii_hexdigit)
        };
        sent.windows(38).any(is_channel)
    },
    has_happened: |answered| answered.windows(7).any(|part| part == b"COMMIT\0"),
};

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_not_answered_is_looked_up() {
    let url = schema().await;
    let link = Link::watching(&url, COMMIT).await;
    let store = open(&link.url(&url)).await;
    alike::commits_are_looked_up(&*store, &link).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_do_not_wait_for_the_lock_and_writes_wait_until_it_is_free() {
    let url = schema().await;
    let store = open(&url).await;
    let other = connect(&url).await;
    other
        .batch_execute("BEGIN; SELECT * FROM segue_head FOR UPDATE")
        .await
        .unwrap();
    let put = store.put(Put::new("a", ""));
    let release = async {
        eventually("the batch waits for the lock", async || {
            waiting(&url, "FOR UPDATE").await
        })
        .await;
        let read = store.range(Range::of(KeyRange::all())).await.unwrap();
        assert_eq!(read.reply.count, 0);
        other.batch_execute("ROLLBACK").await.unwrap();
    };
    let (answer, ()) = tokio::join!(put, release);
    assert_eq!(answer.unwrap().revision, Revision(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_do_not_wait_until_space_is_given_back() {
    let url = schema().await;
    let store = open(&url).await;
    store.put(Put::new("a", "")).await.unwrap();
    let other = connect(&url).await;
    // In the way of nothing but that.
    other
        .batch_execute("BEGIN; LOCK TABLE segue_kv IN SHARE UPDATE EXCLUSIVE MODE")
        .await
        .unwrap();
    let put = async {
        eventually("it waits for the lock", async || {
            waiting(&url, "VACUUM").await
        })
        .await;
        store.put(Put::new("a", "")).await.unwrap();
        other.batch_execute("ROLLBACK").await.unwrap();
    };
    let (done, ()) = tokio::join!(store.defragment(), put);
    done.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_waited_for_a_lock_which_nothing_came_of_has_its_full_time() {
    let url = schema().await;
    let store = open(&url).await;
    let other = connect(&url).await;
    other
        .batch_execute("BEGIN; SELECT * FROM segue_head FOR UPDATE")
        .await
        .unwrap();
    let grant = store.grant(Grant {
        id: None,
        ttl_s: 60,
    });
    let release = async {
        eventually("the batch waits for the lock", async || {
            waiting(&url, "FOR UPDATE").await
        })
        .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        let now: i64 = run(&url, now).await[0].parse().unwrap();
        other.batch_execute("ROLLBACK").await.unwrap();
        now
    };
    let (granted, now) = tokio::join!(grant, release);
    granted.unwrap();
    let deadline = run(&url, "SELECT deadline_ms FROM segue_lease").await;
    let left = deadline[0].parse::<i64>().unwrap() - now;
    assert!(left >= 60_000, "{left} ms are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_clients_gave_up_are_in_nobodys_way() {
    let url = schema().await;
    let store = open(&url).await;
    store.put(Put::new("quick", "")).await.unwrap();
    store.put(Put::new("slow", "")).await.unwrap();
    run(
        &url,
        "ALTER TABLE segue_kv RENAME TO all_kv; CREATE VIEW segue_kv AS SELECT * FROM all_kv \
         WHERE \"key\" <> 'slow' OR pg_sleep(600) IS NULL",
    )
    .await;
    let under_way = async || {
        let sleep = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
             AND query LIKE '%{}%'",
            schema_of(&url)
        );
        run(&url, &sleep).await[0].parse::<usize>().unwrap()
    };
    // More than there are connections.
    let lists: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            spawn_owned(async move { store.range(Range::of(KeyRange::all())).await })
        })
        .collect();
    eventually("lists are under way", async || {
        let count = under_way().await;
        if count >= 3 { Ok(()) } else { Err(count) }
    })
    .await;
    for list in &lists {
        list.abort();
    }
    // The server would end them after a minute.
    let soon = Duration::from_secs(20);
    let quick = store.range(Range::of(KeyRange::prefix("quick")));
    let read = tokio::time::timeout(soon, quick).await.unwrap().unwrap();
    assert_eq!(read.reply.count, 1);
    let left = within(soon, async || match under_way().await {
        0 => Ok(()),
        count => Err(count),
    });
    left.await.unwrap();
}

/// Whether a statement with this text waits for a lock in the schema of `url`.
async fn waiting(url: &str, text: &str) -> Result<(), String> {
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
         AND query LIKE '%{}%' AND query LIKE '%{text}%'",
        schema_of(url)
    );
    let found = run(url, &waits).await;
    if found == ["1"] {
        Ok(())
    } else {
        Err(format!("{found:?}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_loses_a_deadlock_is_tried_again() {
    let url = schema().await;
    let store = open(&url).await;
    store.put(Put::new("a", "1")).await.unwrap();
    let other = connect(&url).await;
    // Whoever has waited for a second looks for deadlocks; that is the batch, then.
    other
        .batch_execute(
            "SET deadlock_timeout = '30s'; BEGIN; UPDATE segue_kv SET version = version + 0",
        )
        .await
        .unwrap();
    let put = store.put(Put::new("a", "2"));
    let deadlock = async {
        eventually("the batch waits for the row", async || {
            waiting(&url, "UPDATE").await
        })
        .await;
        // It succeeds, so the batch has lost.
        other
            .batch_execute("SELECT * FROM segue_head FOR UPDATE")
            .await
            .unwrap();
        other.batch_execute("ROLLBACK").await.unwrap();
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
async fn a_batch_that_cannot_be_serialized_is_tried_again() {
    let url = schema().await;
    let store = open(&url).await;
    // Once, as engines do which serialize more than PostgreSQL.
    run(
        &url,
        "CREATE SEQUENCE tries; CREATE FUNCTION once() RETURNS trigger LANGUAGE plpgsql AS $$ \
         BEGIN IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; \
         END IF; RETURN NULL; END $$; ALTER FUNCTION once() SET search_path FROM CURRENT; \
         CREATE CONSTRAINT TRIGGER once AFTER INSERT ON segue_kv DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION once()",
    )
    .await;
    let answer = store.put(Put::new("a", "1")).await.unwrap();
    assert_eq!(answer.revision, Revision(2));
    assert_eq!(run(&url, "SELECT last_value FROM tries").await, ["3"]);
    let read = store.range(Range::key("a")).await.unwrap();
    assert_eq!(read.reply.kvs[0].version, 1);
}

/// Clients who each put so many keys of their own, one after the other. Answers the keys that were put.
async fn put_all(store: &PostgresStore, clients: usize, each: usize) -> Vec<String> {
    let client = async |client| {
        let mut put = Vec::new();
        for number in 0..each {
            let key = format!("{client}/{number}");
            match store.put(Put::new(key.clone(), "")).await {
                Ok(_) => put.push(key),
                Err(StoreError::Broken(why)) => assert!(why.contains("never"), "{why}"),
                Err(err) => panic!("{err}"),
            }
        }
        put
    };
    join_all((0..clients).map(client)).await.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_takes_none_with_it_that_was_begun_behind_it() {
    let again = ("again", "40001", "nextval('tries') % 50 = 0");
    let never = (
        "never",
        "P0001",
        "convert_from(NEW.\"key\", 'UTF8') LIKE '%/7'",
    );
    for (message, code, condition) in [again, never] {
        let url = schema().await;
        let store = open(&url).await;
        // At some rows, when they are to be committed.
        let trigger = format!(
            "CREATE SEQUENCE tries; CREATE FUNCTION sometimes() RETURNS trigger LANGUAGE plpgsql AS $$ \
             BEGIN IF {condition} THEN RAISE EXCEPTION '{message}' USING ERRCODE = \
             '{code}'; END IF; RETURN NULL; END $$; ALTER FUNCTION sometimes() SET search_path FROM CURRENT; \
             CREATE CONSTRAINT TRIGGER sometimes AFTER INSERT ON segue_kv DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION sometimes()"
        );
        run(&url, &trigger).await;
        let mut put = put_all(&store, 32, 30).await;
        put.sort();
        let read = store.range(Range::of(KeyRange::all())).await.unwrap();
        let keys = read.reply.kvs.iter();
        let keys: Vec<_> = keys.map(|kv| String::from_utf8_lossy(&kv.key)).collect();
        assert_eq!(keys, put);
        assert_eq!(
            read.revision,
            Revision(1 + i64::try_from(put.len()).unwrap())
        );
        let failed = if message == "never" { 32 } else { 0 };
        assert_eq!(put.len(), 32 * 30 - failed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_begun_ahead_sees_the_one_before_it() {
    // On a new connection, where the statements of the commit are still to be prepared.
    let store = open(&schema().await).await;
    let puts = join_all((0..2).map(|_| store.put(Put::new("a", ""))));
    let mut revisions: Vec<i64> = puts
        .await
        .into_iter()
        .map(|answer| answer.unwrap().revision.0)
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_put_is_lost_where_others_write_or_move_the_rows() {
    const KEYS: usize = 400;
    let url = schema().await;
    let (busy, other) = (open(&url).await, open(&url).await);
    let counts: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let put = async |store: &PostgresStore, number: usize| {
        store.put(Put::new(format!("{number}"), "")).await.unwrap();
        counts[number].fetch_add(1, Ordering::Relaxed);
    };
    let over = AtomicU64::new(0);
    // Of some batches a key is in the one before, of most none is.
    let load = async |client: usize| {
        let mut number = client;
        while over.load(Ordering::Relaxed) == 0 {
            number = (number * 31 + 7) % KEYS;
            put(&busy, number).await;
        }
    };
    let hand = connect(&url).await;
    let trouble = async {
        for round in 0..60 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            match round % 3 {
                0 => drop(run(&url, "VACUUM FULL segue_kv").await),
                1 => drop(join_all((0..KEYS).step_by(9).map(|number| put(&other, number))).await),
                _ => {
                    for number in 0..KEYS {
                        let key = format!("convert_to('{number}', 'UTF8')");
                        let moved =
                            format!("UPDATE segue_kv SET live = live WHERE \"key\" = {key}");
                        hand.batch_execute(&moved).await.unwrap();
                    }
                }
            }
        }
        over.store(1, Ordering::Relaxed);
    };
    tokio::join!(join_all((0..32).map(load)), trouble);

    let read = busy.range(Range::of(KeyRange::all())).await.unwrap();
    assert!(read.revision.0 > 1_000, "{}", read.revision);
    for kv in read.reply.kvs {
        let number: usize = std::str::from_utf8(&kv.key).unwrap().parse().unwrap();
        let puts = counts[number].load(Ordering::Relaxed);
        assert_eq!(kv.version.cast_unsigned(), puts, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_busy_lets_others_write() {
    let url = schema().await;
    let (busy, other) = (open(&url).await, open(&url).await);
    let done = AtomicU64::new(0);
    let load = async |client: usize| {
        let key = format!("busy/{client}");
        while done.load(Ordering::Relaxed) == 0 {
            busy.put(Put::new(key.clone(), "")).await.unwrap();
        }
    };
    let write = async {
        // A batch that never gets its turn fails when it has waited for the lock for long enough.
        for number in 0..20 {
            let put = other.put(Put::new("other", format!("{number}")));
            let answer = tokio::time::timeout(Duration::from_secs(5), put).await;
            answer.expect("it gets its turn").unwrap();
        }
        done.store(1, Ordering::Relaxed);
    };
    tokio::join!(join_all((0..64).map(load)), write);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_stays_exact_while_connections_are_killed_and_the_server_is_restarted() {
    let mut server = Postgres::start().await;
    let url = server.schema();
    let store = open(&url).await;
    alike::a_counter_stays_exact(&*store, async |part| {
        if part % 2 == 0 {
            server.kill();
            server.restart().await;
        } else {
            let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE application_name = 'segue'";
            run(&url, all).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_write_one_line_of_revisions() {
    const EACH: usize = 100;
    let url = schema().await;
    let stores = [open(&url).await, open(&url).await];
    let puts = (0..2 * EACH).map(|number| {
        let store = &stores[number % 2];
        async move {
            let put = Put::new(format!("{}", number % 7), "");
            store.put(put).await.unwrap().revision.0
        }
    });
    let count = stores.iter().map(|store| async {
        for _ in 0..20 {
            assert!(alike::count_up(&**store).await);
        }
    });
    let (mut revisions, _) = tokio::join!(join_all(puts), join_all(count));
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 2 * EACH, "no revision is given twice");
    let last = stores[0].range(Range::key("counter")).await.unwrap();
    assert_eq!(&last.reply.kvs[0].value[..], b"40");
    assert_eq!(last.revision.0, 1 + 2 * 100 + 40, "no gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_see_what_another_process_writes_without_asking() {
    let url = schema().await;
    let (writer, reader) = (open(&url).await, open(&url).await);
    let begun = Instant::now();
    alike::watches_see_what_another_writes(&*writer, &*reader).await;
    // While notifications come, it is looked every five seconds only.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_outlive_compactions_of_another_process() {
    let url = schema().await;
    let (writer, reader) = (open(&url).await, open(&url).await);
    alike::watches_outlive_compactions_of_another(&*writer, &*reader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_before_another_process_has_moved_the_line_is_told_so() {
    let url = schema().await;
    let (writer, reader) = (open(&url).await, open(&url).await);
    let before = writer.put(Put::new("a", "1")).await.unwrap().revision;
    // As after a rollback: what happened up to the goal is not in this log.
    let goal = Revision(before.0 + 500);
    let (epoch, claims) = (Epoch(7), false);
    let line = Line {
        epoch,
        claims,
        base: goal,
    };
    let txn = RecordTxn {
        line: Some(Some(line)),
        ..RecordTxn::default()
    };
    assert!(writer.write_records(txn).await.unwrap());
    // The reader has published nothing of this yet.
    let guarded = reader.guarded(Guard::Epoch { epoch, claims });
    for start in [before.next(), goal] {
        let watch = Watch::of(KeyRange::all(), Some(start));
        let mut watching = guarded.watch(watch).await.unwrap();
        writer.put(Put::new("a", "2")).await.unwrap();
        let first = tokio::time::timeout(Duration::from_secs(4), watching.items.next()).await;
        let end = WatchItem::End(WatchEnd::Compacted(goal.next()));
        assert_eq!(first.unwrap(), Some(end), "{start}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_see_what_another_process_writes_when_notifications_do_not_come() {
    let url = schema().await;
    let (writer, reader) = (open(&url).await, open(&url).await);
    let mut watching = reader
        .watch(Watch::of(KeyRange::all(), None))
        .await
        .unwrap();
    // Behind Segue's back: nobody is told.
    drop(writer.put(Put::new("a", "1")).await.unwrap());
    let first = tokio::time::timeout(Duration::from_secs(10), watching.items.next()).await;
    assert!(matches!(first, Ok(Some(WatchItem::Events(_)))), "{first:?}");
    run(
        &url,
        "BEGIN; UPDATE segue_head SET revision = revision + 1; \
         INSERT INTO segue_log SELECT revision, 0, 'b', '', 1, revision, 1, 0, 0, 'x' \
         FROM segue_head; COMMIT",
    )
    .await;
    let next = tokio::time::timeout(Duration::from_secs(10), watching.items.next()).await;
    let Ok(Some(WatchItem::Events(batch))) = next else {
        panic!("the change is not seen");
    };
    assert_eq!(batch.revision, Revision(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_byte_and_the_longest_keys_and_values_go_through_unchanged() {
    let store = open(&schema().await).await;
    alike::all_keys_go_through_unchanged(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_ten_thousand_keys_in_one_revision_are_found_again_quickly() {
    let store = open(&schema().await).await;
    alike::many_changes_of_a_revision_are_found(&*store).await;
}
