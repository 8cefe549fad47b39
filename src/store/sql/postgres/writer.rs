//! The connection that writes: a batch in two flights.
//!
//! The first begins the transaction, locks the head row and fetches; the second writes and commits.
//! In READ COMMITTED each statement sees what was committed when it begins, so what is fetched behind
//! the lock is what the lock protects.
//!
//! # When a commit is not answered
//!
//! Then it is found out whether it happened: every batch writes its number into this proxy's row of
//! the `writer` table. A new connection locks the head row. From the first flight on the old session
//! held that lock, so whoever has it now knows that the old transaction is over, one way or the other,
//! and the number tells which. Nothing is sent twice before that is known.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Error;
use tracing::{debug, info, warn};

use super::conn::{Conn, Flight, Param, Step};
use super::error::{Failure, certainly_not_committed, failure, not_done};
use super::prefetch;
use super::read::{all, no_head};
use super::schema::VERSION;
use super::server::Server;
use super::text::{NOW_MS_COLUMN, Sql, VERSION_COLUMN};
use super::turns::Turns;
use super::writes::{set_head, writes};
use crate::store::login::postgres::told;
use crate::store::sql::ahead::Ahead;
use crate::store::sql::backend::{Changes, Head, Next, Prefetch, Prefetched};
use crate::store::sql::rows::{Columns as _, head_of};
use crate::store::sql::tables::{DROP_WHITEOUTS, SWEEP_ENTRIES, version_complaint};
use crate::store::{Result, StoreError};
use crate::types::Revision;

/// How often a transaction is begun in all, when the database asks for a repetition or the
/// connection is lost before the commit.
const TRIES: u32 = 8;

/// The pause before a repetition grows by this.
const PAUSE: Duration = Duration::from_millis(5);

/// How long it is tried to find out what became of a commit.
const RESOLVE_WITHIN: Duration = Duration::from_secs(30);

/// How long one attempt at that may take: longer than the lock is waited for.
const LOOK_WITHIN: Duration = Duration::from_secs(20);

/// The connection that writes, and who writes.
pub(super) struct Writer {
    conn: Option<Arc<Conn>>,
    /// The batch that was begun behind the last one's commit.
    ahead: Option<Begins>,
    turns: Turns,
    /// Names this store, as it was opened here, in the `writer` table.
    id: String,
    /// The number of the last batch that was to be committed.
    batch: i64,
}

/// A batch that was begun ahead.
type Begins = Ahead<std::result::Result<Option<Begun>, Error>>;

/// What became of a try.
enum Tried<T> {
    Done(T),
    /// Nothing was written, and it may be tried again.
    Again(StoreError),
    /// The commit of this batch was sent and not answered.
    Unknown(String),
}

impl Writer {
    pub(super) fn new(conn: Conn) -> Self {
        Self {
            conn: Some(Arc::new(conn)),
            ahead: None,
            turns: Turns::default(),
            id: format!("{:032x}", rand::random::<u128>()),
            batch: 0,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// See [`crate::store::sql::backend::Backend::transact`].
    pub(super) async fn transact(
        &mut self,
        server: &Server,
        sql: &Arc<Sql>,
        notify: Option<&str>,
        want: &Arc<Prefetch>,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
        next: Next<'_>,
    ) -> Result<()> {
        // A batch that is tried again has none begun behind it.
        let mut next = Some(next);
        let mut tries = 0;
        loop {
            tries += 1;
            self.connect(server).await?;
            let attempt = self.attempt(sql, notify, want, decide, next.take());
            match attempt.await? {
                Tried::Done(()) => return Ok(()),
                Tried::Again(err) if tries < TRIES => {
                    debug!("a batch is tried again: {err}");
                    sleep(PAUSE * (1 << tries.min(6))).await;
                }
                Tried::Again(err) => return Err(err),
                Tried::Unknown(why) => {
                    if self.resolve(server, sql, &why).await? {
                        return Ok(());
                    }
                    if tries >= TRIES {
                        return Err(StoreError::Unavailable(format!(
                            "PostgreSQL: the connection was lost before the commit: {why}"
                        )));
                    }
                }
            }
        }
    }

    async fn connect(&mut self, server: &Server) -> Result<()> {
        if self.conn.as_ref().is_none_or(|conn| conn.is_closed()) {
            self.conn = None;
            self.ahead = None;
            self.conn = Some(Arc::new(server.connect().await?));
        }
        Ok(())
    }

    fn conn(&self) -> Result<Arc<Conn>> {
        let lost = || StoreError::Unavailable("there is no connection to write with".into());
        self.conn.clone().ok_or_else(lost)
    }

    async fn attempt(
        &mut self,
        sql: &Arc<Sql>,
        notify: Option<&str>,
        want: &Arc<Prefetch>,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
        next: Option<Next<'_>>,
    ) -> Result<Tried<()>> {
        let conn = self.conn()?;
        let ahead = self.ahead.take_if(|ahead| ahead.is_for(want));
        let is_ahead = ahead.is_some();
        let begun = if let Some(ahead) = ahead {
            ahead.found().await
        } else {
            self.give_up_ahead(&conn);
            begin(&conn, sql, want).await
        };
        let begun = match begun {
            Ok(Some(begun)) => begun,
            Ok(None) => {
                conn.send("ROLLBACK");
                return Err(no_head());
            }
            Err(err) => return self.gave_up(&err).await,
        };
        if let Some(complaint) = begun.complaint {
            conn.send("ROLLBACK");
            return Err(StoreError::Broken(format!("PostgreSQL: {complaint}")));
        }
        let before = begun.found.head;
        self.turns.began(is_ahead, &before);
        let changes = decide(begun.found);
        if changes.is_empty(&before) {
            conn.send("ROLLBACK");
            return Ok(Tried::Done(()));
        }
        let next = next.filter(|_| self.turns.keep());
        let written = self.write(&conn, sql, notify, &changes, next);
        let (committed, ahead) = written.await;
        match committed {
            Committed::Yes => {
                self.turns.leaves(changes.head);
                self.ahead = ahead;
                Ok(Tried::Done(()))
            }
            Committed::Unknown(why) => {
                self.conn = None;
                Ok(Tried::Unknown(why))
            }
            Committed::No(err) => self.gave_up(&err).await,
        }
    }

    /// The second flight: writes and commits. Begins the `next` batch behind it.
    async fn write(
        &mut self,
        conn: &Arc<Conn>,
        sql: &Arc<Sql>,
        notify: Option<&str>,
        changes: &Changes,
        next: Option<Next<'_>>,
    ) -> (Committed, Option<Begins>) {
        let mut steps = writes(sql, changes);
        self.batch += 1;
        steps.push(set_head(sql, &changes.head, &self.id, self.batch, notify));
        steps.push(Step::of("COMMIT"));
        match conn.prepare(&steps).await {
            Ok(flight) => {
                Ahead::behind(commit(flight), next, |want| {
                    let (conn, sql) = (conn.clone(), sql.clone());
                    async move { begin(&conn, &sql, &want).await }.boxed()
                })
                .await
            }
            Err(err) => (Committed::No(err), None),
        }
    }

    /// Ends what was begun ahead and is not wanted any more.
    fn give_up_ahead(&mut self, conn: &Conn) {
        if self.ahead.take().is_some() {
            conn.send("ROLLBACK");
        }
    }

    /// Ends a transaction that failed before its commit, for certain, and one that was begun behind it.
    async fn gave_up<T>(&mut self, err: &Error) -> Result<Tried<T>> {
        let why = not_done(err);
        match failure(err) {
            Failure::Lost => {
                self.conn = None;
                Ok(Tried::Again(why))
            }
            kind => {
                let conn = self.conn()?;
                if let Err(err) = conn.run("ROLLBACK").await {
                    // With the connection the transaction is gone as well.
                    debug!("cannot roll back: {}", told(&err));
                    self.conn = None;
                }
                match kind {
                    Failure::Again => Ok(Tried::Again(why)),
                    _ => Err(why),
                }
            }
        }
    }

    /// Finds out whether the last batch was committed.
    async fn resolve(&mut self, server: &Server, sql: &Sql, why: &str) -> Result<bool> {
        warn!("PostgreSQL did not answer a commit, looking whether it happened: {why}");
        let deadline = Instant::now() + RESOLVE_WITHIN;
        loop {
            let looked = timeout(LOOK_WITHIN, self.look(server, sql)).await;
            let silent = || StoreError::Unavailable(format!("no answer within {LOOK_WITHIN:?}"));
            match looked.unwrap_or_else(|_| Err(silent())) {
                Ok(committed) => {
                    info!(committed, "what became of the commit is known");
                    return Ok(committed);
                }
                Err(err) if Instant::now() < deadline => {
                    debug!("cannot look yet: {err}");
                    if let Some(conn) = self.conn.take() {
                        conn.end();
                    }
                    sleep(Duration::from_millis(100)).await;
                }
                Err(err) => {
                    return Err(StoreError::Unknown(format!(
                        "PostgreSQL did not answer a commit ({why}), and it cannot be found out \
                         whether it happened: {err}"
                    )));
                }
            }
        }
    }

    /// Whether the last batch was committed. Waits for the lock that the session which wrote it has.
    async fn look(&mut self, server: &Server, sql: &Sql) -> Result<bool> {
        self.connect(server).await?;
        let conn = self.conn()?;
        let steps = [
            Step::of("BEGIN"),
            Step::of(&sql.lock),
            Step::with(&sql.batch_of, vec![Box::new(&self.id)]),
            Step::of("COMMIT"),
        ];
        let looked = conn.flight(&steps).await.and_then(all);
        let answers = looked.map_err(|err| not_done(&err))?;
        let [_, head, batch, _] = &answers[..] else {
            return Err(no_head());
        };
        let told = |err: Error| not_done(&err);
        if head.is_empty() {
            return Err(no_head());
        }
        let batch = batch
            .first()
            .map_or(Ok(0), |row| row.int(0))
            .map_err(told)?;
        Ok(batch >= self.batch)
    }

    /// See [`crate::store::sql::backend::Backend::sweep`].
    pub(super) async fn sweep(
        &mut self,
        server: &Server,
        sql: &Sql,
        until: Revision,
    ) -> Result<Head> {
        let (head, _) = self.locked(server, sql, Chore::Sweep(until)).await?;
        Ok(head)
    }

    /// See [`crate::store::sql::backend::Backend::drop_whiteouts`].
    pub(super) async fn drop_whiteouts(&mut self, server: &Server, sql: &Sql) -> Result<bool> {
        match self.locked(server, sql, Chore::DropWhiteouts).await? {
            (head, _) if head.line.is_some() => Err(StoreError::StaleEpoch),
            (_, more) => Ok(more),
        }
    }

    /// Runs a chore in a transaction that has the head row locked.
    async fn locked(&mut self, server: &Server, sql: &Sql, chore: Chore) -> Result<(Head, bool)> {
        let mut tries = 0;
        loop {
            tries += 1;
            self.connect(server).await?;
            let conn = self.conn()?;
            self.give_up_ahead(&conn);
            match chore.run(&conn, sql).await {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => return Err(no_head()),
                Err(err) => match self.gave_up::<()>(&err).await? {
                    Tried::Again(_) if tries < TRIES => sleep(PAUSE).await,
                    _ => return Err(not_done(&err)),
                },
            }
        }
    }
}

/// What may be done twice: whether its commit is answered is all the same.
#[derive(Clone, Copy, Debug)]
enum Chore {
    Sweep(Revision),
    DropWhiteouts,
}

impl Chore {
    /// Answers the head row as it is then, and whether there may be more to do.
    async fn run(self, conn: &Conn, sql: &Sql) -> std::result::Result<Option<(Head, bool)>, Error> {
        let begin = [Step::of("BEGIN"), Step::of(&sql.lock)];
        let answers = all(conn.flight(&begin).await?)?;
        let Some(head) = answers.last().and_then(|rows| rows.first()) else {
            conn.send("ROLLBACK");
            return Ok(None);
        };
        let head = head_of(head)?;
        let done = match self {
            Self::Sweep(until) => (sweep(conn, sql, head, until).await?, false),
            Self::DropWhiteouts if head.line.is_some() => (head, false),
            Self::DropWhiteouts => {
                let step = Step::with(&sql.drop_whiteouts, vec![Box::new(DROP_WHITEOUTS)]);
                (head, !conn.query(step).await?.is_empty())
            }
        };
        conn.query(Step::of("COMMIT")).await?;
        Ok(Some(done))
    }
}

/// Deletes a piece of the history that was compacted.
async fn sweep(
    conn: &Conn,
    sql: &Sql,
    head: Head,
    until: Revision,
) -> std::result::Result<Head, Error> {
    let (swept, end) = (head.swept.0, head.sweep_end(until).0);
    let far: Vec<Param> = vec![Box::new(swept), Box::new(end), Box::new(SWEEP_ENTRIES)];
    let far = conn.query(Step::with(&sql.texts.sweep_until, far)).await?;
    let until = far.first().map_or(Ok(end), |row| row.int(0))?;
    let span = || -> Vec<Param> { vec![Box::new(swept), Box::new(until)] };
    let steps = [
        Step::with(&sql.sweep_superseded, span()),
        // Deletes at `until` itself stay until the next sweep, which begins with them.
        Step::with(&sql.sweep_deletes, span()),
        Step::with(&sql.texts.set_swept, vec![Box::new(until)]),
    ];
    all(conn.flight(&steps).await?)?;
    Ok(Head {
        swept: Revision(until),
        ..head
    })
}

/// What the first flight has found.
struct Begun {
    found: Prefetched,
    /// What is wrong with the tables, if anything is.
    complaint: Option<String>,
}

/// The first flight: begins, locks, fetches.
async fn begin(
    conn: &Conn,
    sql: &Sql,
    want: &Prefetch,
) -> std::result::Result<Option<Begun>, Error> {
    let mut steps = vec![Step::of("BEGIN"), Step::of(&sql.lock)];
    steps.extend(prefetch::steps(sql, want));
    let mut answers = all(conn.flight(&steps).await?)?;
    let fetched = answers.split_off(2);
    let locked = answers.pop().unwrap_or_default();
    let Some(head) = locked.first() else {
        return Ok(None);
    };
    // Somebody may have brought the tables to another version meanwhile.
    let complaint = version_complaint(head.int(VERSION_COLUMN)?, VERSION);
    let (head, now_ms) = (head_of(head)?, head.int(NOW_MS_COLUMN)?);
    let found = prefetch::found(sql, want, head, now_ms, fetched)?;
    Ok(Some(Begun { found, complaint }))
}

/// What became of a commit.
enum Committed {
    Yes,
    No(Error),
    Unknown(String),
}

/// What becomes of the second flight, which is sent when this is first polled.
async fn commit(flight: Flight<'_>) -> Committed {
    let all = flight.len();
    let mut answers = flight.answers().await;
    let is_sent = answers.len() == all;
    let commit = match answers.pop() {
        // The commit itself was not sent, behind a statement that could not be.
        Some(Err(err)) if !is_sent => return Committed::No(err),
        commit => commit,
    };
    // A statement that failed makes the commit a rollback, if that was answered at all.
    let failed = answers.into_iter().find_map(std::result::Result::err);
    match (commit, failed) {
        (Some(Ok(_)), None) => Committed::Yes,
        (Some(Ok(_)), Some(err)) => Committed::No(err),
        (Some(Err(err)), failed) if certainly_not_committed(&err) => {
            Committed::No(failed.unwrap_or(err))
        }
        (Some(Err(err)), _) => Committed::Unknown(told(&err)),
        (None, _) => Committed::Unknown("there was no answer".into()),
    }
}
