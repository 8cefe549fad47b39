//! etcd under a line against the reference model, on random requests around copied keys.
//!
//! The two may number their changes differently, since copy-ups and records take revisions of etcd's.
//! So each change's number in the one is translated into its number in the other before anything is compared;
//! the numbers of copied keys have to be the same as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use segue::store::memory::Memory;
use segue::store::{Claim, CopyUp, GuardedStore, Read, ReadReply, Watch, WatchItem};
use segue::types::{
    Change, Compare, CompareResult, CompareTarget, Content, Delete, Direction, Event, EventBatch,
    KeyRange, KeyValue, LeaseId, Op, Put, Range, Reply, Revision, RevisionFilter, SortTarget, Txn,
    TxnReply,
};

use super::{open, under_an_epoch};
use crate::support::Etcd;

const BASE: Revision = Revision(100);
const SCENES: usize = 40;
const STEPS: usize = 40;
/// Keys of each scene; the old store has the even ones.
const KEYS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copied_keys_have_the_same_numbers_in_every_kind_of_request() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let server = Etcd::start().await;
    let mut world = World {
        rng: StdRng::seed_from_u64(seed),
        model: under_an_epoch(Arc::new(Memory::new()), BASE).await,
        etcd: under_an_epoch(open(&server).await, BASE).await,
        numbers: BTreeMap::from([(BASE, BASE)]),
        scene: 0,
    };
    let start = Some(BASE.next());
    let all = Watch {
        prev_kv: true,
        ..Watch::of(KeyRange::all(), start)
    };
    let mut live = world.etcd.watch(all.clone()).await.unwrap();
    for scene in 0..SCENES {
        world.scene = scene;
        for _ in 0..STEPS {
            world.step().await;
        }
    }
    // All that happened, three times: as it happened, from the history, and in the model.
    let last = world.last();
    let mut model = world.model.watch(all.clone()).await.unwrap();
    let expected = events(&mut model.items, last).await;
    let etcd_last = world.numbers[&last];
    let mut past = world.etcd.watch(all).await.unwrap();
    for items in [&mut live.items, &mut past.items] {
        let batches = world.batches(events(items, etcd_last).await);
        for (batch, expected) in batches.iter().zip(&expected) {
            assert_eq!(batch, expected);
        }
        assert_eq!(batches.len(), expected.len());
    }
}

async fn events(
    items: &mut futures_util::stream::BoxStream<'static, WatchItem>,
    last: Revision,
) -> Vec<EventBatch> {
    let mut batches = Vec::new();
    loop {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), items.next());
        match next.await.expect("no event in time") {
            Some(WatchItem::Events(batch)) => {
                let revision = batch.revision;
                batches.push(batch);
                if revision >= last {
                    return batches;
                }
            }
            Some(WatchItem::Progress(_)) => {}
            other => panic!("{other:?} after {:?}", batches.last()),
        }
    }
}

struct World {
    rng: StdRng,
    model: Arc<dyn GuardedStore>,
    etcd: Arc<dyn GuardedStore>,
    /// The model's revisions and etcd's.
    numbers: BTreeMap<Revision, Revision>,
    scene: usize,
}

impl World {
    async fn step(&mut self) {
        match self.rng.random_range(0..12) {
            0 | 1 => self.copy_up().await,
            2 => {
                let copies = self.copies();
                self.txn(copies).await;
            }
            3 | 4 => self.range().await,
            5 => self.claims().await,
            6 | 7 => self.put().await,
            8 => self.delete().await,
            _ => self.txn(Vec::new()).await,
        }
    }

    fn last(&self) -> Revision {
        *self.numbers.last_key_value().unwrap().0
    }

    /// Takes note of a change. What changes nothing must not go backwards.
    fn revisions(&mut self, model: Revision, etcd: Revision) {
        let (last, last_etcd) = self.numbers.last_key_value().unwrap();
        if model > *last {
            assert_eq!(model, last.next());
            assert!(etcd > *last_etcd, "{etcd} after {last_etcd}");
            self.numbers.insert(model, etcd);
        } else {
            assert!(etcd >= *last_etcd);
        }
    }

    /// One of etcd's numbers as the model has it.
    fn number(&self, etcd: Revision) -> Revision {
        if etcd <= BASE {
            return etcd;
        }
        let found = self.numbers.iter().find(|(_, number)| **number == etcd);
        *found
            .unwrap_or_else(|| panic!("{etcd} is no change's number"))
            .0
    }

    fn kv(&self, kv: &mut KeyValue) {
        kv.create_revision = self.number(kv.create_revision);
        kv.mod_revision = self.number(kv.mod_revision);
    }

    fn reply(&self, reply: &mut TxnReply) {
        for reply in &mut reply.replies {
            match reply {
                Reply::Range(range) => range.kvs.iter_mut().for_each(|kv| self.kv(kv)),
                Reply::Put(put) => put.prev_kv.iter_mut().for_each(|kv| self.kv(kv)),
                Reply::Delete(delete) => delete.prev_kvs.iter_mut().for_each(|kv| self.kv(kv)),
                Reply::Txn(txn) => self.reply(txn),
            }
        }
    }

    fn batches(&self, mut batches: Vec<EventBatch>) -> Vec<EventBatch> {
        for batch in &mut batches {
            batch.revision = self.number(batch.revision);
            for Event { change, prev } in &mut batch.events {
                match change {
                    Change::Put(kv) => self.kv(kv),
                    Change::Delete { revision, .. } => *revision = self.number(*revision),
                }
                if let Some(prev) = prev {
                    self.kv(prev);
                }
            }
        }
        batches
    }

    fn key(&mut self) -> Bytes {
        let number = self.rng.random_range(0..KEYS);
        format!("{:03}/{number}", self.scene).into()
    }

    fn keys(&mut self) -> KeyRange {
        match self.rng.random_range(0..6) {
            0 => KeyRange::prefix(format!("{:03}/", self.scene)),
            1 => {
                let (a, b) = (self.key(), self.key());
                KeyRange::span(a, Some(b))
            }
            _ => KeyRange::One(self.key()),
        }
    }

    /// The old store's pair of some keys.
    fn copies(&mut self) -> Vec<KeyValue> {
        let count = self.rng.random_range(1..=4);
        let mut copies: Vec<_> = (0..count)
            .map(|_| {
                let number = 2 * self.rng.random_range(0..KEYS / 2);
                let at = i64::try_from(number).unwrap();
                KeyValue {
                    key: format!("{:03}/{number}", self.scene).into(),
                    create_revision: Revision(10 + at),
                    mod_revision: Revision(10 + 3 * at),
                    version: 1 + at,
                    value: "old".into(),
                    lease: LeaseId::NONE,
                }
            })
            .collect();
        copies.sort_by(|a, b| a.key.cmp(&b.key));
        copies.dedup();
        copies
    }

    /// A number that means something, as the model has it and as etcd has it.
    fn operand(&mut self) -> (Revision, Revision) {
        if self.rng.random_bool(0.5) {
            let number = Revision(self.rng.random_range(0..40));
            return (number, number);
        }
        let recent: Vec<_> = self.numbers.iter().rev().take(12).collect();
        let (model, etcd) = recent.choose(&mut self.rng).unwrap();
        (**model, **etcd)
    }

    async fn copy_up(&mut self) {
        let copy_up = CopyUp {
            kvs: self.copies(),
            record: None,
        };
        let expected = self.model.copy_up(copy_up.clone()).await.unwrap();
        assert_eq!(self.etcd.copy_up(copy_up).await.unwrap(), expected);
    }

    async fn put(&mut self) {
        let put = self.make_put();
        let model = self.model.put(put.clone()).await;
        let etcd = self.etcd.put(put.clone()).await;
        match (model, etcd) {
            (Ok(model), Ok(mut etcd)) => {
                self.revisions(model.revision, etcd.revision);
                etcd.reply.prev_kv.iter_mut().for_each(|kv| self.kv(kv));
                assert_eq!(etcd.reply, model.reply, "{put:?}");
            }
            (model, etcd) => assert_eq!(etcd, model, "{put:?}"),
        }
    }

    fn make_put(&mut self) -> Put {
        Put {
            key: self.key(),
            value: (!self.rng.random_bool(0.1)).then(|| "new".into()),
            lease: (!self.rng.random_bool(0.1)).then_some(LeaseId::NONE),
            prev_kv: self.rng.random_bool(0.5),
        }
    }

    async fn delete(&mut self) {
        let delete = self.make_delete();
        let model = self.model.delete(delete.clone()).await.unwrap();
        let mut etcd = self.etcd.delete(delete.clone()).await.unwrap();
        self.revisions(model.revision, etcd.revision);
        etcd.reply.prev_kvs.iter_mut().for_each(|kv| self.kv(kv));
        assert_eq!(etcd.reply, model.reply, "{delete:?}");
    }

    fn make_delete(&mut self) -> Delete {
        Delete {
            keys: self.keys(),
            prev_kv: self.rng.random_bool(0.5),
        }
    }

    /// The same read for the model and for etcd.
    fn make_range(&mut self, past: bool) -> (Range, Range) {
        let mut pick = |choices: &[usize]| *choices.choose(&mut self.rng).unwrap();
        let sort = [
            SortTarget::Key,
            SortTarget::Mod,
            SortTarget::Create,
            SortTarget::Version,
            SortTarget::Value,
        ][pick(&[0, 0, 0, 1, 2, 3, 4])];
        let direction = [
            Direction::Ascending,
            Direction::Descending,
            Direction::Unsaid,
        ][pick(&[0, 0, 1, 2])];
        let content =
            [Content::Full, Content::KeysOnly, Content::CountOnly][pick(&[0, 0, 0, 1, 2])];
        let limit = pick(&[0, 0, 1, 2, 5]);
        let range = Range {
            limit,
            sort,
            direction,
            content,
            ..Range::of(self.keys())
        };
        let (mut model, mut etcd) = (range.clone(), range);
        if self.rng.random_bool(0.3) {
            let bounds = [(); 4].map(|()| {
                if self.rng.random_bool(0.5) {
                    self.operand()
                } else {
                    (Revision(0), Revision(0))
                }
            });
            let filter = |bounds: [Revision; 4]| RevisionFilter {
                min_mod: bounds[0],
                max_mod: bounds[1],
                min_create: bounds[2],
                max_create: bounds[3],
            };
            model.filter = filter(bounds.map(|bound| bound.0));
            etcd.filter = filter(bounds.map(|bound| bound.1));
        }
        if past && self.rng.random_bool(0.4) {
            let recent: Vec<_> = self.numbers.iter().rev().take(25).collect();
            let (at, etcd_at) = recent.choose(&mut self.rng).unwrap();
            (model.at, etcd.at) = (Some(**at), Some(**etcd_at));
        }
        (model, etcd)
    }

    async fn range(&mut self) {
        let (range, etcd_range) = self.make_range(true);
        let model = self.model.range(range.clone()).await.unwrap();
        let mut etcd = self.etcd.range(etcd_range.clone()).await.unwrap();
        self.revisions(model.revision, etcd.revision);
        etcd.reply.kvs.iter_mut().for_each(|kv| self.kv(kv));
        assert_eq!(etcd.reply, model.reply, "{range:?} {etcd_range:?}");
    }

    async fn claims(&mut self) {
        let (range, etcd_range) = self.make_range(false);
        let claims = Read::Claims {
            keys: self.keys(),
            values: self.rng.random_range(0..4),
        };
        let recent: Vec<_> = self.numbers.iter().rev().take(25).collect();
        let (at, etcd_at) = **recent.choose(&mut self.rng).as_ref().unwrap();
        let past = self.rng.random_bool(0.4);
        let (at, etcd_at) = (past.then_some(*at), past.then_some(*etcd_at));
        let reads = vec![Read::Range(range), claims.clone()];
        let model = self.model.snapshot(at, reads.clone()).await.unwrap();
        let etcd_reads = vec![Read::Range(etcd_range), claims];
        let mut etcd = self.etcd.snapshot(etcd_at, etcd_reads).await.unwrap();
        for reply in &mut etcd.reply {
            match reply {
                ReadReply::Range(range) => range.kvs.iter_mut().for_each(|kv| self.kv(kv)),
                ReadReply::Claims(claims) => {
                    for claim in claims {
                        match claim {
                            Claim::Live(kv) | Claim::Copied(kv) => self.kv(kv),
                            Claim::Whiteout(_) => {}
                        }
                    }
                }
            }
        }
        assert_eq!(etcd.reply, model.reply, "{reads:?} at {at:?} {etcd_at:?}");
    }

    async fn txn(&mut self, copies: Vec<KeyValue>) {
        let (txn, etcd_txn) = self.make_txn(2, &mut Vec::new());
        let model = self.model.txn_over(copies.clone(), txn.clone()).await;
        let etcd = self.etcd.txn_over(copies.clone(), etcd_txn).await;
        let context = format!("{copies:#?} {txn:#?}");
        match (model, etcd) {
            (Ok(model), Ok(mut etcd)) => {
                self.revisions(model.revision, etcd.revision);
                self.reply(&mut etcd.reply);
                assert_eq!(etcd.reply, model.reply, "{context}");
            }
            // Copies stay made, or not, which is the store's choice: they are made the same now.
            (model, etcd) => {
                assert_eq!(etcd, model, "{context}");
                if !copies.is_empty() {
                    let copy_up = CopyUp {
                        kvs: copies,
                        record: None,
                    };
                    self.model.copy_up(copy_up.clone()).await.unwrap();
                    self.etcd.copy_up(copy_up).await.unwrap();
                }
            }
        }
    }

    /// The same transaction for the model and for etcd. Writes no key in `written`.
    fn make_txn(&mut self, depth: u32, written: &mut Vec<KeyRange>) -> (Txn, Txn) {
        let (mut model, mut etcd) = (Txn::default(), Txn::default());
        for _ in 0..self.rng.random_range(0..3) {
            let (compare, etcd_compare) = self.make_compare();
            model.compares.push(compare);
            etcd.compares.push(etcd_compare);
        }
        let before = written.clone();
        (model.success, etcd.success) = self.make_ops(depth, written);
        let mut written_else = before;
        (model.failure, etcd.failure) = self.make_ops(depth, &mut written_else);
        written.extend(written_else);
        (model, etcd)
    }

    fn make_ops(&mut self, depth: u32, written: &mut Vec<KeyRange>) -> (Vec<Op>, Vec<Op>) {
        let mut ops = (Vec::new(), Vec::new());
        let mut add = |(model, etcd): (Op, Op)| {
            ops.0.push(model);
            ops.1.push(etcd);
        };
        for _ in 0..self.rng.random_range(0..3) {
            let fresh = |keys: &KeyRange, written: &mut Vec<KeyRange>| {
                let fresh = written.iter().all(|it| it.intersect(keys).is_none());
                written.push(keys.clone());
                fresh
            };
            match self.rng.random_range(0..7) {
                0..3 => {
                    let put = self.make_put();
                    if fresh(&KeyRange::One(put.key.clone()), written) {
                        add((Op::Put(put.clone()), Op::Put(put)));
                    }
                }
                3 => {
                    let delete = self.make_delete();
                    if fresh(&delete.keys, written) {
                        add((Op::Delete(delete.clone()), Op::Delete(delete)));
                    }
                }
                4 if depth > 0 => {
                    let (model, etcd) = self.make_txn(depth - 1, written);
                    add((Op::Txn(model), Op::Txn(etcd)));
                }
                _ => {
                    let (model, etcd) = self.make_range(true);
                    // Numbers of this very transaction's changes are compared only afterwards.
                    add((Op::Range(model), Op::Range(etcd)));
                }
            }
        }
        ops
    }

    fn make_compare(&mut self) -> (Compare, Compare) {
        let result = *[
            CompareResult::Equal,
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ]
        .choose(&mut self.rng)
        .unwrap();
        let keys = self.keys();
        let (number, etcd_number) = self.operand();
        let (target, etcd_target) = match self.rng.random_range(0..5) {
            0 => (CompareTarget::Mod(number), CompareTarget::Mod(etcd_number)),
            1 => (
                CompareTarget::Create(number),
                CompareTarget::Create(etcd_number),
            ),
            2 => {
                let version = CompareTarget::Version(self.rng.random_range(0..12));
                (version.clone(), version)
            }
            3 => {
                let value = if self.rng.random_bool(0.5) {
                    "old"
                } else {
                    "new"
                };
                let value = CompareTarget::Value(value.into());
                (value.clone(), value)
            }
            // The numbers of the keys as they stand, which is what clients compare with.
            _ => {
                let at = i64::try_from(2 * self.rng.random_range(0..KEYS / 2)).unwrap();
                let target = match self.rng.random_range(0..3) {
                    0 => CompareTarget::Mod(Revision(10 + 3 * at)),
                    1 => CompareTarget::Create(Revision(10 + at)),
                    _ => CompareTarget::Version(1 + at),
                };
                (target.clone(), target)
            }
        };
        let compare = |keys, target| Compare {
            keys,
            result,
            target,
        };
        (compare(keys.clone(), target), compare(keys, etcd_target))
    }
}
