//! etcd's semantics on SQL databases.
//!
//! In reading order:
//!
//! - [`backend`]: what a database is asked for, as plain data.
//! - `tables`: what the tables are. [`text`]: the statements that SQLite and PostgreSQL have in common.
//!   `rows`: from the columns of a driver to what the engine knows.
//! - `work`: requests that wait, and what has to be fetched for them. `table` shows what was fetched
//!   to [`super::eval`], `decide` turns the outcome into changes, `replay` those of another store. All are
//!   pure.
//! - `engine`: the writer, which commits all that waits as one batch. `queue`: how a batch is put together.
//!   `ahead`: the next one is begun while the last is committed. `sweeping`: when compacted history is deleted.
//! - `store`: the traits of [`super`], on top of it. Reads go to the backend and never wait for the
//!   writer; `reading` takes transactions that only read apart.
//! - `tail`: what other processes change in the same database. `height`: databases that go back.
//! - `counts`: what clients that page through a range need. `history`: the log as watches read it. `leases`: ending them.
//! - [`sqlite`], [`postgres`], [`mysql`]: the backends, and how to open one.

mod ahead;
pub mod backend;
mod counts;
mod decide;
mod engine;
mod height;
mod history;
mod leases;
pub mod mysql;
pub mod postgres;
mod queue;
mod reading;
mod replay;
mod rows;
pub mod sqlite;
mod store;
mod sweeping;
mod table;
mod tables;
mod tail;
pub mod text;
mod work;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use self::backend::{Backend, Found, Query, Read, Snapshot};
use self::height::Height;
use self::work::{Asker, Done, Job, Request, Work, late, lost};
use super::feed::Feed;
use super::{Guard, RequestError, Result, StoreError, lease};
use crate::tasks::Tasks;
use crate::types::Reserved;

/// Requests that wait for the writer, at most; more wait for room.
const QUEUE_LEN: usize = 4096;

/// Bytes of all requests that wait or are carried out, at most, in KiB; more wait for room.
const QUEUE_KIB: u32 = 256 << 10;

/// A request of a client that was not begun within so long is not done any more. It is the time that etcd gives
/// a request: five seconds, and twice what an election takes.
const BEGUN_WITHIN: Duration = Duration::from_secs(7);

/// How long a store waits for its tasks when it is closed. A batch takes milliseconds; what takes
/// longer is a server that is away.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);

/// How a store is to be opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The keys that belong to Segue.
    pub reserved: Reserved,
    /// What the names of all tables begin with.
    pub table_prefix: String,
    /// Create the tables if there are none. Off for an old store, which has to be there already.
    pub create: bool,
    /// Shortest time to live that a lease is granted with, in seconds.
    pub min_lease_ttl_s: i64,
    /// End leases whose time is over. Off for an old store whose leases have moved to the new one.
    pub expire_leases: bool,
    /// Use a server that is set to lose commits in a crash; else it is refused.
    pub allow_lossy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reserved: Reserved::default(),
            table_prefix: "segue_".into(),
            create: true,
            min_lease_ttl_s: lease::MIN_TTL_S,
            expire_leases: true,
            allow_lossy: false,
        }
    }
}

/// A store in a SQL database. Clones are handles on the same store; it is closed when the last one
/// is dropped, or by [`Self::close`].
pub struct SqlStore<B: Backend> {
    engine: Arc<Engine<B>>,
    /// What every operation through this handle holds to.
    guard: Guard,
}

impl<B: Backend> Clone for SqlStore<B> {
    fn clone(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            guard: self.guard,
        }
    }
}

/// What the handles share.
struct Engine<B> {
    backend: Arc<B>,
    feed: Arc<Feed>,
    reserved: Reserved,
    queue: mpsc::Sender<Job>,
    /// For the bytes of requests, in KiB.
    room: Arc<Semaphore>,
    enough: Arc<queue::Enough>,
    height: Arc<Height>,
    min_lease_ttl_s: i64,
    counts: counts::Counts,
    tasks: Tasks,
}

impl<B: Backend> SqlStore<B> {
    /// Starts the engine over an open database.
    pub(crate) async fn start(backend: B, options: Options) -> Result<Self> {
        let backend = Arc::new(backend);
        let head = backend.read(Snapshot::latest(Vec::new())).await?.head;
        let height = Arc::new(Height::new(head.revision));
        let behind = Arc::new(Notify::new());
        let log = history::Log {
            backend: backend.clone(),
            reserved: options.reserved.clone(),
        };
        let feed = Feed::new(Arc::new(log), options.reserved.clone(), head.revision);
        let feed = Arc::new(feed);
        let (queue, waiting) = mpsc::channel(QUEUE_LEN);
        let (answers, answered) = mpsc::channel(engine::ANSWERS_LEN);
        let tasks = Tasks::new();
        let enough = Arc::new(queue::Enough::new());
        let writer = engine::Writer {
            committer: engine::Committer {
                backend: backend.clone(),
                feed: feed.clone(),
                reserved: options.reserved.clone(),
                behind: behind.clone(),
                height: height.clone(),
                answers,
            },
            queue: waiting,
            enough: enough.clone(),
            cancel: tasks.token().clone(),
        };
        let writer = tasks.own_vital("sql writer", writer.run());
        backend.run_writer(Box::pin(writer))?;
        tasks.spawn_vital("sql answers", engine::answer(answered));
        let tail = tail::Tail {
            backend: backend.clone(),
            feed: feed.clone(),
            behind,
            height: height.clone(),
            cancel: tasks.token().clone(),
        };
        tasks.spawn_vital("sql log tail", tail.run());
        let engine = Arc::new(Engine {
            backend,
            feed,
            reserved: options.reserved,
            queue,
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            enough,
            height,
            min_lease_ttl_s: options.min_lease_ttl_s,
            counts: counts::Counts::default(),
            tasks,
        });
        if options.expire_leases {
            let expiry = leases::run(Arc::downgrade(&engine), engine.tasks.token().clone());
            engine.tasks.spawn_vital("sql lease expiry", expiry);
        }
        Ok(Self {
            engine,
            guard: Guard::None,
        })
    }

    /// Ends the store's tasks and waits for them. What was asked for and not begun is refused; so is
    /// everything from now on. Watches end.
    pub async fn close(&self) {
        self.engine.tasks.shut_down(CLOSE_WITHIN).await;
        self.engine.feed.end_all("the store was closed");
    }
}

impl<B> Drop for Engine<B> {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl<B: Backend> Engine<B> {
    /// Has the writer carry out a request.
    async fn submit(&self, guard: Guard, work: Work) -> Result<Done> {
        let mut refused = None;
        work.visit_written(&mut |key, value_len| {
            if refused.is_none() {
                refused = self.backend.unacceptable(key, value_len);
            }
        });
        if let Some(reason) = refused {
            return Err(RequestError::Unacceptable(reason).into());
        }
        let until = work.is_of_client().then(|| Instant::now() + BEGUN_WITHIN);
        let sent = self.enqueue(guard, work);
        let asker = match until {
            Some(until) => timeout_at(until, sent).await.map_err(|_| late())??,
            None => sent.await?,
        };
        asker.answer(until).await
    }

    /// Puts a request into the writer's queue, when there is room.
    async fn enqueue(&self, guard: Guard, work: Work) -> Result<Asker> {
        // What is in a request besides keys and values is in the KiB that each has.
        let kib = u32::try_from(work.size() / 1024 + 1).unwrap_or(QUEUE_KIB);
        let room = self.room.clone().acquire_many_owned(kib.min(QUEUE_KIB));
        let room = room.await.map_err(|_| closed())?;
        let (request, asker) = Request::new(guard, work, room);
        self.send(Job::Request(request)).await?;
        Ok(asker)
    }

    /// Has the writer drop some whiteouts; answers whether there may be more.
    async fn drop_whiteouts(&self) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::DropWhiteouts(reply)).await?;
        answer.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Puts a job into the writer's queue.
    async fn send(&self, job: Job) -> Result<()> {
        self.queue.send(job).await.map_err(|_| closed())?;
        let waiting = self.queue.max_capacity() - self.queue.capacity();
        self.enough.waiting(waiting);
        Ok(())
    }

    /// Reads from one snapshot.
    async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        self.height.read(&*self.backend, snapshot).await
    }

    /// Reads one thing.
    async fn query(&self, guard: Guard, query: Query) -> Result<(Read, Found)> {
        let snapshot = Snapshot {
            guard,
            ..Snapshot::latest(vec![query])
        };
        let mut read = self.read(snapshot).await?;
        match read.found.pop() {
            Some(found) => Ok((read, found)),
            None => Err(unanswered()),
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

/// A backend, or the writer, answered something else than what it was asked.
fn unanswered() -> StoreError {
    StoreError::Broken("the SQL backend answered another question than the one it was asked".into())
}
