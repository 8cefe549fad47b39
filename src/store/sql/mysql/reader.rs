//! The connections that read: a few tasks, each with a connection of its own.
//!
//! A snapshot is one script, so one round trip: begin, head row, data, end. Reads of single keys that
//! wait together are one script too: they share a lane of their own, and while one script is on its
//! way the next one gathers. Everything else goes by other lanes, of which large reads never have all:
//! no short read waits for a long one.
//!
//! A read whose connection breaks is read again on another one. One that nobody waits for any more is ended,
//! and with it its connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tracing::debug;

use super::Db;
use super::error::Failure;
use super::fetch::{ask_rows, list_keys, take_head, take_head_and_rows, take_rows};
use super::query::Reading;
use super::script::{Script, Scripts};
use super::session::{Purpose, READ_S, Session};
use super::text;
use crate::store::sql::backend::{Found, Query, Read, Row, Rows, Snapshot};
use crate::store::sql::rows::Taken;
use crate::store::{Result, StoreError};
use crate::tasks::spawn_owned;
use crate::types::KeyRange;

/// Connections for reads of single keys: while the server is busy with one script, another one is
/// put together or taken apart.
const POINT_LANES: usize = 2;

/// Connections for all other reads.
const RANGE_LANES: usize = 6;

/// Large reads at a time, at most: one fewer than there are connections, so that small ones always find one.
const LARGE_MAX: usize = RANGE_LANES - 1;

/// Reads of single keys in one script, at most.
const TOGETHER: usize = 128;

/// Keys that are read in the statement that reads the head row, at most. It takes half as long as a
/// transaction of four statements; with more keys its answer is long with repetitions.
const BESIDE_HEAD: usize = 4;

/// Reads that wait, at most; more wait for room.
const QUEUE_LEN: usize = 1024;

/// How long a read is tried while the server cannot be reached.
const TRY_WITHIN: Duration = Duration::from_secs(10);

/// How long a script may take: a bit more than the server allows each statement.
const SCRIPT_WITHIN: Duration = Duration::from_secs(READ_S + 5);

/// Attempts at a read that breaks its connection.
const TRIES: usize = 3;

const BEGIN: &str = "START TRANSACTION WITH CONSISTENT SNAPSHOT";

/// The way to the tasks that read. They end when it is dropped.
pub(super) struct Readers {
    points: mpsc::Sender<Job>,
    ranges: mpsc::Sender<Job>,
    /// Large reads have one each.
    large: Semaphore,
}

struct Job {
    snapshot: Snapshot,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Read>>;

type Queue = Arc<Mutex<mpsc::Receiver<Job>>>;

impl Readers {
    /// Starts the tasks. They connect when there is something to read.
    pub(super) fn start(db: &Arc<Db>) -> Self {
        let lanes = |count: usize, together: usize| {
            let (sender, receiver) = mpsc::channel(QUEUE_LEN);
            let queue: Queue = Arc::new(Mutex::new(receiver));
            for _ in 0..count {
                let lane = Lane {
                    db: db.clone(),
                    session: None,
                };
                // Ends with the queue.
                spawn_owned(lane.run(queue.clone(), together));
            }
            sender
        };
        Self {
            points: lanes(POINT_LANES, TOGETHER),
            ranges: lanes(RANGE_LANES, 1),
            large: Semaphore::new(LARGE_MAX),
        }
    }

    /// See [`crate::store::sql::backend::Backend::read`].
    pub(super) async fn read(&self, snapshot: Snapshot) -> Result<Read> {
        let closed = || StoreError::Unavailable("the store is closed".into());
        let points = is_points(&snapshot);
        let queue = if points { &self.points } else { &self.ranges };
        let _permit = if points || snapshot.is_small() {
            None
        } else {
            Some(self.large.acquire().await.map_err(|_| closed())?)
        };
        let (reply, answer) = oneshot::channel();
        let job = Job { snapshot, reply };
        queue.send(job).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

/// Whether it is about the latest state of single keys only.
fn is_points(snapshot: &Snapshot) -> bool {
    let is_one = |part: &KeyRange| matches!(part, KeyRange::One(_));
    let mut queries = snapshot.queries.iter();
    snapshot.at.is_none()
        && queries.all(|query| matches!(query, Query::Rows(rows) if rows.parts.iter().all(is_one)))
}

/// One connection, and what is asked of it.
struct Lane {
    db: Arc<Db>,
    session: Option<Session>,
}

impl Lane {
    async fn run(mut self, queue: Queue, together: usize) {
        loop {
            let mut jobs = Vec::new();
            {
                let mut queue = queue.lock().await;
                let Some(first) = queue.recv().await else {
                    break;
                };
                jobs.push(first);
                while jobs.len() < together
                    && let Ok(next) = queue.try_recv()
                {
                    jobs.push(next);
                }
            }
            let (snapshots, replies) = jobs
                .into_iter()
                .filter(|job| !job.reply.is_closed())
                .map(|job| (job.snapshot, job.reply))
                .unzip();
            self.serve(snapshots, replies, together > 1).await;
        }
        debug!("a reader has ended");
    }

    /// Reads for all who wait, until it is done or none of them waits any more.
    async fn serve(&mut self, snapshots: Vec<Snapshot>, mut replies: Vec<Reply>, points: bool) {
        let all_gone = async {
            for reply in &mut replies {
                reply.closed().await;
            }
        };
        let answers = tokio::select! {
            biased;
            () = all_gone => return,
            answers = self.read(&snapshots, points) => answers,
        };
        match answers {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // Whoever asked and went away needs no answer, here and below.
                    reply.send(answer).ok();
                }
            }
            Err(failure) => {
                let err = failure.not_done(self.db.server.place());
                for reply in replies {
                    reply.send(Err(err.clone())).ok();
                }
            }
        }
    }

    async fn read(
        &mut self,
        snapshots: &[Snapshot],
        points: bool,
    ) -> Result<Vec<Result<Read>>, Failure> {
        let deadline = Instant::now() + TRY_WITHIN;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.attempt(snapshots, points, deadline).await {
                Err(Failure::Lost(why)) if tries < TRIES && Instant::now() < deadline => {
                    debug!("a read is tried again: {why}");
                }
                answers => return answers,
            }
        }
    }

    async fn attempt(
        &mut self,
        snapshots: &[Snapshot],
        points: bool,
        deadline: Instant,
    ) -> Result<Vec<Result<Read>>, Failure> {
        let mut session = match self.session.take() {
            Some(session) if !self.db.server.is_left(&session) => session,
            _ => self.db.server.reach(Purpose::Read, deadline).await?,
        };
        let done = if points {
            read_points(&self.db, &mut session, snapshots).await
        } else {
            let mut answers = Vec::with_capacity(snapshots.len());
            for snapshot in snapshots {
                answers.push(read_snapshot(&self.db, &mut session, snapshot).await?);
            }
            Ok(answers)
        };
        let good = match &done {
            Ok(_) => true,
            Err(Failure::Lost(_)) => false,
            // The transaction may be open.
            Err(_) => session.roll_back(SCRIPT_WITHIN).await.is_ok(),
        };
        if good {
            self.session = Some(session);
        }
        done
    }
}

/// Reads single keys for all of `snapshots` from one. Each was asked for before it was taken.
async fn read_points(
    db: &Db,
    session: &mut Session,
    snapshots: &[Snapshot],
) -> Result<Vec<Result<Read>>, Failure> {
    let mut keys: Vec<Bytes> = snapshots
        .iter()
        .flat_map(|snapshot| &snapshot.queries)
        .filter_map(|query| match query {
            Query::Rows(rows) => Some(&rows.parts),
            _ => None,
        })
        .flatten()
        .map(|part| part.start().clone())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let (head, now_ms, rows) = if keys.len() <= BESIDE_HEAD {
        let mut script = Script::of(&text::head_beside_rows(&db.prefix));
        match keys.as_slice() {
            [] => script.say("NULL)"),
            keys => list_keys(&mut script, keys),
        };
        take_head_and_rows(&mut session.run(&script, SCRIPT_WITHIN).await?)?
    } else {
        let mut scripts = db.reading();
        ask_rows(&mut scripts, &db.prefix, &keys);
        scripts.next("COMMIT");
        let mut sets = session.run_all(&scripts.finish(), SCRIPT_WITHIN).await?;
        let (head, now_ms) = take_head(&mut sets)?;
        (head, now_ms, take_rows(&mut sets, &keys)?)
    };
    let rows: HashMap<Bytes, Row> = rows
        .into_iter()
        .map(|row| (row.kv.key.clone(), row))
        .collect();
    let answers = snapshots.iter().map(|snapshot| {
        snapshot.admit(&head)?;
        let found = snapshot.queries.iter().map(|query| match query {
            Query::Rows(want) => chosen(want, &rows),
            _ => Found::Any(false),
        });
        Ok(Read {
            head,
            now_ms,
            found: found.collect(),
        })
    });
    Ok(answers.collect())
}

/// What a query for single keys finds among rows.
fn chosen(want: &Rows, rows: &HashMap<Bytes, Row>) -> Found {
    let mut taken = Taken::new(want);
    let mut count = 0;
    for part in &want.parts {
        let Some(row) = rows.get(part.start()) else {
            continue;
        };
        count += usize::from(want.count && row.live);
        if !taken.is_full() && (row.live || want.whiteouts) {
            let with_value = taken.values > 0;
            taken.take(row.clone(), with_value);
        }
    }
    Found::Rows {
        rows: taken.rows,
        count,
    }
}

/// Reads all else.
async fn read_snapshot(
    db: &Db,
    session: &mut Session,
    snapshot: &Snapshot,
) -> Result<Result<Read>, Failure> {
    if let Some(read) = read_once(db, session, snapshot).await? {
        return Ok(read);
    }
    let read = read_once(db, session, &snapshot.without_beliefs()).await?;
    read.ok_or_else(|| Failure::Odd("a read has no end".into()))
}

/// Reads a snapshot; nothing if something that was believed to be known about it was wrong.
async fn read_once(
    db: &Db,
    session: &mut Session,
    snapshot: &Snapshot,
) -> Result<Option<Result<Read>>, Failure> {
    let mut reading = Reading::new(snapshot);
    let open = !reading.is_one_round();
    let mut scripts = db.reading();
    reading.ask(&mut scripts, &db.prefix);
    if !open {
        scripts.next("COMMIT");
    }
    let mut sets = session.run_all(&scripts.finish(), SCRIPT_WITHIN).await?;
    let (head, now_ms) = take_head(&mut sets)?;
    let admitted = snapshot.admit(&head);
    if admitted.is_ok() {
        reading.take(&mut sets, &head, now_ms)?;
        while !reading.is_done() {
            let mut scripts = Scripts::new(db.packet_full);
            reading.ask(&mut scripts, &db.prefix);
            let mut sets = session.run_all(&scripts.finish(), SCRIPT_WITHIN).await?;
            reading.take(&mut sets, &head, now_ms)?;
        }
    }
    if open {
        session.roll_back(SCRIPT_WITHIN).await?;
    }
    if let Err(err) = admitted {
        return Ok(Some(Err(err)));
    }
    let found = reading.finish(&head);
    Ok(found.map(|found| {
        Ok(Read {
            head,
            now_ms,
            found,
        })
    }))
}

impl Db {
    /// Begins a snapshot, with the head row in it.
    fn reading(&self) -> Scripts {
        let mut scripts = Scripts::new(self.packet_full);
        scripts.next(BEGIN);
        scripts.next(&text::head(&self.prefix));
        scripts
    }
}
