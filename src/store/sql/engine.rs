//! The writer: takes what waits as one batch into one transaction of the database.
//!
//! While one batch is being committed the next one gathers, so batches are as large as the load
//! makes them and nobody waits for a timer. When as much waits as is being committed, it is begun
//! meanwhile, by backends that can. Each request of a batch keeps its own revision and its own success
//! or failure.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;
use tokio::sync::mpsc::{self, Receiver};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::backend::{Backend, Changes, Head, Next, Prefetch, Prefetched, Snapshot};
use super::decide::{Decided, decide};
use super::height::Height;
use super::queue::{Enough, Gathered};
use super::sweeping::Sweeping;
use super::work::{Claims, Done, Job, Request, want};
use crate::store::feed::Feed;
use crate::store::{Result, StoreError};
use crate::types::{Reserved, Revision};

/// Batches whose requests are still to be answered, at most.
pub(super) const ANSWERS_LEN: usize = 4;

/// A batch that was committed, and what was done for each of its requests.
pub(super) type Answers = (Vec<Request>, Vec<Result<Done>>);

/// The writer of a store.
pub(super) struct Writer<B> {
    pub(super) committer: Committer<B>,
    pub(super) queue: Receiver<Job>,
    pub(super) enough: Arc<Enough>,
    pub(super) cancel: CancellationToken,
}

/// What commits one batch after the other.
pub(super) struct Committer<B> {
    pub(super) backend: Arc<B>,
    pub(super) feed: Arc<Feed>,
    pub(super) reserved: Reserved,
    /// Told when the feed lacks changes of other processes.
    pub(super) behind: Arc<Notify>,
    pub(super) height: Arc<Height>,
    /// What became of batches, for [`answer`].
    pub(super) answers: mpsc::Sender<Answers>,
}

/// What the writer does next.
enum Step {
    Take(Job),
    /// Delete a piece of what was compacted up to here.
    Sweep(Revision),
    End,
}

impl<B: Backend> Writer<B> {
    /// Runs until it is cancelled or nobody is left who could ask for anything.
    pub(super) async fn run(mut self) {
        let mut head = self.committer.head().await;
        let mut gathered = Gathered::default();
        let mut last = 0;
        let mut sweeping = Sweeping::new(self.committer.backend.linger());
        loop {
            if !gathered.requests.is_empty() {
                let (batch, begun) = gathered.take(&mut self.queue, last);
                last = batch.len();
                // Writers who never let the queue run empty must not keep what is compacted for ever.
                let sweep = sweeping.due_between_writes(head.as_ref(), Instant::now());
                let reserved = &self.committer.reserved;
                let next = async {
                    if sweep.is_some() {
                        // Nothing fits between a batch and one that is begun ahead.
                        return pending().await;
                    }
                    let next = gathered.ahead(&mut self.queue, &self.enough, last, reserved);
                    next.await
                };
                self.committer
                    .carry_out(batch, begun, &mut head, pin!(next))
                    .await;
                if let Some(until) = sweep {
                    self.committer.sweep(until, &mut head, &mut sweeping).await;
                }
                continue;
            }
            let step = match gathered.held.take() {
                Some(job) => Step::Take(job),
                None => self.select(head.as_ref(), &mut sweeping).await,
            };
            match step {
                Step::Take(Job::Request(first)) => gathered.push(first),
                Step::Take(Job::DropWhiteouts(reply)) => {
                    // Whoever asked and went away again needs no answer.
                    reply
                        .send(self.committer.backend.drop_whiteouts().await)
                        .ok();
                }
                Step::Sweep(until) => {
                    self.committer.sweep(until, &mut head, &mut sweeping).await;
                }
                Step::End => break,
            }
        }
        self.queue.close();
        gathered
            .held
            .into_iter()
            .chain(std::iter::from_fn(|| self.queue.try_recv().ok()))
            .for_each(refuse);
        self.committer.backend.finish().await;
        debug!("the writer has ended");
    }

    /// Requests that wait go before the deletion of compacted history.
    async fn select(&mut self, head: Option<&Head>, sweeping: &mut Sweeping) -> Step {
        loop {
            if self.cancel.is_cancelled() {
                return Step::End;
            }
            if let Some(until) = sweeping.due(head, Instant::now()) {
                match self.queue.try_recv() {
                    Ok(job) => return Step::Take(job),
                    Err(mpsc::error::TryRecvError::Empty) => return Step::Sweep(until),
                    Err(mpsc::error::TryRecvError::Disconnected) => return Step::End,
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return Step::End,
                job = self.queue.recv() => return job.map_or(Step::End, Step::Take),
                () = sweeping.ripens() => {}
            }
        }
    }
}

impl<B: Backend> Committer<B> {
    async fn head(&self) -> Option<Head> {
        let read = self.backend.read(Snapshot::latest(Vec::new())).await;
        read.inspect_err(|err| error!("cannot read where the store stands: {err}"))
            .map(|read| read.head)
            .ok()
    }

    /// Deletes a piece of what is compacted.
    async fn sweep(&self, until: Revision, head: &mut Option<Head>, sweeping: &mut Sweeping) {
        let begun = Instant::now();
        match self.backend.sweep(until).await {
            Ok(swept) => *head = Some(swept),
            Err(err) => {
                error!("cannot delete compacted history, will go on behind the next write: {err}");
                *head = None;
            }
        }
        sweeping.swept(begun);
    }

    /// Commits a batch and tells everybody. A failure that may be one request's own fault is not
    /// put on the others: each is tried alone.
    async fn carry_out(
        &self,
        batch: Vec<Request>,
        begun: Option<Arc<Prefetch>>,
        head: &mut Option<Head>,
        next: Next<'_>,
    ) {
        match self.commit(&batch, begun, next).await {
            Ok((done, now)) => {
                *head = Some(now);
                if let Err(mpsc::error::SendError((batch, done))) =
                    self.answers.send((batch, done)).await
                {
                    give(batch, done);
                }
            }
            Err(StoreError::Request(_) | StoreError::Broken(_)) if batch.len() > 1 => {
                for request in batch {
                    let alone = [request];
                    let done = match self.commit(&alone, None, pin!(pending())).await {
                        Ok((mut done, now)) => {
                            *head = Some(now);
                            done.pop()
                        }
                        Err(err) => Some(Err(err)),
                    };
                    let [request] = alone;
                    request.answer(done.unwrap_or_else(gone));
                }
            }
            Err(err) => {
                error!(requests = batch.len(), "a batch of writes failed: {err}");
                for request in batch {
                    request.answer(Err(err.clone()));
                }
            }
        }
    }

    /// Commits a batch, which may have been begun, and publishes what happened, before anybody hears of
    /// it.
    async fn commit(
        &self,
        batch: &[Request],
        begun: Option<Arc<Prefetch>>,
        next: Next<'_>,
    ) -> Result<(Vec<Result<Done>>, Head)> {
        let want = |claims| Arc::new(want(batch, &self.reserved, claims));
        let by_span = begun.unwrap_or_else(|| want(Claims::BySpan));
        if !by_span.is_small() {
            // To fetch what they need may take longer than they may wait to be begun.
            for request in batch {
                request.begin();
            }
        }
        let mut decided = self.transact(batch, &by_span, next).await?;
        if decided.is_none() {
            // Nothing was committed. But a try whose commit was lost may have begun the next batch.
            let by_key = want(Claims::ByKey);
            decided = self.transact(batch, &by_key, pin!(pending())).await?;
        }
        let Some(decided) = decided else {
            return Err(StoreError::Broken("a batch was committed undecided".into()));
        };
        let head = decided.changes.head;
        self.height.raise(head.revision);
        let feed = &self.feed;
        if !feed.publish_behind(decided.before, &decided.batches, head.revision) {
            // Others have committed in between: the log has their changes, and these.
            self.behind.notify_one();
        }
        Ok((decided.done, head))
    }

    /// Commits a batch, unless it was not found out which keys are claimed: then nothing is done.
    async fn transact(
        &self,
        batch: &[Request],
        want: &Arc<Prefetch>,
        next: Next<'_>,
    ) -> Result<Option<Decided>> {
        let mut decided: Option<Decided> = None;
        let floor = self.height.get();
        let mut fallen = Ok(());
        let mut decide = |found: Prefetched| {
            decided = None;
            // It does not count as reached: a commit may be seen here that a crash takes back.
            fallen = Height::check(floor, found.head.revision);
            if fallen.is_err() || want.has_more_claims(&found.claimed) {
                return Changes::none(found.head);
            }
            let mut done = decide(batch, found, &self.reserved);
            let head = done.changes.head;
            let changes = std::mem::replace(&mut done.changes, Changes::none(head));
            decided = Some(done);
            changes
        };
        self.backend.transact(want, &mut decide, next).await?;
        fallen?;
        Ok(decided)
    }
}

/// Tells everybody what became of their requests, until the writer ends.
///
/// A task of its own: the writer goes on with the next batch meanwhile. One that is a thread, as
/// SQLite's, would besides have to wake the runtime from outside for each of them.
pub(super) async fn answer(mut answers: Receiver<Answers>) {
    while let Some((batch, done)) = answers.recv().await {
        give(batch, done);
    }
}

fn give(batch: Vec<Request>, done: Vec<Result<Done>>) {
    for (request, done) in batch.into_iter().zip(done) {
        request.answer(done);
    }
}

fn gone<T>() -> Result<T> {
    Err(StoreError::Unavailable("the store is being closed".into()))
}

fn refuse(job: Job) {
    match job {
        Job::Request(request) => request.answer(gone()),
        Job::DropWhiteouts(reply) => drop(reply.send(gone())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use std::sync::{Mutex, OnceLock};
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::store::sql::backend::Read;
    use crate::store::sql::sqlite::Sqlite;
    use crate::store::sql::{Options, SqlStore};
    use crate::store::{NewStore, Store as _};
    use crate::tasks::spawn_owned;
    use crate::types::{KeyRange, Put, Range, Revision};

    /// What goes wrong with the next batch.
    #[derive(Clone, Copy)]
    enum Mishap {
        /// It sees a commit that a crash takes back, and with it the batch.
        Crash,
        /// It meets a fault in the program.
        Fault,
        /// The database does not answer until it is told to go on.
        Silence,
    }

    /// A database that meets with a mishap once.
    struct Unlucky {
        inner: Sqlite,
        mishap: Mutex<Option<Mishap>>,
        go_on: Arc<Notify>,
        /// From now on no batch ends before something waits behind it.
        busy: AtomicBool,
        queue: OnceLock<mpsc::Sender<Job>>,
        /// Sweeps while it was so.
        swept: AtomicUsize,
    }

    impl Unlucky {
        /// It has a thread of its own.
        fn wait_for_more(&self) {
            let empty = || match self.queue.get() {
                Some(queue) => queue.capacity() == queue.max_capacity(),
                None => false,
            };
            while self.busy.load(SeqCst) && empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    impl Backend for Unlucky {
        fn identity(&self) -> &str {
            self.inner.identity()
        }

        fn unacceptable(&self, key: &[u8], value_len: usize) -> Option<String> {
            self.inner.unacceptable(key, value_len)
        }

        async fn transact(
            &self,
            prefetch: &Arc<Prefetch>,
            decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
            next: Next<'_>,
        ) -> Result<()> {
            let mishap = self.mishap.lock().unwrap().take();
            match mishap {
                None => {
                    let done = self.inner.transact(prefetch, decide, next).await;
                    self.wait_for_more();
                    return done;
                }
                Some(Mishap::Fault) => panic!("on purpose"),
                Some(Mishap::Silence) => {
                    self.go_on.notified().await;
                    return self.inner.transact(prefetch, decide, next).await;
                }
                Some(Mishap::Crash) => {}
            }
            let mut glimpse = |mut found: Prefetched| {
                let head = found.head;
                found.head.revision = head.revision.next();
                decide(found);
                Changes::none(head)
            };
            self.inner.transact(prefetch, &mut glimpse, next).await?;
            Err(StoreError::Unavailable("it has crashed".into()))
        }

        async fn read(&self, snapshot: Snapshot) -> Result<Read> {
            self.inner.read(snapshot).await
        }

        async fn moved(&self, known: impl Fn() -> Revision + Send + Sync, eager: bool) {
            self.inner.moved(known, eager).await;
        }

        fn run_writer(&self, writer: BoxFuture<'static, ()>) -> Result<()> {
            self.inner.run_writer(writer)
        }

        fn linger(&self) -> Duration {
            self.inner.linger()
        }

        async fn sweep(&self, until: Revision) -> Result<Head> {
            self.swept
                .fetch_add(usize::from(self.busy.load(SeqCst)), SeqCst);
            self.inner.sweep(until).await
        }

        async fn drop_whiteouts(&self) -> Result<bool> {
            self.inner.drop_whiteouts().await
        }

        async fn defragment(&self) -> Result<()> {
            self.inner.defragment().await
        }
    }

    async fn unlucky(mishap: impl Into<Option<Mishap>>, dir: &Path) -> SqlStore<Unlucky> {
        let backend = Unlucky {
            inner: Sqlite::open(&dir.join("store.db"), "segue_", true).unwrap(),
            mishap: Mutex::new(mishap.into()),
            go_on: Arc::default(),
            busy: AtomicBool::default(),
            queue: OnceLock::new(),
            swept: AtomicUsize::default(),
        };
        SqlStore::start(backend, Options::default()).await.unwrap()
    }

    /// Waits until a batch has met with its mishap.
    async fn begins(store: &SqlStore<Unlucky>) {
        while store.engine.backend.mishap.lock().unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_commit_that_only_a_batch_saw_may_be_taken_back_by_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let store = unlucky(Mishap::Crash, dir.path()).await;
        store.put(Put::new("a", "")).await.unwrap_err();
        // What was not told to anybody is not missed.
        let read = store.range(Range::key("a")).await.unwrap();
        assert_eq!((read.revision, read.reply.count), (Revision(1), 0));
        let written = store.put(Put::new("a", "")).await.unwrap();
        assert_eq!(written.revision, Revision(2));
    }

    #[tokio::test]
    async fn it_is_told_if_the_writer_dies_of_a_fault_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = unlucky(Mishap::Fault, dir.path()).await;
        assert!(NewStore::astray(&store).now_or_never().is_none());
        store.put(Put::new("a", "")).await.unwrap_err();
        assert_eq!(NewStore::astray(&store).await, "sql writer");
        // It can be closed all the same, and is whole.
        store.close().await;
        drop(store);
        let again = Sqlite::open(&dir.path().join("store.db"), "segue_", false).unwrap();
        let again = SqlStore::start(again, Options::default()).await.unwrap();
        assert_eq!(
            again.put(Put::new("a", "")).await.unwrap().revision,
            Revision(2)
        );
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_done() {
        let dir = tempfile::tempdir().unwrap();
        let store = unlucky(Mishap::Silence, dir.path()).await;
        let put = |key: &'static str| {
            let store = store.clone();
            spawn_owned(async move { store.put(Put::new(key, "")).await })
        };
        // One is begun, the others wait behind it.
        let begun = put("begun");
        begins(&store).await;
        let (waits, stays) = (put("waits"), put("stays"));
        while store.engine.queue.capacity() + 2 > store.engine.queue.max_capacity() {
            tokio::task::yield_now().await;
        }
        begun.abort();
        waits.abort();
        begun.await.unwrap_err();
        waits.await.unwrap_err();
        store.engine.backend.go_on.notify_one();
        assert_eq!(stays.await.unwrap().unwrap().revision, Revision(2));
        let read = store.range(Range::of(KeyRange::all())).await.unwrap();
        assert_eq!((read.revision, read.reply.count), (Revision(2), 1));
    }

    #[tokio::test]
    async fn no_more_bytes_wait_for_the_database_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = unlucky(Mishap::Silence, dir.path()).await;
        let room = &store.engine.room;
        let all = room.available_permits();
        room.forget_permits(all - 100);
        let put = |kib: usize| {
            let store = store.clone();
            let put = Put::new("a", vec![0; kib << 10]);
            spawn_owned(async move { store.put(put).await })
        };
        let begun = put(60);
        begins(&store).await;
        let waits = put(60);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            store.engine.queue.capacity(),
            store.engine.queue.max_capacity()
        );
        store.engine.backend.go_on.notify_one();
        begun.await.unwrap().unwrap();
        waits.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_compacted_is_deleted_while_writers_never_let_the_queue_run_empty() {
        let dir = tempfile::tempdir().unwrap();
        let store = unlucky(None, dir.path()).await;
        let backend = &store.engine.backend;
        for _ in 0..3 {
            store.put(Put::new("a", "")).await.unwrap();
        }
        assert!(backend.queue.set(store.engine.queue.clone()).is_ok());
        backend.busy.store(true, SeqCst);
        let writer = |key: &'static str| {
            let store = store.clone();
            spawn_owned(async move {
                while store.engine.backend.busy.load(SeqCst) {
                    store.put(Put::new(key, "")).await.unwrap();
                }
            })
        };
        let writers = ["b", "c", "d", "e"].map(writer);
        let begun = store.compact(Revision(3)).await.unwrap().revision;
        let mut now = begun;
        while backend.swept.load(SeqCst) == 0 && now.0 < begun.0 + 100 {
            tokio::task::yield_now().await;
            now = store.engine.height.get();
        }
        let swept = backend.swept.load(SeqCst);
        backend.busy.store(false, SeqCst);
        for writer in writers {
            writer.await.unwrap();
        }
        assert!(swept > 0, "not between the revisions {begun} and {now}");
    }
}
