//! What was read is on the disk before anybody hears of it.
//!
//! InnoDB shows a commit to others before it has written it to the disk: the log is synced when the
//! locks are gone already. A read in between sees what a crash of the server would undo: revisions would
//! go back for a client, and a member would build on copies and records that are not there any more.
//! So what was read is told only when the commit that it shows is known to be durable: once it was
//! answered, or a later one, if it is of this process; and if another process made it, once a small
//! commit of our own was answered that began afterwards. The log is written in order, so that one takes
//! all earlier ones with it.
//!
//! A commit that was answered proves this only for the run of the server that the read was of: after a
//! crash one with the same numbers may be another change. So it counts only if its connection had been there
//! before the read began; if there is no such one, the read is made again.
//!
//! Readers that wait for the same go together. A proxy that is alone on its database never has to
//! commit for a read.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};
use tracing::debug;

use super::Db;
use super::error::Failure;
use super::script::Script;
use super::session::{Purpose, Session};
use super::write::{Mark, note};
use crate::store::Result;
use crate::store::gather::Gather;
use crate::store::sql::backend::Commit;
use crate::types::Revision;

/// How long the small commit may take, and how long the server is tried to be reached for it.
const WITHIN: Duration = Duration::from_secs(10);

/// Readers that wait for one commit at most.
const TOGETHER_MAX: usize = 1024;

/// How far it is known that commits are durable.
pub(super) struct Durable {
    reached: watch::Sender<Reached>,
    gather: Gather<(Commit, Began), Result<bool>>,
    own: Mutex<Own>,
}

#[derive(Clone, Copy, Debug)]
struct Reached {
    /// Everything up to here is on the disk.
    durable: Commit,
    /// Since when the connection has been there that proved it last.
    since: Instant,
    /// The commit of this process that is under way goes up to here; else the same as `durable`.
    pending: Commit,
}

/// What was known when a read began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Began {
    at: Instant,
    durable: Commit,
}

/// The connection for small commits.
struct Own {
    session: Option<Session>,
    mark: Mark,
}

impl Durable {
    /// `process` is the number under which the writer notes its batches.
    pub(super) fn new(process: i64) -> Self {
        let nothing = Reached {
            durable: Commit::default(),
            since: Instant::now(),
            pending: Commit::default(),
        };
        Self {
            reached: watch::Sender::new(nothing),
            gather: Gather::new(TOGETHER_MAX),
            own: Mutex::new(Own {
                session: None,
                mark: Mark {
                    // Beside the writer's, which is not negative.
                    process: -1 - process,
                    batch: 0,
                },
            }),
        }
    }

    /// To be asked before a read that [`Self::settle`] is to judge.
    pub(super) fn begin(&self) -> Began {
        Began {
            at: Instant::now(),
            durable: self.reached.borrow().durable,
        }
    }

    /// This commit of this process goes out.
    pub(super) fn pending(&self, commit: Commit) {
        self.reached.send_modify(|reached| {
            reached.pending = reached.pending.max(commit);
        });
    }

    /// A commit was answered on a connection that has been there since `since`, and with it all before.
    pub(super) fn reached(&self, commit: Commit, since: Instant) {
        self.reached.send_modify(|reached| {
            // The answer to an earlier commit that comes late proves nothing for a later one.
            if commit >= reached.durable {
                reached.durable = commit;
                reached.since = since;
            }
            reached.pending = reached.pending.max(reached.durable);
        });
    }

    /// Whether a commit of this process that goes up to `revision` or beyond is under way, and `revision` is not
    /// known to be durable.
    pub(super) fn is_pending(&self, revision: Revision) -> bool {
        let reached = self.reached.borrow();
        revision > reached.durable.revision() && revision <= reached.pending.revision()
    }

    /// The commit that was under way is not, and nobody knows how far it came.
    pub(super) fn given_up(&self) {
        self.reached
            .send_modify(|reached| reached.pending = reached.durable);
    }

    /// Returns once everything up to `commit` is on the disk, the last one that a read saw which began
    /// then. Answers `false` if that cannot be known of what was read: it has to be read again.
    pub(super) async fn settle(&self, db: &Db, commit: Commit, began: Began) -> Result<bool> {
        // A crash cannot take what was on the disk before, so it is the same commit.
        if commit <= began.durable {
            return Ok(true);
        }
        let ours = |reached: &Reached| commit > reached.durable && commit <= reached.pending;
        let mut now = self.reached.subscribe();
        // The sender lives as long as this.
        now.wait_for(|reached| !ours(reached)).await.ok();
        let reached = *self.reached.borrow();
        if commit <= reached.durable && reached.since <= began.at {
            return Ok(true);
        }
        self.gather
            .ask((commit, began), |waiting| self.commit(db, waiting))
            .await
    }

    /// Commits something small for all who wait.
    async fn commit(&self, db: &Db, waiting: Vec<(Commit, Began)>) -> Vec<Result<bool>> {
        let done = self.own.lock().await.commit(db).await;
        let done = done.map_err(|failure| failure.not_done(db.server.place()));
        let proves = |began: &Began| done.as_ref().is_ok_and(|since| *since <= began.at);
        let settled = waiting.iter().filter(|(_, began)| proves(began));
        if let (Ok(since), Some(highest)) = (&done, settled.map(|(commit, _)| *commit).max()) {
            self.reached(highest, *since);
        }
        let answer = |(_, began): &(Commit, Began)| match &done {
            Ok(_) => Ok(proves(began)),
            Err(err) => Err(err.clone()),
        };
        waiting.iter().map(answer).collect()
    }
}

impl Own {
    /// Commits, and answers since when the connection has been there.
    async fn commit(&mut self, db: &Db) -> Result<Instant, Failure> {
        let deadline = Instant::now() + WITHIN;
        if let Some(session) = self.session.take().filter(|own| !db.server.has_ended(own)) {
            match self.commit_on(session, db).await {
                // It may have been closed while nobody needed it. To commit twice does no harm.
                Err(Failure::Lost(why)) if Instant::now() < deadline => {
                    debug!("a small commit is made again: {why}");
                }
                done => return done,
            }
        }
        let session = db.server.reach(Purpose::Upkeep, deadline).await?;
        self.commit_on(session, db).await
    }

    async fn commit_on(&mut self, mut session: Session, db: &Db) -> Result<Instant, Failure> {
        // Another number each time: what changes nothing is not written to the log.
        self.mark.batch += 1;
        let mut script = Script::new();
        note(&mut script, &db.prefix, self.mark);
        if let Err(failure) = session.run(&script, WITHIN).await {
            if failure.is_read_only() {
                db.server.leave();
            }
            return Err(failure);
        }
        let since = session.since();
        self.session = Some(session);
        Ok(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::backend::Head;

    fn commit(revision: i64, unnumbered: i64) -> Commit {
        let head = Head {
            unnumbered,
            ..Head::at(revision)
        };
        head.commit()
    }

    #[test]
    fn what_is_under_way_is_pending_until_it_is_answered_or_given_up() {
        let durable = Durable::new(1);
        durable.reached(commit(5, 1), Instant::now());
        assert!(!durable.is_pending(Revision(6)));
        durable.pending(commit(7, 1));
        let pending = |revisions: [i64; 4]| revisions.map(|at| durable.is_pending(Revision(at)));
        assert_eq!(pending([5, 6, 7, 8]), [false, true, true, false]);
        durable.given_up();
        assert_eq!(pending([5, 6, 7, 8]), [false; 4]);
        durable.pending(commit(7, 1));
        durable.reached(commit(7, 1), Instant::now());
        assert_eq!(pending([5, 6, 7, 8]), [false; 4]);
    }

    #[test]
    fn a_late_answer_to_an_earlier_commit_proves_nothing_for_the_later_one() {
        let durable = Durable::new(1);
        let first = Instant::now();
        let second = first + Duration::from_secs(1);
        durable.reached(commit(5, 1), second);
        for earlier in [commit(3, 1), commit(5, 0), commit(4, 2)] {
            durable.reached(earlier, first);
            let reached = *durable.reached.borrow();
            assert_eq!((reached.durable, reached.since), (commit(5, 1), second));
        }
        durable.reached(commit(5, 1), first);
        assert_eq!(durable.reached.borrow().since, first);
    }
}
