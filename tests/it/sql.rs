//! The SQL engine on each database against the reference model, with copies, whiteouts, reopening and
//! compaction in between; and its promises under many writers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use segue::store::memory::Memory;
use segue::store::open_new;
use segue::store::sql::sqlite::{self, Sqlite};
use segue::store::sql::{Options, SqlStore};
use segue::store::{
    CopyUp, Guard, GuardedStore, Line, NewStore, Read, RecordTxn, RecordWrite, Store, Watch,
    WatchItem,
};
use segue::types::{
    Delete, Epoch, Event, Grant, KeyRange, KeyValue, LeaseId, Put, Range, Reserved, Revision, Txn,
};

use crate::random::{self, Request};
use crate::support::{mariadb, postgres};

const BASE: Revision = Revision(500);

/// What happens to both stores.
#[derive(Clone, Debug)]
enum Step {
    Request(Request),
    CopyUp(Vec<KeyValue>),
    TxnOver(Vec<KeyValue>, Bytes),
    Snapshot(KeyRange, usize, Option<i64>),
    Record(String, bool, i64),
    /// The line begins or moves on to its next epoch; or is removed, with the whiteouts, for good.
    Line(bool),
    Reopen,
}

fn copies() -> impl Strategy<Value = Vec<KeyValue>> {
    let copy =
        (random::key(), 1i64..400, 0i64..100, 1i64..9).prop_map(|(key, create, later, version)| {
            KeyValue {
                key,
                create_revision: Revision(create),
                mod_revision: Revision(create + later),
                version,
                value: "copied".into(),
                lease: LeaseId::NONE,
            }
        });
    vec(copy, 0..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => random::request().prop_map(Step::Request),
        4 => copies().prop_map(Step::CopyUp),
        4 => (copies(), random::key()).prop_map(|(copies, key)| Step::TxnOver(copies, key)),
        5 => (random::keys(), 0usize..4, proptest::option::weighted(0.5, 0i64..8))
            .prop_map(|(keys, values, back)| Step::Snapshot(keys, values, back)),
        2 => ("[ab]", any::<bool>(), 0i64..3).prop_map(|(name, value, version)| Step::Record(name, value, version)),
        1 => prop_oneof![3 => Just(true), 1 => Just(false)].prop_map(Step::Line),
        1 => Just(Step::Reopen),
    ]
}

async fn open(path: &Path) -> Arc<SqlStore<Sqlite>> {
    sqlite::open(path, Options::default()).await.unwrap()
}

/// A kind of database.
#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    Postgres,
    MariaDb,
}

/// Where a new store of a kind is: its URL, and what has to be kept for it.
async fn place(kind: Kind) -> (String, Option<tempfile::TempDir>) {
    match kind {
        Kind::Sqlite => {
            let dir = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", dir.path().join("db").display());
            (url, Some(dir))
        }
        Kind::Postgres => (postgres::schema().await, None),
        Kind::MariaDb => (mariadb::database().await, None),
    }
}

async fn open_url(url: &str) -> Arc<dyn NewStore> {
    let url = url.parse().unwrap();
    open_new(&url, &Reserved::default()).await.unwrap()
}

/// Both stores, step by step.
struct Pair {
    url: String,
    _dir: Option<tempfile::TempDir>,
    /// Nothing only while it is reopened.
    sql: Option<Arc<dyn NewStore>>,
    memory: Memory,
    line: Option<Epoch>,
    settled: bool,
    floor: Revision,
}

impl Pair {
    async fn new(kind: Kind) -> Self {
        let (url, dir) = place(kind).await;
        Self {
            sql: Some(open_url(&url).await),
            url,
            _dir: dir,
            memory: Memory::new(),
            line: None,
            settled: false,
            floor: Revision(1),
        }
    }

    fn sql(&self) -> &dyn NewStore {
        self.sql.as_deref().unwrap()
    }

    fn handles(&self) -> [Arc<dyn GuardedStore>; 2] {
        let guard = self.line.map_or(Guard::None, |epoch| Guard::Epoch {
            epoch,
            claims: true,
        });
        [self.memory.guarded(guard), self.sql().guarded(guard)]
    }

    async fn run(&mut self, step: Step) {
        let [memory, sql] = self.handles();
        let now = memory.status().await.unwrap().revision;
        let shown = format!("{step:?}");
        match step {
            Step::Request(request) => {
                let request = request.at(now, self.floor);
                let wanted = request.clone().carry_out(&*memory).await;
                let found = request.clone().carry_out(&*sql).await;
                assert_eq!(found, wanted, "{request:?}");
            }
            // Keys are copied, and claims asked for, only while there is a line.
            Step::CopyUp(_) | Step::TxnOver(..) | Step::Snapshot(..) | Step::Line(false)
                if self.line.is_none() => {}
            Step::CopyUp(kvs) => {
                let copy_up = CopyUp { kvs, record: None };
                let wanted = memory.copy_up(copy_up.clone()).await;
                assert_eq!(sql.copy_up(copy_up).await, wanted, "{shown}");
            }
            Step::TxnOver(copies, key) => {
                let txn = Txn::of(vec![
                    segue::types::Op::Range(Range::of(KeyRange::all())),
                    segue::types::Op::Delete(Delete {
                        keys: KeyRange::One(key),
                        prev_kv: true,
                    }),
                ]);
                let wanted = memory.txn_over(copies.clone(), txn.clone()).await;
                assert_eq!(sql.txn_over(copies, txn).await, wanted, "{shown}");
            }
            Step::Snapshot(keys, values, back) => {
                let at = back.map(|back| Revision((now.0 - back).max(self.floor.0)));
                let reads = vec![
                    Read::Claims {
                        keys: keys.clone(),
                        values,
                    },
                    Read::Range(Range {
                        limit: values,
                        ..Range::of(keys)
                    }),
                ];
                let wanted = memory.snapshot(at, reads.clone()).await;
                assert_eq!(sql.snapshot(at, reads).await, wanted, "{shown} at {now}");
            }
            Step::Record(name, value, version) => {
                let txn = RecordTxn {
                    expect: vec![(name.clone(), version)],
                    writes: vec![RecordWrite {
                        name,
                        value: value.then(|| "value".into()),
                    }],
                    ..RecordTxn::default()
                };
                let wanted = self.memory.write_records(txn.clone()).await;
                assert_eq!(self.sql().write_records(txn).await, wanted);
                let wanted = self.memory.records("").await;
                assert_eq!(self.sql().records("").await, wanted);
            }
            Step::Line(true) if self.settled => {}
            Step::Line(true) => {
                let epoch = self.line.map_or(Epoch(1), Epoch::next);
                self.line = Some(epoch);
                self.set_line(Some(Line {
                    epoch,
                    claims: true,
                    base: BASE,
                }))
                .await;
                self.floor = self.floor.max(BASE.next());
            }
            Step::Line(false) => {
                self.settled = true;
                self.line = None;
                self.set_line(None).await;
                self.memory.drop_claims().await.unwrap();
                self.sql().drop_claims().await.unwrap();
            }
            Step::Reopen => {
                drop((sql, self.sql.take()));
                self.sql = Some(open_url(&self.url).await);
            }
        }
        let line = self.memory.line().await;
        assert_eq!(self.sql().line().await, line);
        let empty = self.memory.is_empty().await;
        assert_eq!(self.sql().is_empty().await, empty, "{shown}");
    }

    async fn set_line(&self, line: Option<Line>) {
        let txn = RecordTxn {
            line: Some(line),
            ..RecordTxn::default()
        };
        assert!(self.memory.write_records(txn.clone()).await.unwrap());
        assert!(self.sql().write_records(txn).await.unwrap());
    }

    /// Both show the same changes, from the beginning of what can be had.
    async fn compare_watches(&self) {
        let handles = self.handles();
        let compacted = handles[0].status().await.unwrap().compacted;
        let start = self.floor.max(compacted);
        for keys in [KeyRange::all(), KeyRange::prefix("a")] {
            let mut seen = Vec::new();
            for store in &handles {
                let watch = Watch {
                    prev_kv: true,
                    ..Watch::of(keys.clone(), Some(start))
                };
                seen.push(changes(&**store, watch).await);
            }
            assert_eq!(seen[1], seen[0]);
        }
    }
}

/// All that a watch delivers up to now.
async fn changes(store: &dyn Store, watch: Watch) -> Vec<(Revision, Vec<Event>)> {
    let mut watching = store.watch(watch).await.unwrap();
    watching.progress.notify_one();
    let mut changes = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), watching.items.next());
        match next.await.unwrap().unwrap() {
            WatchItem::Events(batch) => changes.push((batch.revision, batch.events)),
            WatchItem::Progress(_) => return changes,
            other => panic!("{other:?}"),
        }
    }
}

fn answers_as_the_reference_does(kind: Kind, cases: u32) {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let run = TestRunner::new(config).run(&vec(step(), 1..60), |steps| {
        runtime.block_on(async {
            let mut pair = Pair::new(kind).await;
            for step in steps {
                pair.run(step).await;
            }
            pair.compare_watches().await;
        });
        Ok(())
    });
    run.unwrap();
}

#[test]
fn sqlite_answers_as_the_reference_does() {
    answers_as_the_reference_does(Kind::Sqlite, 40);
}

#[test]
fn postgres_answers_as_the_reference_does() {
    answers_as_the_reference_does(Kind::Postgres, 20);
}

#[test]
fn mariadb_answers_as_the_reference_does() {
    answers_as_the_reference_does(Kind::MariaDb, 15);
}

/// The same on every database.
macro_rules! on_each {
    ($($behaviour:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                super::$behaviour(super::Kind::Sqlite).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                super::$behaviour(super::Kind::Postgres).await;
            })*
        }
        mod on_mariadb {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                super::$behaviour(super::Kind::MariaDb).await;
            })*
        }
    };
}

on_each! {
    pages_of_a_range_answer_the_count_of_the_rest
    many_writers_get_one_line_of_revisions_and_watchers_see_it_whole
}

async fn pages_of_a_range_answer_the_count_of_the_rest(kind: Kind) {
    let (url, _dir) = place(kind).await;
    let store = open_url(&url).await.guarded(Guard::None);
    for number in 0..10 {
        store
            .put(Put::new(format!("k/{number}"), "v"))
            .await
            .unwrap();
    }
    let at = store.status().await.unwrap().revision;
    let page = |keys: KeyRange, at| Range {
        limit: 2,
        at,
        ..Range::of(keys)
    };
    let mut rest = Some(KeyRange::prefix("k/"));
    let mut left = 10;
    while let Some(keys) = rest {
        // The latest as long as nothing has changed, then the same revision, now of the past.
        let present = if left > 6 { None } else { Some(at) };
        let reply = store
            .range(page(keys.clone(), present))
            .await
            .unwrap()
            .reply;
        assert_eq!((reply.count, reply.kvs.len()), (left, 2));
        rest = keys.after(&reply.kvs[1].key).filter(|_| reply.more);
        left -= 2;
        if left == 6 {
            store.put(Put::new("k/99", "v")).await.unwrap();
            let latest = store
                .range(page(rest.clone().unwrap(), None))
                .await
                .unwrap();
            assert_eq!(latest.reply.count, 7, "the new key counts");
        }
    }
    assert_eq!(left, 0);
}

async fn many_writers_get_one_line_of_revisions_and_watchers_see_it_whole(kind: Kind) {
    const WRITERS: usize = 32;
    const EACH: usize = 40;
    let (url, _dir) = place(kind).await;
    let store = open_url(&url).await.guarded(Guard::None);
    let start = store.status().await.unwrap().revision;
    let mut watching = store.watch(Watch::of(KeyRange::all(), None)).await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        async move {
            let mut revisions = Vec::new();
            for round in 0..EACH {
                let key = format!("key/{}", (writer + round) % 50);
                let answer = store.put(Put::new(key.clone(), "v")).await.unwrap();
                let read = store.range(Range::key(key)).await.unwrap();
                // A read that begins after an answer sees at least what was answered.
                assert!(read.revision >= answer.revision);
                assert!(read.reply.kvs[0].mod_revision >= answer.revision);
                revisions.push(answer.revision.0);
            }
            revisions
        }
    });
    let revisions = futures_util::future::join_all(writers).await.concat();
    let all: BTreeSet<_> = revisions.iter().copied().collect();
    let wanted: BTreeSet<_> = (start.0 + 1..).take(WRITERS * EACH).collect();
    assert_eq!(
        all, wanted,
        "every change has a revision of its own, without gaps"
    );
    let mut versions: BTreeMap<Bytes, i64> = BTreeMap::new();
    for revision in wanted {
        let next = tokio::time::timeout(Duration::from_secs(10), watching.items.next());
        let WatchItem::Events(batch) = next.await.unwrap().unwrap() else {
            panic!("no event for {revision}")
        };
        assert_eq!((batch.revision.0, batch.events.len()), (revision, 1));
        let segue::types::Change::Put(kv) = &batch.events[0].change else {
            panic!()
        };
        let version = versions.entry(kv.key.clone()).or_default();
        *version += 1;
        assert_eq!(kv.version, *version, "no change was lost on {:?}", kv.key);
    }
}

#[tokio::test]
async fn a_lease_that_runs_out_takes_its_keys_in_one_revision_and_leaves_whiteouts() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        min_lease_ttl_s: 1,
        ..Options::default()
    };
    let store = sqlite::open(dir.path().join("db"), options).await.unwrap();
    let line = Line {
        epoch: Epoch(1),
        claims: true,
        base: BASE,
    };
    let txn = RecordTxn {
        line: Some(Some(line)),
        ..RecordTxn::default()
    };
    store.write_records(txn).await.unwrap();
    let id = LeaseId(7);
    let grant = Grant {
        id: Some(id),
        ttl_s: 1,
    };
    store.grant(grant).await.unwrap();
    let kept = Grant {
        id: Some(LeaseId(8)),
        ttl_s: 1,
    };
    store.grant(kept).await.unwrap();
    for key in ["a", "b"] {
        let put = Put {
            lease: Some(id),
            ..Put::new(key, "leased")
        };
        store.put(put).await.unwrap();
    }
    let copied = KeyValue {
        key: "c".into(),
        mod_revision: Revision(5),
        create_revision: Revision(5),
        version: 1,
        value: "copied".into(),
        lease: id,
    };
    let copy_up = CopyUp {
        kvs: vec![copied],
        record: None,
    };
    assert_eq!(store.copy_up(copy_up).await.unwrap(), Some(1));
    let mut watching = store.watch(Watch::of(KeyRange::all(), None)).await.unwrap();
    let ended = async {
        let WatchItem::Events(batch) = watching.items.next().await.unwrap() else {
            panic!()
        };
        batch
    };
    let kept_alive = async {
        loop {
            store.keep_alive(LeaseId(8)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let batch = tokio::select! {
        batch = ended => batch,
        () = kept_alive => unreachable!(),
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("the lease did not end"),
    };
    let keys: Vec<_> = batch.events.iter().map(Event::key).collect();
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!(batch.revision, BASE.next().next().next());
    assert_eq!(store.keep_alive(id).await.unwrap().reply, None);
    assert_eq!(store.leases().await.unwrap().reply, [LeaseId(8)]);
    let read = Read::Claims {
        keys: KeyRange::all(),
        values: 0,
    };
    let claims = store.snapshot(None, vec![read]).await.unwrap().reply;
    let whiteout = |key: &'static str| segue::store::Claim::Whiteout(key.into());
    let wanted = ["a", "b", "c"].map(whiteout).to_vec();
    assert_eq!(claims, [segue::store::ReadReply::Claims(wanted)]);
}

/// Where [`writes_until_it_is_killed`] finds its store.
const CRASH_DIR: &str = "SEGUE_TEST_CRASH_DIR";

/// The other process of the next test: 16 writers that say what was answered.
#[test]
#[ignore = "run by the next test, in a process that it kills"]
fn writes_until_it_is_killed() {
    let dir = std::env::var_os(CRASH_DIR).expect("only the next test runs this one");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(&Path::new(&dir).join("db")).await;
        let writers = (0..16).map(|writer| {
            let store = store.clone();
            async move {
                for round in 0.. {
                    // Two keys in one transaction: both are there afterwards, or neither.
                    let value = format!("{round}");
                    let put = |part| Put::new(format!("{writer}/{part}"), value.clone());
                    let ops = ["a", "b"].map(|part| segue::types::Op::Put(put(part)));
                    let answer = store.txn(Txn::of(ops.to_vec())).await.unwrap();
                    println!("answered {writer} {round} {}", answer.revision);
                }
            }
        });
        futures_util::future::join_all(writers).await;
    });
}

#[tokio::test]
async fn what_was_answered_survives_sigkill_and_nothing_is_half_done() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    const ROUNDS: usize = 4;
    const ANSWERS_BEFORE_KILL: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let mut last_revision = Revision(1);
    for _ in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sql::writes_until_it_is_killed"])
            .args(["--ignored", "--nocapture"])
            .env(CRASH_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answered: BTreeMap<String, (u64, i64)> = BTreeMap::new();
        let mut answers = 0;
        // What stands in the pipe when the child is killed was answered, too.
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let Some((_, answer)) = line.split_once("answered ") else {
                continue;
            };
            let mut words = answer.split(' ');
            let mut word = || words.next().filter(|word| !word.is_empty());
            let (Some(writer), Some(round), Some(revision)) = (word(), word(), word()) else {
                continue;
            };
            let number = |text: &str| text.parse().unwrap();
            answered.insert(writer.into(), (round.parse().unwrap(), number(revision)));
            answers += 1;
            if answers == ANSWERS_BEFORE_KILL {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(answers >= ANSWERS_BEFORE_KILL, "the child ended early");
        let store = open(&dir.path().join("db")).await;
        let answer = store.range(Range::of(KeyRange::all())).await.unwrap();
        assert!(answer.revision > last_revision, "revisions go on");
        last_revision = answer.revision;
        let found: BTreeMap<_, _> = answer
            .reply
            .kvs
            .iter()
            .map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv))
            .collect();
        for (writer, (round, revision)) in answered {
            let [a, b] = ["a", "b"].map(|part| found[&format!("{writer}/{part}")]);
            assert_eq!((&a.value, a.mod_revision), (&b.value, b.mod_revision));
            let value: u64 = std::str::from_utf8(&a.value).unwrap().parse().unwrap();
            // Killed between commit and answer, one more than was answered may be there.
            assert!(
                value == round || value == round + 1,
                "{value} after {round}"
            );
            assert!(a.mod_revision.0 >= revision);
        }
        // Every revision is in the log, once.
        let watch = Watch::of(KeyRange::all(), Some(Revision(2)));
        let seen = changes(&*store, watch).await;
        let seen: Vec<_> = seen.into_iter().map(|(revision, _)| revision.0).collect();
        assert_eq!(seen, (2..=last_revision.0).collect::<Vec<_>>());
        store.close().await;
    }
}
