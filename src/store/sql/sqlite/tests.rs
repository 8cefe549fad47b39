//! What is SQLite's own: opening, durability, the statements over history.

use std::path::PathBuf;

use super::*;
use crate::store::sql::work::Work;
use crate::store::{
    Claim, CopyUp, Guard, Line, NewStore as _, ReadReply, RecordTxn, RecordWrite, RequestError,
    Store as _,
};
use crate::types::{
    Delete, Epoch, Grant, KeyRange, KeyValue, LeaseId, Put, Range, RangeReply, Txn,
};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("store.db")
    }

    async fn open(&self) -> Arc<SqlStore<Sqlite>> {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<Arc<SqlStore<Sqlite>>> {
        open(self.path(), Options::default()).await
    }
}

async fn put(store: &SqlStore<Sqlite>, key: &str, value: &str) -> Revision {
    let put = Put::new(key.to_owned(), value.to_owned());
    store.put(put).await.unwrap().revision
}

async fn at(store: &SqlStore<Sqlite>, revision: i64) -> Result<Vec<(String, String)>> {
    let range = Range {
        at: Some(Revision(revision)),
        ..Range::of(KeyRange::all())
    };
    Ok(pairs(&store.range(range).await?.reply))
}

fn pairs(reply: &RangeReply) -> Vec<(String, String)> {
    assert_eq!(reply.count, reply.kvs.len());
    let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    reply
        .kvs
        .iter()
        .map(|kv| (text(&kv.key), text(&kv.value)))
        .collect()
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect()
}

fn copy(key: &'static str, mod_revision: i64) -> KeyValue {
    KeyValue {
        key: key.into(),
        create_revision: Revision(3),
        mod_revision: Revision(mod_revision),
        version: 4,
        value: "copied".into(),
        lease: LeaseId::NONE,
    }
}

async fn begin_line(store: &SqlStore<Sqlite>, base: i64) -> Guard {
    let line = Line {
        epoch: Epoch(7),
        claims: true,
        base: Revision(base),
    };
    let txn = RecordTxn {
        line: Some(Some(line)),
        ..RecordTxn::default()
    };
    assert!(store.write_records(txn).await.unwrap());
    Guard::Epoch {
        epoch: Epoch(7),
        claims: true,
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_reopening() {
    let dir = Dir::new();
    let store = dir.open().await;
    let identity = store.identity().await.unwrap();
    let revision = put(&store, "a", "1").await;
    store.close().await;
    let refused = store.put(Put::new("a", "2")).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
    drop(store);
    let store = dir.open().await;
    assert_eq!(store.identity().await.unwrap(), identity);
    assert_eq!(at(&store, revision.0).await.unwrap(), owned(&[("a", "1")]));
    assert_eq!(put(&store, "a", "2").await, revision.next());
}

#[tokio::test]
async fn a_second_starter_gets_a_clear_error() {
    let dir = Dir::new();
    let _store = dir.open().await;
    let Err(StoreError::Unavailable(text)) = dir.try_open().await else {
        panic!("opened twice")
    };
    assert!(text.contains("in use by another proxy"), "{text}");
    let link = dir.0.path().join("link.db");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let by_another_name = open(link, Options::default()).await;
    assert!(matches!(by_another_name, Err(StoreError::Unavailable(_))));
}

#[tokio::test]
async fn files_that_cannot_be_a_store_are_refused_with_the_reason() {
    let dir = Dir::new();
    let at = |name: &str| dir.0.path().join(name);
    std::fs::write(
        at("text"),
        "this is no database, but long enough to look at".repeat(50),
    )
    .unwrap();
    let newer = open(at("newer"), Options::default()).await.unwrap();
    newer.close().await;
    drop(newer);
    let conn = Connection::open(at("newer")).unwrap();
    conn.execute("UPDATE segue_head SET schema_version = 99", [])
        .unwrap();
    drop(conn);
    for (path, wanted) in [
        (at("missing/file"), "there is no directory"),
        (dir.0.path().to_owned(), "this is a directory"),
        (at("text"), "not a SQLite database"),
        (at("newer"), "version 99"),
    ] {
        let Err(StoreError::Broken(text)) = open(&path, Options::default()).await else {
            panic!("{} was opened", path.display())
        };
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
    let options = Options {
        table_prefix: "x; DROP TABLE y".into(),
        ..Options::default()
    };
    assert!(open(at("new"), options).await.is_err());
    assert!(!at("new").exists(), "nothing was made");
}

#[tokio::test]
async fn the_past_is_read_until_it_is_compacted() {
    let dir = Dir::new();
    let store = dir.open().await;
    put(&store, "a", "1").await; // 2
    put(&store, "b", "1").await; // 3
    put(&store, "a", "2").await; // 4
    store
        .delete(Delete {
            keys: KeyRange::One("a".into()),
            prev_kv: false,
        })
        .await
        .unwrap(); // 5
    put(&store, "a", "3").await; // 6
    let past: [(i64, &[_]); 6] = [
        (1, &[]),
        (2, &[("a", "1")]),
        (3, &[("a", "1"), ("b", "1")]),
        (4, &[("a", "2"), ("b", "1")]),
        (5, &[("b", "1")]),
        (6, &[("a", "3"), ("b", "1")]),
    ];
    for (revision, wanted) in past {
        assert_eq!(
            at(&store, revision).await.unwrap(),
            owned(wanted),
            "{revision}"
        );
    }
    for compacted in 2..=6 {
        store.compact(Revision(compacted)).await.unwrap();
        let again = store.compact(Revision(compacted)).await.unwrap_err();
        assert_eq!(again, RequestError::Compacted(Revision(compacted)).into());
        // The next write waits for no sweep, but the sweep goes on behind it.
        swept(&store, compacted).await;
        for (revision, wanted) in past {
            let found = at(&store, revision).await;
            if revision < compacted {
                let refused = RequestError::Compacted(Revision(compacted));
                assert_eq!(found.unwrap_err(), refused.into());
            } else {
                assert_eq!(found.unwrap(), owned(wanted), "{revision} at {compacted}");
            }
        }
    }
    assert_eq!(
        log_len(&dir),
        2,
        "only the latest state of each key is left"
    );
}

#[tokio::test]
async fn a_sweep_does_not_go_back_behind_one_that_went_further() {
    let dir = Dir::new();
    let store = dir.open().await;
    for value in ["1", "2", "3", "4"] {
        put(&store, "a", value).await;
    }
    store.compact(Revision(4)).await.unwrap();
    swept(&store, 4).await;
    // As somebody does who knows of an earlier compaction yet.
    let head = store.engine.backend.sweep(Revision(3)).await.unwrap();
    assert_eq!(head.swept, Revision(4));
    let head = store.engine.backend.sweep(Revision(5)).await.unwrap();
    assert_eq!(head.swept, Revision(4), "no more is compacted");
}

async fn swept(store: &SqlStore<Sqlite>, until: i64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (head, _) = store.read(None, Vec::new()).await.unwrap();
        if head.swept == Revision(until) {
            return;
        }
        assert!(Instant::now() < deadline, "still not swept: {head:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn log_len(dir: &Dir) -> i64 {
    let conn = Connection::open(dir.path()).unwrap();
    let count = "SELECT count(*) FROM segue_log";
    conn.query_row(count, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_copied_key_shows_its_old_state_between_the_base_and_its_first_change() {
    let dir = Dir::new();
    let store = dir.open().await;
    let guard = begin_line(&store, 100).await;
    let handle = store.guarded(guard);
    let copy_up = CopyUp {
        kvs: vec![copy("a", 50), copy("b", 60)],
        record: None,
    };
    assert_eq!(handle.copy_up(copy_up.clone()).await.unwrap(), Some(2));
    assert_eq!(handle.copy_up(copy_up).await.unwrap(), Some(0));
    assert_eq!(log_len(&dir), 0, "a copy-up is not a change");
    assert_eq!(put(&store, "c", "1").await, Revision(101));
    assert_eq!(put(&store, "a", "2").await, Revision(102));
    let deleted = Delete {
        keys: KeyRange::One("b".into()),
        prev_kv: false,
    };
    assert_eq!(
        handle.delete(deleted).await.unwrap().revision,
        Revision(103)
    );
    let both = [("a", "copied"), ("b", "copied")];
    assert_eq!(at(&store, 100).await.unwrap(), owned(&both));
    assert_eq!(
        at(&store, 102).await.unwrap(),
        owned(&[("a", "2"), ("b", "copied"), ("c", "1")])
    );
    let before = RequestError::Compacted(Revision(100));
    assert_eq!(at(&store, 99).await.unwrap_err(), before.into());
    let claims = |revision: Option<i64>| {
        let read = crate::store::Read::Claims {
            keys: KeyRange::all(),
            values: 1,
        };
        handle.snapshot(revision.map(Revision), vec![read])
    };
    let ReadReply::Claims(now) = claims(None).await.unwrap().reply.remove(0) else {
        panic!()
    };
    assert!(
        matches!(&now[0], Claim::Live(kv) if kv.value == "2"),
        "{now:?}"
    );
    assert_eq!(now[1], Claim::Whiteout("b".into()));
    assert!(
        matches!(&now[2], Claim::Live(kv) if kv.value.is_empty()),
        "{now:?}"
    );
    let ReadReply::Claims(base) = claims(Some(100)).await.unwrap().reply.remove(0) else {
        panic!()
    };
    assert_eq!(base.len(), 3, "{base:?}");
    assert_eq!(base[0], Claim::Copied(copy("a", 50)));
    assert_eq!(base[2], Claim::Whiteout("c".into()));

    // Compaction keeps the whiteout, though the log forgets the delete.
    store.compact(Revision(103)).await.unwrap();
    put(&store, "b", "3").await;
    store.compact(Revision(104)).await.unwrap();
    swept(&store, 104).await;
    let ReadReply::Claims(now) = claims(None).await.unwrap().reply.remove(0) else {
        panic!()
    };
    assert_eq!(now.len(), 3);
}

#[tokio::test]
async fn a_whiteout_is_seen_in_the_past_when_its_log_entry_is_compacted() {
    let dir = Dir::new();
    let store = dir.open().await;
    let guard = begin_line(&store, 100).await;
    put(&store, "a", "1").await; // 101
    let all = || Delete {
        keys: KeyRange::all(),
        prev_kv: false,
    };
    store.delete(all()).await.unwrap(); // 102
    put(&store, "b", "1").await; // 103
    put(&store, "b", "2").await; // 104
    put(&store, "a", "2").await; // 105
    store.compact(Revision(103)).await.unwrap();
    swept(&store, 103).await;
    let read = crate::store::Read::Claims {
        keys: KeyRange::all(),
        values: 0,
    };
    let handle = store.guarded(guard);
    let answer = handle
        .snapshot(Some(Revision(103)), vec![read])
        .await
        .unwrap();
    let ReadReply::Claims(claims) = &answer.reply[0] else {
        panic!()
    };
    assert_eq!(claims[0], Claim::Whiteout("a".into()));
    assert_eq!(claims.len(), 2);
}

#[tokio::test]
async fn whiteouts_are_counted_out_and_dropped_only_after_the_line() {
    let dir = Dir::new();
    let store = dir.open().await;
    begin_line(&store, 100).await;
    for key in ["a", "b", "c"] {
        put(&store, key, "1").await;
    }
    let deleted = Delete {
        keys: KeyRange::One("b".into()),
        prev_kv: false,
    };
    store.delete(deleted).await.unwrap();
    let limited = Range {
        limit: 1,
        ..Range::of(KeyRange::all())
    };
    let reply = store.range(limited).await.unwrap().reply;
    assert_eq!((reply.count, reply.more, reply.kvs.len()), (2, true, 1));
    assert_eq!(
        store.drop_claims().await.unwrap_err(),
        StoreError::StaleEpoch
    );
    let settle = RecordTxn {
        line: Some(None),
        ..RecordTxn::default()
    };
    assert!(store.write_records(settle).await.unwrap());
    store.drop_claims().await.unwrap();
    let conn = Connection::open(dir.path()).unwrap();
    let count = "SELECT count(*) FROM segue_kv";
    assert_eq!(
        conn.query_row(count, [], |row| row.get::<_, i64>(0))
            .unwrap(),
        2
    );
}

#[tokio::test]
async fn a_lease_has_its_full_time_again_after_reopening() {
    let dir = Dir::new();
    let store = dir.open().await;
    let grant = Grant {
        id: Some(LeaseId(5)),
        ttl_s: 100,
    };
    store.grant(grant).await.unwrap();
    store.close().await;
    drop(store);
    let conn = Connection::open(dir.path()).unwrap();
    conn.execute("UPDATE segue_lease SET deadline_ms = 1", [])
        .unwrap();
    drop(conn);
    let store = dir.open().await;
    let status = store
        .time_to_live(LeaseId(5), true)
        .await
        .unwrap()
        .reply
        .unwrap();
    assert!(status.remaining_ttl_s >= 98, "{status:?}");
}

#[tokio::test]
async fn a_lease_that_was_kept_alive_since_it_was_found_is_not_ended() {
    let dir = Dir::new();
    let store = dir.open().await;
    let id = LeaseId(5);
    let grant = Grant {
        id: Some(id),
        ttl_s: 100,
    };
    store.grant(grant).await.unwrap();
    let found_a_while_ago = Work::Expire(vec![id]);
    let engine = &store.engine;
    engine.submit(Guard::None, found_a_while_ago).await.unwrap();
    assert!(store.time_to_live(id, false).await.unwrap().reply.is_some());
}

/// The clock of the store moves on; `quiet_ms` is since when nothing was committed.
#[tokio::test]
async fn leases_end_unless_nobody_could_keep_them_alive() {
    let dir = Dir::new();
    let store = dir.open().await;
    let conn = Connection::open(dir.path()).unwrap();
    conn.busy_timeout(std::time::Duration::from_secs(5))
        .unwrap();
    let id = LeaseId(5);
    for (quiet_ms, left) in [(0, None), (60_000, Some(100))] {
        let grant = Grant {
            id: Some(id),
            ttl_s: 100,
        };
        store.grant(grant).await.unwrap();
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; UPDATE segue_lease SET deadline_ms = 1; \
             UPDATE segue_head SET at_ms = at_ms - {quiet_ms}; COMMIT;"
        ))
        .unwrap();
        let ended = Work::Expire(vec![id]);
        store.engine.submit(Guard::None, ended).await.unwrap();
        let status = store.time_to_live(id, false).await.unwrap().reply;
        let remaining = status.map(|status| (status.remaining_ttl_s + 1) / 10 * 10);
        assert_eq!(remaining, left, "after {quiet_ms} ms");
    }
}

#[tokio::test]
async fn a_batch_of_which_one_request_fails_keeps_the_others() {
    let dir = Dir::new();
    let store = dir.open().await;
    let keep = |key: &'static str| Put {
        value: None,
        ..Put::new(key, "")
    };
    let (good, bad, other) = tokio::join!(
        store.put(Put::new("a", "1")),
        store.put(keep("missing")),
        store.put(Put::new("b", "1")),
    );
    assert_eq!(bad.unwrap_err(), RequestError::KeyNotFound.into());
    let mut revisions = [good.unwrap().revision.0, other.unwrap().revision.0];
    revisions.sort_unstable();
    assert_eq!(revisions, [2, 3]);
}

#[tokio::test]
async fn a_stale_epoch_is_refused_by_writes_and_reads() {
    let dir = Dir::new();
    let store = dir.open().await;
    let current = begin_line(&store, 100).await;
    let stale = Guard::Epoch {
        epoch: Epoch(6),
        claims: true,
    };
    let handle = store.guarded(stale);
    let stale = StoreError::StaleEpoch;
    assert_eq!(handle.put(Put::new("a", "1")).await.unwrap_err(), stale);
    assert_eq!(handle.range(Range::key("a")).await.unwrap_err(), stale);
    assert_eq!(handle.copy_up(CopyUp::default()).await.unwrap_err(), stale);
    assert!(store.is_empty().await.unwrap());
    store
        .guarded(current)
        .put(Put::new("a", "1"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_copy_up_and_its_record_are_written_together_or_not_at_all() {
    let dir = Dir::new();
    let store = dir.open().await;
    let guard = begin_line(&store, 100).await;
    let handle = store.guarded(guard);
    let cursor = |value: &'static str| RecordWrite {
        name: "cursor/1".into(),
        value: Some(value.into()),
    };
    let copy_up = |key, record| CopyUp {
        kvs: vec![copy(key, 5)],
        record: Some(record),
    };
    assert_eq!(
        handle
            .copy_up(copy_up("a", (cursor("a"), 0)))
            .await
            .unwrap(),
        Some(1)
    );
    assert_eq!(
        handle
            .copy_up(copy_up("b", (cursor("b"), 0)))
            .await
            .unwrap(),
        None
    );
    let mut leased = copy_up("c", (cursor("c"), 1));
    leased.kvs[0].lease = LeaseId(9);
    let err = handle.copy_up(leased).await.unwrap_err();
    assert_eq!(err, RequestError::LeaseNotFound.into());
    let records = store.records("cursor/").await.unwrap();
    assert_eq!(
        (records.len(), &records[0].value[..], records[0].version),
        (1, &b"a"[..], 1)
    );
    let keys = store.range(Range::of(KeyRange::all())).await.unwrap().reply;
    assert_eq!(keys.count, 1);
}

#[test]
fn pairs_that_sqlite_cannot_take_are_refused() {
    let conn = Connection::open_in_memory().unwrap();
    let limit: i64 = conn
        .query_row(
            "SELECT length(zeroblob(?1))",
            [i64::try_from(PAIR_BYTES_MAX).unwrap()],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(limit, 1_000_000_000 - 1024);
    assert!(
        conn.query_row("SELECT zeroblob(1000000001)", [], |_| Ok(()))
            .is_err()
    );
}

#[tokio::test]
async fn a_txn_reads_the_past_and_what_it_wrote() {
    use crate::types::{Op, Reply};
    let dir = Dir::new();
    let store = dir.open().await;
    put(&store, "a", "1").await;
    put(&store, "a", "2").await;
    let past = Range {
        at: Some(Revision(2)),
        ..Range::key("a")
    };
    let txn = Txn::of(vec![
        Op::Put(Put::new("a", "3")),
        Op::Range(past),
        Op::Range(Range::of(KeyRange::all())),
    ]);
    let reply = store.txn(txn).await.unwrap().reply;
    let value = |index: usize| match &reply.replies[index] {
        Reply::Range(range) => range.kvs[0].value.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((&value(1)[..], &value(2)[..]), (&b"1"[..], &b"3"[..]));
}

#[tokio::test]
async fn no_lease_lives_longer_because_the_clock_was_set_back() {
    let dir = Dir::new();
    let store = dir.open().await;
    let grant = Grant {
        id: None,
        ttl_s: 60,
    };
    let id = store.grant(grant).await.unwrap().reply.id;
    // As an hour ago, when the clock was an hour fast.
    let conn = Connection::open(dir.path()).unwrap();
    conn.execute_batch(
        "BEGIN IMMEDIATE; UPDATE segue_lease SET deadline_ms = deadline_ms + 3600000; \
         UPDATE segue_head SET at_ms = at_ms + 3600000; COMMIT",
    )
    .unwrap();
    // Though nobody writes anything.
    let started = Instant::now();
    loop {
        let lease = store.time_to_live(id, false).await.unwrap().reply.unwrap();
        if lease.remaining_ttl_s <= 60 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{lease:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A store with a key, whose list of leases has no end. It is of a table: else SQLite would not look whether
/// what it has prepared is of yesterday.
async fn endless(dir: &Dir) -> Arc<SqlStore<Sqlite>> {
    let options = Options {
        expire_leases: false,
        ..Options::default()
    };
    let store = open(dir.path(), options).await.unwrap();
    put(&store, "a", "1").await;
    run(
        dir,
        "ALTER TABLE segue_lease RENAME TO all_leases; CREATE VIEW segue_lease AS \
         WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) \
         SELECT id, 1 AS ttl_s, 1 AS deadline_ms FROM n \
         WHERE id < (SELECT min(one) - 1 FROM segue_head)",
    );
    store
}

fn run(dir: &Dir, text: &str) {
    let conn = Connection::open(dir.path()).unwrap();
    conn.busy_timeout(LOCK_WITHIN).unwrap();
    conn.execute_batch(text).unwrap();
}

/// Reads that never end by themselves.
fn lists(store: &Arc<SqlStore<Sqlite>>) -> Vec<tokio::task::JoinHandle<()>> {
    let list = |_| {
        let store = store.clone();
        crate::tasks::spawn_owned(async move { drop(store.leases().await) })
    };
    (0..8).map(list).collect()
}

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn small_reads_do_not_wait_for_large_ones() {
    let dir = Dir::new();
    let store = endless(&dir).await;
    let lists = lists(&store);
    for _ in 0..20 {
        let read = tokio::time::timeout(SOON, store.range(Range::key("a"))).await;
        assert_eq!(read.unwrap().unwrap().reply.count, 1);
    }
    for list in &lists {
        list.abort();
    }
}

#[tokio::test]
async fn a_read_ends_when_nobody_waits_for_it_any_more() {
    let dir = Dir::new();
    let store = endless(&dir).await;
    for list in lists(&store) {
        // They are begun, as many as can be.
        store.range(Range::key("a")).await.unwrap();
        list.abort();
    }
    run(
        &dir,
        "DROP VIEW segue_lease; ALTER TABLE all_leases RENAME TO segue_lease",
    );
    let read = tokio::time::timeout(SOON, store.leases()).await;
    assert_eq!(read.unwrap().unwrap().reply, []);
}
