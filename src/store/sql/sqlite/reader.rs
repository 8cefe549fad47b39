//! The connections that read: a few threads that share a queue.
//!
//! In WAL mode a read sees one snapshot and never waits for the writer. Small reads that wait
//! together are served from one snapshot, which saves each its own begin, head row and end.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};
use tracing::debug;

use super::clock::Clock;
use super::error::not_done;
use super::fetch;
use super::schema::Sql;
use crate::store::sql::backend::{Found, Query, Read, Snapshot};
use crate::store::{Result, StoreError};
use crate::types::KeyRange;

/// Reads that wait, at most; more wait for room.
const QUEUE_LEN: usize = 1024;

/// Small reads that are served from one snapshot, at most.
const TOGETHER: usize = 32;

/// The way to the reader threads. They end when it is closed.
pub(super) struct Readers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    waiting: Condvar,
    room: Semaphore,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Job {
    snapshot: Snapshot,
    reply: oneshot::Sender<Result<Read>>,
}

impl Readers {
    /// Starts a thread per connection.
    pub(super) fn start(
        conns: Vec<Connection>,
        sql: &Arc<Sql>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let readers = Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                waiting: Condvar::new(),
                room: Semaphore::new(QUEUE_LEN),
            }),
        };
        for conn in conns {
            let (shared, sql) = (readers.shared.clone(), sql.clone());
            std::thread::Builder::new()
                .name("sqlite reader".into())
                .spawn(move || {
                    while let Some(jobs) = shared.next() {
                        serve(&conn, &sql, clock, jobs);
                    }
                    debug!("a reader has ended");
                })?;
        }
        Ok(readers)
    }

    /// See [`crate::store::sql::backend::Backend::read`].
    pub(super) async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        let closed = || StoreError::Unavailable("the store is closed".into());
        let room = self.shared.room.acquire().await.map_err(|_| closed())?;
        // The thread that takes the job gives the room back.
        room.forget();
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            if state.closed {
                return Err(closed());
            }
            state.jobs.push_back(Job { snapshot, reply });
        }
        self.shared.waiting.notify_one();
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.jobs.clear();
        self.shared.room.close();
        self.shared.waiting.notify_all();
    }
}

impl Shared {
    /// Nothing panics under this lock, so a poisoned one is good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work: one read, or several small ones. Nothing when the readers are closed.
    fn next(&self) -> Option<Vec<Job>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(first) = state.jobs.pop_front() {
                let small = first.snapshot.is_small();
                let mut jobs = vec![first];
                while small
                    && jobs.len() < TOGETHER
                    && let Some(job) = state.jobs.pop_front_if(|job| job.snapshot.is_small())
                {
                    jobs.push(job);
                }
                self.room.add_permits(jobs.len());
                return Some(jobs);
            }
            state = self
                .waiting
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Snapshot {
    /// Whether it reads so little that others can wait for it.
    fn is_small(&self) -> bool {
        self.queries.len() <= 4
            && self.queries.iter().all(|query| match query {
                Query::Rows(rows) => {
                    let one = |part: &KeyRange| matches!(part, KeyRange::One(_));
                    rows.parts.iter().all(one)
                        || rows.limit.is_some_and(|limit| limit <= 16) && !rows.count
                }
                Query::Lease { keys, .. } => !keys,
                _ => false,
            })
    }
}

/// Serves all of `jobs` from one snapshot. Each was asked for before the snapshot was taken.
fn serve(conn: &Connection, sql: &Sql, clock: Clock, jobs: Vec<Job>) {
    let run = |text: &str| conn.prepare_cached(text)?.execute([]);
    let head = run("BEGIN").and_then(|_| fetch::head(conn, sql));
    match head {
        Ok(head) => {
            for Job { snapshot, reply } in jobs {
                if reply.is_closed() {
                    continue;
                }
                let now_ms = clock.now_ms();
                let found = snapshot.admit(&head).and_then(|()| {
                    let queries = snapshot.queries.iter();
                    queries
                        .map(|query| fetch::query(conn, sql, &snapshot, query, &head, now_ms))
                        .collect::<rusqlite::Result<Vec<Found>>>()
                        .map_err(not_done)
                });
                let read = found.map(|found| Read {
                    head,
                    now_ms,
                    found,
                });
                // Whoever asked and went away needs no answer.
                reply.send(read).ok();
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
        && let Err(err) = run("ROLLBACK")
    {
        tracing::error!("a reader cannot end its snapshot: {err}");
    }
}
