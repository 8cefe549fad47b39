//! The backfill: copy-up of everything, shard by shard, in key order.
//!
//! Whoever runs it may stop at any point, or run beside another who believes to be the owner: pairs
//! are only copied where they are unclaimed, and the cursor moves by compare-and-put in the same
//! transaction. At worst a batch is read twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::copier::{Copier, Cursor, Step};
use super::ledger::{Entry, Ledger, write};
use super::phase::Phase;
use super::rate::Brake;
use super::reach::{FIRST_PAGE, PAGES, Reach, adapted};
use super::records::{Control, SHARDS, SURVEY, Shard, Survey};
use super::survey::survey;
use super::troubles::Trouble;
use crate::store::{GuardedStore, OldStore, Page, PageSize, RecordTxn, Result, StoreError};
use crate::types::{Content, Epoch, KeyRange, KeyValue, Reserved};

/// How long to wait after a store has failed: twice as long each time, up to the second figure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a backfill works on.
pub struct Backfill {
    /// The records.
    pub ledger: Ledger,
    /// Where from.
    pub old: Arc<dyn OldStore>,
    /// Where to, under the guard of the present epoch.
    pub new: Arc<dyn GuardedStore>,
    /// What is not to be copied.
    pub reserved: Reserved,
    /// The present epoch.
    pub epoch: Epoch,
    /// Shards to copy at the same time.
    pub parallel: usize,
    /// How it is to run, now and later.
    pub control: watch::Receiver<Control>,
    /// What keeps it from going on, for people to see; it goes on trying.
    pub trouble: Arc<Trouble>,
}

struct Worker {
    ledger: Ledger,
    old: Arc<dyn OldStore>,
    reserved: Reserved,
    epoch: Epoch,
    copier: Copier,
    brake: Brake,
    control: watch::Receiver<Control>,
    /// Pairs of the page that was read last, at most: a shard begins where another left off.
    pairs: AtomicUsize,
}

enum Finished {
    Survey(Result<()>),
    Shard(String, Result<()>),
}

impl Backfill {
    /// Copies until every shard is done. Store errors are waited out; the only one that ends the
    /// backfill is that its epoch is over. Dropping the future stops everything.
    pub async fn run(self) -> Result<()> {
        let worker = Arc::new(Worker {
            copier: Copier::new(self.ledger.clone(), self.old.clone(), self.new.clone()),
            ledger: self.ledger.clone(),
            old: self.old.clone(),
            reserved: self.reserved.clone(),
            epoch: self.epoch,
            brake: Brake::default(),
            control: self.control.clone(),
            pairs: AtomicUsize::new(FIRST_PAGE.pairs),
        });
        let found = Arc::new(Notify::new());
        let mut busy = BTreeSet::new();
        let mut surveying = false;
        let mut tasks = JoinSet::new();
        let mut pause = PAUSE.0;
        loop {
            let progress = match self.progress().await {
                Ok(progress) => progress,
                Err(error) => {
                    self.wait_out(&error, &mut pause).await?;
                    continue;
                }
            };
            let (surveyed, open) = progress;
            if surveyed && open.is_empty() {
                self.trouble.clear();
                return Ok(());
            }
            if !surveyed && !surveying {
                surveying = true;
                let (worker, found) = (worker.clone(), found.clone());
                tasks.spawn(async move {
                    let Worker {
                        ledger,
                        old,
                        reserved,
                        ..
                    } = &*worker;
                    let survey = survey(ledger, worker.epoch, &**old, reserved, &found);
                    Finished::Survey(survey.await)
                });
            }
            for cursor in open {
                if busy.len() < self.parallel && !busy.contains(&cursor.name) {
                    let worker = worker.clone();
                    let name = cursor.name.clone();
                    busy.insert(name.clone());
                    tasks.spawn(async move { Finished::Shard(name, worker.copy(cursor).await) });
                }
            }
            let finished = tokio::select! {
                Some(finished) = tasks.join_next() => finished,
                () = found.notified() => continue,
            };
            let result = match finished {
                Ok(Finished::Survey(result)) => {
                    surveying = false;
                    result
                }
                Ok(Finished::Shard(name, result)) => {
                    busy.remove(&name);
                    result
                }
                Err(panic) => {
                    // It does not say which part it was, so all are begun anew.
                    tasks.shutdown().await;
                    busy.clear();
                    surveying = false;
                    Err(StoreError::Broken(format!(
                        "a part of it has ended by a fault of its own: {panic}"
                    )))
                }
            };
            match result {
                Ok(()) => {
                    pause = PAUSE.0;
                    self.trouble.clear();
                }
                Err(error) => self.wait_out(&error, &mut pause).await?,
            }
        }
    }

    /// Whether the survey is done, and the shards that are not.
    async fn progress(&self) -> Result<(bool, Vec<Cursor>)> {
        let survey = self.ledger.get::<Survey>(SURVEY).await?;
        let shards = self.ledger.list::<Shard>(SHARDS).await?;
        let open = shards
            .into_iter()
            .filter(|(_, entry)| !entry.value.done)
            .map(|(name, entry)| Cursor {
                name: format!("{SHARDS}{name}"),
                entry,
                epoch: self.epoch,
            });
        let surveyed = survey.is_some_and(|entry| entry.value.done);
        Ok((surveyed, open.collect()))
    }

    async fn wait_out(&self, error: &StoreError, pause: &mut Duration) -> Result<()> {
        if *error == StoreError::StaleEpoch {
            return Err(StoreError::StaleEpoch);
        }
        warn!(%error, ?pause, "the backfill waits");
        self.trouble.tell(format!("the backfill: {error}"));
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(PAUSE.1);
        Ok(())
    }
}

/// The pairs of a shard that are still to be read.
struct Walk {
    reach: Option<Reach>,
    /// How much the next page may have.
    size: PageSize,
}

impl Walk {
    /// With a first page of at most so many `pairs`.
    fn over(shard: &Shard, pairs: usize, reserved: &Reserved) -> Self {
        let (next, last) = (shard.frontier.clone(), shard.end.clone());
        Self {
            reach: Reach::over(next, last, PAGES, reserved),
            size: PageSize::pairs(pairs),
        }
    }
}

impl Worker {
    /// Copies a shard from its frontier to its end, or until another has taken it over.
    async fn copy(&self, mut cursor: Cursor) -> Result<()> {
        let pairs = self.pairs.load(Ordering::Relaxed);
        let mut walk = Walk::over(&cursor.entry.value, pairs, &self.reserved);
        let mut ahead = self.read(&mut walk).await?;
        while let Some(page) = ahead.take() {
            // The next page is on its way while this one is written. It may be old when its turn
            // comes: what has changed by then is claimed.
            let (written, read) =
                tokio::join!(self.write(&page, &mut cursor), self.read(&mut walk));
            if written? == Step::Overtaken {
                return Ok(());
            }
            ahead = read?;
        }
        self.close(cursor).await
    }

    /// The next pairs, and rejects, in key order: of a page, or of several that are short. Nothing behind
    /// the last.
    async fn read(&self, walk: &mut Walk) -> Result<Option<Page>> {
        let rate = self.control.borrow().rate_keys;
        let rate = rate.map_or(usize::MAX, |rate| {
            usize::try_from(rate).unwrap_or(usize::MAX)
        });
        let most = PageSize {
            pairs: walk.size.pairs.min(rate.max(1)),
            ..walk.size
        };
        let mut read: Option<Page> = None;
        while let Some(reach) = &mut walk.reach {
            let so_far = read.as_ref().map_or(0, |read| read.kvs.len());
            let more = PageSize {
                pairs: most.pairs - so_far,
                ..most
            };
            let page = self.old.scan(reach.range(), more, Content::Full).await?;
            let stop = page.stop()?;
            if !reach.go_on(&page, stop) {
                walk.reach = None;
            }
            walk.size = adapted(walk.size, page.kvs.iter());
            self.pairs.store(walk.size.pairs, Ordering::Relaxed);
            let full = page.more;
            let read = read.get_or_insert_default();
            read.kvs.extend(page.kvs);
            read.rejects.extend(page.rejects);
            if full || is_worth_writing(read, most) {
                break;
            }
        }
        Ok(read)
    }

    async fn write(&self, page: &Page, cursor: &mut Cursor) -> Result<Step> {
        if !page.rejects.is_empty() {
            self.copier.record_rejects(&page.rejects).await?;
            // Written with the next move of the cursor. If that never comes, they are seen again.
            cursor.entry.value.rejected += page.rejects.len() as u64;
        }
        let mut rest = &page.kvs[..];
        while !rest.is_empty() {
            let batch = self.copier.batch(rest);
            self.wait_for_turn(batch.len(), batch.iter().map(KeyValue::weight).sum())
                .await;
            if self.copier.copy(batch, Some(cursor)).await? == Step::Overtaken {
                return Ok(Step::Overtaken);
            }
            rest = &rest[batch.len()..];
        }
        Ok(Step::Done)
    }

    /// Waits while the backfill is paused, and as long as the limits on its rate say.
    async fn wait_for_turn(&self, keys: usize, bytes: usize) {
        let mut control = self.control.clone();
        loop {
            let now = *control.borrow_and_update();
            let amount = (keys as u64, bytes as u64);
            let turn = async {
                if now.paused {
                    std::future::pending::<()>().await;
                }
                self.brake
                    .pass(amount, (now.rate_keys, now.rate_bytes))
                    .await;
            };
            tokio::select! {
                biased;
                () = turn => return,
                changed = control.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.brake.reset().await;
                }
            }
        }
    }

    async fn close(&self, cursor: Cursor) -> Result<()> {
        let done = Shard {
            done: true,
            ..cursor.entry.value
        };
        let txn = RecordTxn {
            expect: vec![(cursor.name.clone(), cursor.entry.version)],
            writes: vec![write(&cursor.name, &done)],
            ..RecordTxn::default()
        };
        // If another member was faster, it has said the same.
        self.ledger.write_in(cursor.epoch, txn).await.map(|_| ())
    }
}

/// Whether `read` is enough for a transaction of its own, where a page has `most`.
fn is_worth_writing(read: &Page, most: PageSize) -> bool {
    const PAIRS: usize = 500;
    const BYTES: usize = 1 << 19;
    let bytes = read.kvs.iter().map(KeyValue::weight).sum::<usize>();
    read.kvs.len() + read.rejects.len() >= PAIRS.min(most.pairs) || bytes >= BYTES
}

/// Where the backfill stands, from its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How far the survey is.
    pub survey: Survey,
    /// All shards in key order.
    pub shards: Vec<Shard>,
}

impl Progress {
    /// Reads the records. In the passthrough phase there is nothing to copy, and what they hold is left of
    /// a migration that was rolled back.
    pub async fn load(ledger: &Ledger, phase: Phase) -> Result<Self> {
        if phase == Phase::Passthrough {
            return Ok(Self::default());
        }
        let survey: Option<Entry<Survey>> = ledger.get(SURVEY).await?;
        let shards = ledger.list::<Shard>(SHARDS).await?;
        Ok(Self {
            survey: survey.unwrap_or_default().value,
            shards: shards.into_iter().map(|(_, entry)| entry.value).collect(),
        })
    }

    /// Keys that are still to be copied, as far as is known.
    #[must_use]
    pub fn keys_left(&self) -> u64 {
        let unseen = if self.survey.done {
            0
        } else {
            self.survey.expected.saturating_sub(self.survey.seen)
        };
        unseen + self.shards.iter().map(Shard::left).sum::<u64>()
    }

    /// The spans for which the old store need not be asked, those that touch each other made one.
    /// A shard with rejects is none: what was rejected is still only in the old store.
    #[must_use]
    pub fn copied_spans(&self) -> Vec<KeyRange> {
        let mut spans: Vec<KeyRange> = Vec::new();
        let whole = self.shards.iter().filter(|shard| shard.rejected == 0);
        for span in whole.map(Shard::copied_span) {
            if span.is_empty() {
                continue;
            }
            match (spans.last_mut(), &span) {
                (
                    Some(KeyRange::Span { end: Some(end), .. }),
                    KeyRange::Span {
                        start,
                        end: further,
                    },
                ) if end == start => {
                    let start = spans.pop().map(|span| span.start().clone());
                    spans.push(KeyRange::span(start.unwrap_or_default(), further.clone()));
                }
                _ => spans.push(span),
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::migration::phase::State;
    use crate::migration::records::STATE;
    use crate::migration::troubles::Troubles;
    use crate::store::memory::Memory;
    use crate::store::{AsOld, Guard, NewStore, OldLease, Store as _};
    use crate::types::{Put, Range, Revision};

    /// A new store with a migration from an empty one, whose survey has found these shards.
    async fn surveyed(shards: &[Shard]) -> (Arc<dyn NewStore>, Ledger, State) {
        let new: Arc<dyn NewStore> = Arc::new(Memory::new());
        let ledger = Ledger::new(new.clone());
        let state = State::begin("it".into(), "old".into(), Revision(1), false, 0);
        assert!(ledger.put(STATE, &state, 0).await.unwrap());
        let survey = Survey {
            done: true,
            shards: shards.len().try_into().unwrap(),
            ..Survey::default()
        };
        assert!(ledger.put(SURVEY, &survey, 0).await.unwrap());
        for (number, shard) in shards.iter().enumerate() {
            let name = format!("{SHARDS}{number:06}");
            assert!(ledger.put(&name, shard, 0).await.unwrap());
        }
        (new, ledger, state)
    }

    /// Versions of shards begin anew with each migration: they do not keep out whoever has slept through
    /// the end of one and the beginning of the next.
    #[tokio::test]
    async fn a_backfill_of_another_epoch_moves_no_shard() {
        let (new, ledger, state) = surveyed(&[Shard::default()]).await;
        let name = format!("{SHARDS}000000");
        let run = async |epoch| {
            let (_, control) = watch::channel(Control::default());
            let backfill = Backfill {
                ledger: ledger.clone(),
                old: Arc::new(AsOld::new(Arc::new(Memory::new()), "old".into())),
                new: new.guarded(Guard::None),
                reserved: Reserved::default(),
                epoch,
                parallel: 1,
                control,
                trouble: Troubles::default().begin("backfill"),
            };
            let done = backfill.run().await;
            let shard = ledger.get::<Shard>(&name).await.unwrap().unwrap();
            (done, shard.value.done)
        };
        let over = Err(StoreError::StaleEpoch);
        assert_eq!(run(state.epoch.next()).await, (over, false));
        assert_eq!(run(state.epoch).await, (Ok(()), true));
    }

    /// An old store that meets a fault in the program the first time that it is read.
    struct Faulty(AsOld, AtomicUsize);

    #[async_trait]
    impl OldStore for Faulty {
        async fn identity(&self) -> Result<String> {
            self.0.identity().await
        }

        async fn revision(&self) -> Result<Revision> {
            self.0.revision().await
        }

        async fn get(&self, keys: Vec<Bytes>) -> Result<Vec<Option<KeyValue>>> {
            self.0.get(keys).await
        }

        async fn scan(&self, keys: KeyRange, size: PageSize, content: Content) -> Result<Page> {
            let reads = self.1.fetch_add(1, Ordering::SeqCst);
            assert_ne!(reads, 0, "a fault, on purpose");
            self.0.scan(keys, size, content).await
        }

        async fn count(&self, keys: KeyRange) -> Result<usize> {
            self.0.count(keys).await
        }

        async fn leases(&self) -> Result<Vec<OldLease>> {
            self.0.leases().await
        }
    }

    #[tokio::test]
    async fn a_part_that_ends_by_a_fault_is_begun_again() {
        let middle = Bytes::from_static(b"m");
        let shards = [
            Shard {
                end: Some(middle.clone()),
                ..Shard::default()
            },
            Shard {
                start: middle.clone(),
                frontier: middle,
                ..Shard::default()
            },
        ];
        let (new, ledger, state) = surveyed(&shards).await;
        let (_control, control) = watch::channel(Control::default());
        let troubles = Troubles::default();
        let old = AsOld::new(Arc::new(Memory::new()), "old".into());
        let backfill = Backfill {
            ledger: ledger.clone(),
            old: Arc::new(Faulty(old, AtomicUsize::new(0))),
            new: new.guarded(Guard::None),
            reserved: Reserved::default(),
            epoch: state.epoch,
            parallel: 2,
            control,
            trouble: troubles.begin("backfill"),
        };
        let long = Duration::from_mins(1);
        let done = tokio::time::timeout(long, backfill.run()).await;
        assert_eq!(done.expect("it does not hang"), Ok(()));
        let shards = ledger.list::<Shard>(SHARDS).await.unwrap();
        assert!(shards.iter().all(|(_, shard)| shard.value.done));
        assert_eq!(troubles.text(), None);
    }

    /// Keys that lie so unevenly that some ranges end early.
    #[tokio::test]
    async fn a_shard_is_read_whole_and_few_pages_are_short() {
        let store = Arc::new(Memory::new());
        for number in 0..20_000_u32 {
            let name = crc32fast::hash(&number.to_le_bytes());
            let key = format!("/registry/pods/ns-{:03}/pod-{name:08x}", number % 97);
            store.put(Put::new(key, "")).await.unwrap();
        }
        let all = store.range(Range::of(KeyRange::all())).await.unwrap();
        let keys: Vec<Bytes> = all.reply.kvs.into_iter().map(|kv| kv.key).collect();
        let (new, ledger, state) = surveyed(&[]).await;
        let old: Arc<dyn OldStore> = Arc::new(AsOld::new(store, "old".into()));
        let (_control, control) = watch::channel(Control::default());
        let worker = Worker {
            copier: Copier::new(ledger.clone(), old.clone(), new.guarded(Guard::None)),
            ledger,
            old,
            reserved: Reserved::default(),
            epoch: state.epoch,
            brake: Brake::default(),
            control,
            pairs: AtomicUsize::new(FIRST_PAGE.pairs),
        };
        let mut walk = Walk::over(&Shard::default(), FIRST_PAGE.pairs, &worker.reserved);
        let mut pages = Vec::new();
        while let Some(page) = worker.read(&mut walk).await.unwrap() {
            // As small as an etcd's.
            walk.size.pairs = walk.size.pairs.min(1000);
            pages.push(page.kvs);
        }
        let few = pages.iter().filter(|page| page.len() < 500).count();
        assert!(few <= 3, "the first two, and the last: {few}");
        let read: Vec<Bytes> = pages.into_iter().flatten().map(|kv| kv.key).collect();
        assert_eq!(read, keys);
    }

    #[test]
    fn copied_spans_are_joined_where_they_touch_and_never_run_ahead() {
        let key = |text: &'static str| Bytes::from_static(text.as_bytes());
        let shard = |start, end: Option<&'static str>, frontier, done| Shard {
            start: key(start),
            end: end.map(key),
            frontier: key(frontier),
            done,
            ..Shard::default()
        };
        let of = |shards: Vec<Shard>| Progress {
            shards,
            ..Progress::default()
        };
        let span =
            |start: &'static str, end: Option<&'static str>| KeyRange::span(start, end.map(key));
        for (shards, spans) in [
            (vec![], vec![]),
            (vec![shard("", Some("c"), "", false)], vec![]),
            (
                vec![
                    shard("", Some("c"), "b", false),
                    shard("c", None, "d", false),
                ],
                vec![span("", Some("b")), span("c", Some("d"))],
            ),
            (
                vec![
                    shard("", Some("c"), "b", true),
                    shard("c", Some("e"), "d", true),
                    shard("e", None, "f", false),
                ],
                vec![span("", Some("f"))],
            ),
            (
                vec![shard("", Some("c"), "b", true), shard("c", None, "c", true)],
                vec![span("", None)],
            ),
            (
                vec![
                    Shard {
                        rejected: 1,
                        ..shard("", Some("c"), "b", true)
                    },
                    shard("c", None, "d", false),
                ],
                vec![span("c", Some("d"))],
            ),
        ] {
            assert_eq!(of(shards.clone()).copied_spans(), spans, "{shards:?}");
        }
    }
}
