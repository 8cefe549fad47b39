//! The connections that read: a few threads that share a queue.
//!
//! In WAL mode a read sees one snapshot and never waits for the writer. Small reads that wait
//! together are served from one snapshot, which saves each its own begin, head row and end.
//!
//! Large reads never have all of the threads, so that small ones always find one. A large read whose
//! asker has gone is ended.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};
use tracing::debug;

use super::clock::Clock;
use super::error::not_done;
use super::fetch;
use super::schema::Sql;
use crate::store::sql::backend::{Found, Head, Read, Snapshot};
use crate::store::{Result, StoreError};

/// Small reads that wait, at most, and large ones; more wait for room.
const QUEUE_LEN: usize = 1024;

/// Small reads that are served from one snapshot, at most.
const TOGETHER: usize = 32;

/// After so many of SQLite's steps it is looked whether the asker is still there: some hundred rows.
const LOOK_EVERY: i32 = 2000;

/// The way to the reader threads. They end when it is closed.
pub(super) struct Readers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    waiting: Condvar,
    room_for_small: Semaphore,
    room_for_large: Semaphore,
    /// Large reads at a time, at most.
    large_max: usize,
}

#[derive(Default)]
struct State {
    small: VecDeque<Job>,
    large: VecDeque<Job>,
    /// Large reads under way.
    large_begun: usize,
    /// Reads so far.
    asked: u64,
    closed: bool,
}

struct Job {
    /// The later one has the higher.
    number: u64,
    snapshot: Snapshot,
    reply: oneshot::Sender<Result<Read>>,
}

/// What a thread does next.
enum Turn {
    Small(Vec<Job>),
    Large(Job),
}

impl Readers {
    /// Starts a thread per connection, of which there are two at least.
    pub(super) fn start(
        conns: Vec<Connection>,
        sql: &Arc<Sql>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let readers = Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                waiting: Condvar::new(),
                room_for_small: Semaphore::new(QUEUE_LEN),
                room_for_large: Semaphore::new(QUEUE_LEN),
                large_max: conns.len() - 1,
            }),
        };
        for mut conn in conns {
            let (shared, sql) = (readers.shared.clone(), sql.clone());
            std::thread::Builder::new()
                .name("sqlite reader".into())
                .spawn(move || {
                    while let Some(turn) = shared.next() {
                        match turn {
                            Turn::Small(jobs) => serve(&mut conn, &sql, clock, jobs),
                            Turn::Large(job) => {
                                serve(&mut conn, &sql, clock, vec![job]);
                                shared.lock().large_begun -= 1;
                            }
                        }
                    }
                    debug!("a reader has ended");
                })?;
        }
        Ok(readers)
    }

    /// See [`crate::store::sql::backend::Backend::read`].
    pub(super) async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        let closed = || StoreError::Unavailable("the store is closed".into());
        let small = snapshot.is_small();
        let room = if small {
            &self.shared.room_for_small
        } else {
            &self.shared.room_for_large
        };
        let room = room.acquire().await.map_err(|_| closed())?;
        // The thread that takes the job gives the room back.
        room.forget();
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            if state.closed {
                return Err(closed());
            }
            state.asked += 1;
            let job = Job {
                number: state.asked,
                snapshot,
                reply,
            };
            if small {
                state.small.push_back(job);
            } else {
                state.large.push_back(job);
            }
        }
        self.shared.waiting.notify_one();
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.small.clear();
        state.large.clear();
        self.shared.room_for_small.close();
        self.shared.room_for_large.close();
        self.shared.waiting.notify_all();
    }
}

impl Shared {
    /// Nothing panics under this lock, so a poisoned one is good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work: one large read, or several small ones. Nothing when the readers are closed.
    fn next(&self) -> Option<Turn> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.take_large(self.large_max) {
                state.large_begun += 1;
                self.room_for_large.add_permits(1);
                return Some(Turn::Large(job));
            }
            if !state.small.is_empty() {
                let together = state.small.len().min(TOGETHER);
                let jobs = state.small.drain(..together).collect();
                self.room_for_small.add_permits(together);
                return Some(Turn::Small(jobs));
            }
            state = self
                .waiting
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// A large read, if its turn is before that of all small ones and there are not too many under way.
    fn take_large(&mut self, large_max: usize) -> Option<Job> {
        let small = self.small.front().map_or(u64::MAX, |job| job.number);
        if self.large_begun >= large_max {
            return None;
        }
        self.large.pop_front_if(|job| job.number < small)
    }
}

/// Serves all of `jobs` from one snapshot. Each was asked for before the snapshot was taken.
fn serve(conn: &mut Connection, sql: &Sql, clock: Clock, jobs: Vec<Job>) {
    let run = |conn: &Connection, text: &str| conn.prepare_cached(text)?.execute([]);
    let head = run(conn, "BEGIN").and_then(|_| fetch::head(conn, sql));
    match head {
        Ok(head) => {
            for Job {
                snapshot, reply, ..
            } in jobs
            {
                if reply.is_closed() {
                    continue;
                }
                let now_ms = clock.now_ms();
                let reply = Arc::new(reply);
                let found = snapshot
                    .admit(&head)
                    .and_then(|()| answer(conn, sql, &snapshot, &reply, &head, now_ms));
                let read = found.map(|found| Read {
                    head,
                    now_ms,
                    found,
                });
                // Whoever asked and went away needs no answer.
                if let Some(reply) = Arc::into_inner(reply) {
                    reply.send(read).ok();
                }
            }
        }
        Err(err) => {
            let err = not_done(err);
            for job in jobs {
                job.reply.send(Err(err.clone())).ok();
            }
        }
    }
    if !conn.is_autocommit()
        && let Err(err) = run(conn, "ROLLBACK")
    {
        tracing::error!("a reader cannot end its snapshot: {err}");
    }
}

/// What a snapshot asks for. Fails when it is a large one and nobody waits for its reply any more.
fn answer(
    conn: &mut Connection,
    sql: &Sql,
    snapshot: &Snapshot,
    reply: &Arc<oneshot::Sender<Result<Read>>>,
    head: &Head,
    now_ms: i64,
) -> Result<Vec<Found>> {
    let found = |conn: &Connection| {
        let queries = snapshot.queries.iter();
        queries
            .map(|query| fetch::query(conn, sql, snapshot, query, head, now_ms))
            .collect::<rusqlite::Result<_>>()
    };
    if snapshot.is_small() {
        return found(conn).map_err(not_done);
    }
    let asked = reply.clone();
    let watched = conn.progress_handler(LOOK_EVERY, Some(move || asked.is_closed()));
    let found = watched.and_then(|()| found(conn));
    let let_go = conn.progress_handler(0, None::<fn() -> bool>);
    let_go.and(found).map_err(not_done)
}
