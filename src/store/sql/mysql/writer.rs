//! The connections that write.
//!
//! A batch takes two round trips: the head row is locked and what the batch needs is read with the
//! first, what it changes is written and committed with the second. Whoever holds the lock is the
//! only writer, so what was read stays true.
//!
//! There are two connections, which take turns: while a batch is committed on the one, the next one waits for
//! the lock on the other. It has it as soon as the server has let go of it, which is before it writes the
//! commit to the disk. Since the log is written in order, nothing is lost by that: a batch that saw a
//! commit is not on the disk before it.
//!
//! # When a commit is not answered
//!
//! Then it may have happened, and nobody guesses. In the transaction of every batch is its number, in
//! the row of this process. The head row is locked again: whatever became of the old connection, the
//! server has ended its transaction by then. Then the number tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Db;
use super::durable::Began;
use super::error::Failure;
use super::script::{Script, Scripts};
use super::session::{Purpose, Session};
use super::write::{Mark, write};
use super::{fetch, text};
use crate::store::sql::ahead::Ahead;
use crate::store::sql::backend::{Changes, Commit, Head, Next, Prefetch, Prefetched};
use crate::store::sql::rows::Columns as _;
use crate::store::sql::tables::{DROP_WHITEOUTS, SWEEP_ENTRIES, log_kind};
use crate::store::{Result, StoreError};
use crate::types::Revision;

/// How long a batch is tried again that certainly did not happen.
const TRY_WITHIN: Duration = Duration::from_secs(20);

/// How long the outcome of a commit is looked for. More than it takes a server to notice that the
/// old connection is silent.
const LOOK_WITHIN: Duration = Duration::from_secs(40);

/// How long a script may take; waiting for the lock is the longest part.
const SCRIPT_WITHIN: Duration = Duration::from_secs(30);

/// Rows that the search for whiteouts passes in one step.
const PASS_ROWS: i64 = 20_000;

/// How long a server is not asked again for a second connection that it did not give.
const ALONE: Duration = Duration::from_secs(10);

/// Before a batch is tried again.
const PAUSE: Duration = Duration::from_millis(5);

/// The connections that write, and who we are there.
pub(super) struct Writer {
    /// Those on which nothing is under way.
    idle: Vec<Session>,
    /// The batch that was begun on another one while the last was being committed, if there was another one.
    ahead: Option<Ahead<Option<Begun>>>,
    /// Until then there is no other one.
    alone_until: Instant,
    mark: Mark,
    /// Where the search for whiteouts goes on.
    whiteouts_from: Bytes,
}

/// Why an attempt did not succeed. It did not happen.
enum Missed {
    /// The server was in the way: another attempt may succeed.
    Again(Failure),
    /// Another attempt would fail alike, or it is not known whether it happened.
    Failed(StoreError),
}

/// A batch of which the first round trip was made.
struct Begun {
    /// Where it is under way. The transaction is open, if that is possible after a failure.
    session: Session,
    /// When the read began.
    began: Began,
    found: Result<Prefetched, Failure>,
}

impl Writer {
    pub(super) fn new(session: Session, process: i64) -> Self {
        Self {
            idle: vec![session],
            ahead: None,
            alone_until: Instant::now(),
            mark: Mark { process, batch: 0 },
            whiteouts_from: Bytes::new(),
        }
    }

    /// See [`crate::store::sql::backend::Backend::transact`].
    pub(super) async fn transact(
        &mut self,
        db: &Arc<Db>,
        want: &Arc<Prefetch>,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
        next: Next<'_>,
    ) -> Result<()> {
        let deadline = Instant::now() + TRY_WITHIN;
        // A batch that is tried again has none begun behind it.
        let mut next = Some(next);
        loop {
            let attempt = self.attempt(db, want, decide, next.take(), deadline);
            match attempt.await {
                Ok(()) => return Ok(()),
                Err(Missed::Failed(err)) => return Err(err),
                Err(Missed::Again(failure)) if Instant::now() + PAUSE < deadline => {
                    warn!("{}: a batch is tried again: {failure}", db.server.place());
                    sleep(PAUSE).await;
                }
                Err(Missed::Again(failure)) => return Err(failure.not_done(db.server.place())),
            }
        }
    }

    async fn attempt(
        &mut self,
        db: &Arc<Db>,
        want: &Arc<Prefetch>,
        decide: &mut (dyn FnMut(Prefetched) -> Changes + Send),
        next: Option<Next<'_>>,
        deadline: Instant,
    ) -> Result<(), Missed> {
        let Begun {
            mut session,
            began,
            found,
        } = self.begun(db, want, deadline).await?;
        let found = match found {
            Ok(found) => found,
            Err(failure) => return Err(self.undo(db, session, failure).await),
        };
        let before = found.head;
        let changes = decide(found);
        if changes.is_empty(&before) {
            // Undoing nothing cannot fail in a way that matters.
            self.roll_back(session, None).await;
            // The answers tell what was read, be it only how far the store is.
            return match db.durable.settle(db, before.commit(), began).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(Missed::Again(Failure::Lost(
                    "the server was started anew".into(),
                ))),
                Err(err) => Err(Missed::Failed(err)),
            };
        }
        self.mark.batch += 1;
        let scripts = write(&db.prefix, &changes, &before, self.mark, db.packet_full);
        let (last, first) = scripts.split_last().ok_or_else(|| {
            Missed::Failed(StoreError::Broken("there is nothing to commit".into()))
        })?;
        if let Err(failure) = session.run_all(first, SCRIPT_WITHIN).await {
            return Err(self.undo(db, session, failure).await);
        }
        db.durable.pending(changes.head.commit());
        let commit = session.run(last, SCRIPT_WITHIN);
        let next = next.filter(|_| Instant::now() >= self.alone_until);
        let (committed, ahead) = Ahead::behind(commit, next, |want| {
            let (db, idle) = (db.clone(), self.idle(db));
            let begun = async move {
                let session = match idle {
                    Some(session) => session,
                    None => db.server.connect(Purpose::Write).await.ok()?,
                };
                Some(begin(&db, session, &want).await)
            };
            begun.boxed()
        })
        .await;
        self.ahead = ahead;
        match committed {
            Ok(_) => {
                db.durable.reached(changes.head.commit(), session.since());
                self.idle.push(session);
                Ok(())
            }
            Err(failure) => {
                db.durable.given_up();
                self.find_out(db, session, failure).await
            }
        }
    }

    /// The first round trip of a batch: made ahead, or now.
    async fn begun(
        &mut self,
        db: &Db,
        want: &Arc<Prefetch>,
        deadline: Instant,
    ) -> Result<Begun, Missed> {
        if let Some(ahead) = self.ahead.take_if(|ahead| ahead.is_for(want)) {
            if let Some(begun) = ahead.found().await {
                return Ok(begun);
            }
            self.alone_until = Instant::now() + ALONE;
        }
        let session = self.session(db, deadline).await?;
        Ok(begin(db, session, want).await)
    }

    /// A connection on which nothing is under way, if there is one that can be used.
    fn idle(&mut self, db: &Db) -> Option<Session> {
        self.idle.retain(|session| !db.server.has_ended(session));
        self.idle.pop()
    }

    /// The same; another one if there is none. Nothing else of this writer is under way behind it.
    async fn session(&mut self, db: &Db, deadline: Instant) -> Result<Session, Missed> {
        self.give_up_ahead().await;
        if let Some(session) = self.idle(db) {
            return Ok(session);
        }
        let reached = db.server.reach(Purpose::Write, deadline).await;
        reached.map_err(|failure| Missed::Failed(failure.not_done(db.server.place())))
    }

    /// Undoes what was begun ahead and is not wanted any more, or would be in the way.
    async fn give_up_ahead(&mut self) {
        let Some(ahead) = self.ahead.take() else {
            return;
        };
        if let Some(Begun { session, found, .. }) = ahead.found().await {
            self.roll_back(session, found.err().as_ref()).await;
        }
    }

    /// Undoes what is under way on a connection on which this may have failed. Only one that has undone it
    /// goes on; with any other the server does it.
    async fn roll_back(&mut self, mut session: Session, failure: Option<&Failure>) {
        if failure.is_none_or(Failure::keeps_connection)
            && session.roll_back(SCRIPT_WITHIN).await.is_ok()
        {
            self.idle.push(session);
        }
    }

    /// The same, of a batch; a server that is read-only is left.
    async fn fall_back(&mut self, db: &Db, session: Session, failure: &Failure) {
        if failure.is_read_only() {
            db.server.leave();
        }
        self.roll_back(session, Some(failure)).await;
    }

    /// Undoes a transaction of which nothing was committed.
    async fn undo(&mut self, db: &Db, session: Session, failure: Failure) -> Missed {
        self.fall_back(db, session, &failure).await;
        missed(db, failure)
    }

    /// After a commit that failed or was not answered: looks whether it happened.
    async fn find_out(
        &mut self,
        db: &Db,
        session: Session,
        failure: Failure,
    ) -> Result<(), Missed> {
        self.fall_back(db, session, &failure).await;
        let place = db.server.place();
        warn!("{place}: looking whether a batch was committed: {failure}");
        let deadline = Instant::now() + LOOK_WITHIN;
        loop {
            let began = db.durable.begin();
            let looked = self.look(db, deadline).await;
            match looked {
                // What was seen is not on the disk for that: the server may go down yet.
                Ok(Some(commit)) => match db.durable.settle(db, commit, began).await {
                    Ok(true) => {
                        info!("{place}: the batch was committed");
                        return Ok(());
                    }
                    Err(err) if Instant::now() > deadline => {
                        return Err(Missed::Failed(StoreError::Unknown(err.to_string())));
                    }
                    Ok(false) | Err(_) => sleep(PAUSE).await,
                },
                Ok(None) => {
                    info!("{place}: the batch was not committed");
                    return Err(missed(db, failure));
                }
                Err(err) if err.is_transient() && Instant::now() + PAUSE < deadline => {
                    sleep(PAUSE).await;
                }
                Err(err) => {
                    return Err(Missed::Failed(StoreError::Unknown(format!(
                        "{place}: a commit was not answered ({failure}), and nobody can be asked \
                         whether it happened: {err}"
                    ))));
                }
            }
        }
    }

    /// Whether the batch of the last number was committed: the store's last commit if so.
    async fn look(&mut self, db: &Db, deadline: Instant) -> Result<Option<Commit>, Failure> {
        // A batch that was begun ahead would hold the lock against it.
        self.give_up_ahead().await;
        let mut session = match self.idle(db) {
            Some(session) => session,
            None => db.server.reach(Purpose::Write, deadline).await?,
        };
        let p = &db.prefix;
        let mut scripts = db.locking();
        let script = scripts.next(&format!("SELECT batch FROM {p}process WHERE id = "));
        script.int(self.mark.process);
        scripts.next("ROLLBACK");
        let mut sets = session.run_all(&scripts.finish(), SCRIPT_WITHIN).await?;
        self.idle.push(session);
        let (head, _) = fetch::take_locked(&mut sets)?;
        // No row: it never wrote before, and did not this time.
        let batch = sets.first()?.map_or(Ok(0), |row| row.int(0))?;
        Ok((batch == self.mark.batch).then_some(head.commit()))
    }

    /// See [`crate::store::sql::backend::Backend::sweep`].
    pub(super) async fn sweep(&mut self, db: &Db, until: Revision) -> Result<Head> {
        let p = &db.prefix;
        let mut scripts = db.locking();
        let far = scripts.next(&format!(
            "SELECT l.revision FROM {p}head h JOIN {p}log l FORCE INDEX (PRIMARY) \
             ON l.revision > h.swept AND l.revision <= h.compacted WHERE h.one = 1 AND l.revision <= "
        ));
        far.int(until.0);
        far.say(&format!(
            " ORDER BY l.revision LIMIT 1 OFFSET {SWEEP_ENTRIES}"
        ));
        let reads = scripts.finish();
        self.tidy(db, async |session: &mut Session| {
            let mut sets = session.run_all(&reads, SCRIPT_WITHIN).await?;
            let (head, _) = fetch::take_locked(&mut sets)?;
            let (swept, far) = (head.swept, sets.first()?);
            let until = far.map_or(Ok(head.sweep_end(until).0), |row| row.int(0))?;
            let mut script = Script::of(&format!(
                "DELETE p FROM {p}log l STRAIGHT_JOIN {p}log p FORCE INDEX (PRIMARY) \
                 ON p.revision = l.prev_revision AND p.hash = l.hash AND p.`key` = l.`key` WHERE l.prev_revision > 0 AND l.revision > "
            ));
            script.int(swept.0).say(" AND l.revision <= ").int(until);
            // Deletes at `until` itself stay until the next sweep, which begins with them.
            script.next(&format!("DELETE FROM {p}log WHERE revision >= "));
            script.int(swept.0).say(" AND revision < ").int(until);
            script.say(" AND kind IN (").int(log_kind::DELETE);
            script.say(", ").int(log_kind::BRIEF).say(")");
            script.next(&format!("UPDATE {p}head SET swept = ")).int(until);
            script.say(" WHERE one = 1").next("COMMIT");
            session.run(&script, SCRIPT_WITHIN).await?;
            Ok(Head {
                swept: Revision(until),
                ..head
            })
        })
        .await
    }

    /// See [`crate::store::sql::backend::Backend::drop_whiteouts`].
    pub(super) async fn drop_whiteouts(&mut self, db: &Db) -> Result<bool> {
        let p = &db.prefix;
        // The search goes on where it stopped, or it would pass by all that is live each time.
        let from = std::mem::take(&mut self.whiteouts_from);
        let done = self.tidy(db, async |session: &mut Session| {
            // Nothing is locked while they are looked for: most of what is passed is live.
            let mut far = Script::of(&format!(
                "SELECT `key` FROM {p}kv FORCE INDEX (PRIMARY) WHERE `key` >= "
            ));
            far.bytes(&from).say(" ORDER BY `key` LIMIT 1 OFFSET ");
            far.int(PASS_ROWS);
            let far = session.run(&far, SCRIPT_WITHIN).await?.first()?;
            let far = far.map(|row| row.bytes(0)).transpose()?;
            let mut some = Script::of(&format!(
                "SELECT `key` FROM {p}kv FORCE INDEX (PRIMARY) WHERE live = 0 AND `key` >= "
            ));
            some.bytes(&from);
            if let Some(far) = &far {
                some.say(" AND `key` < ").bytes(far);
            }
            some.say(" ORDER BY `key` LIMIT ").int(DROP_WHITEOUTS);
            let mut keys = Vec::new();
            let mut sets = session.run(&some, SCRIPT_WITHIN).await?;
            fetch::read_into(&mut keys, &mut sets, |row| row.bytes(0))?;

            let locking = db.locking().finish();
            let mut sets = session.run_all(&locking, SCRIPT_WITHIN).await?;
            let (head, _) = fetch::take_locked(&mut sets)?;
            let mut scripts = Scripts::new(db.packet_full);
            if head.line.is_none() {
                for keys in keys.chunks(text::TOGETHER) {
                    let script =
                        scripts.next(&format!("DELETE FROM {p}kv WHERE live = 0 AND `key` IN ("));
                    fetch::list_keys(script, keys);
                }
            }
            scripts.next("COMMIT");
            session.run_all(&scripts.finish(), SCRIPT_WITHIN).await?;
            let is_full = i64::try_from(keys.len()).is_ok_and(|found| found >= DROP_WHITEOUTS);
            let next = if is_full { keys.pop() } else { far };
            Ok(head.line.is_none().then_some(next))
        });
        let next = done.await?.ok_or(StoreError::StaleEpoch)?;
        self.whiteouts_from = next.clone().unwrap_or_default();
        Ok(next.is_some())
    }

    /// Does what may be done twice, so that it needs no number.
    async fn tidy<T>(
        &mut self,
        db: &Db,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, Failure>,
    ) -> Result<T> {
        let deadline = Instant::now() + TRY_WITHIN;
        let mut session = match self.session(db, deadline).await {
            Ok(session) => session,
            Err(Missed::Failed(err)) => return Err(err),
            Err(Missed::Again(failure)) => return Err(failure.not_done(db.server.place())),
        };
        match work(&mut session).await {
            Ok(done) => {
                self.idle.push(session);
                Ok(done)
            }
            Err(failure) => match self.undo(db, session, failure).await {
                Missed::Again(failure) => Err(failure.not_done(db.server.place())),
                Missed::Failed(err) => Err(err),
            },
        }
    }
}

/// Makes the first round trip of a batch.
async fn begin(db: &Db, mut session: Session, want: &Prefetch) -> Begun {
    let mut scripts = db.locking();
    fetch::ask(&mut scripts, &db.prefix, want);
    let began = db.durable.begin();
    let found = async {
        let mut sets = session.run_all(&scripts.finish(), SCRIPT_WITHIN).await?;
        let (head, now_ms) = fetch::take_locked(&mut sets)?;
        fetch::take_prefetched(&mut sets, want, head, now_ms)
    };
    let found = found.await;
    Begun {
        session,
        began,
        found,
    }
}

/// What it means that an attempt failed which certainly did not happen.
fn missed(db: &Db, failure: Failure) -> Missed {
    if failure.is_transient() {
        Missed::Again(failure)
    } else {
        Missed::Failed(failure.not_done(db.server.place()))
    }
}
