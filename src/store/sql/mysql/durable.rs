//! What was read is on the disk before anybody hears of it.
//!
//! InnoDB shows a commit to others before it has written it to the disk: the log is synced when the
//! locks are gone already. A read in between sees what a crash of the server would undo, and
//! revisions would go back for a client. So a revision is told only when it is known to be durable:
//! once the commit of this process that made it, or a later one, was answered; and if another process
//! made it, once a small commit of our own was answered that began afterwards. The log is written in
//! order, so that one takes all earlier ones with it.
//!
//! Readers that wait for the same go together. A proxy that is alone on its database never has to
//! commit for a read.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};

use super::Db;
use super::error::Failure;
use super::script::Script;
use super::session::{Purpose, Session};
use super::write::{Mark, note};
use crate::store::Result;
use crate::store::gather::Gather;
use crate::types::Revision;

/// How long the small commit may take, and how long the server is tried to be reached for it.
const WITHIN: Duration = Duration::from_secs(10);

/// Readers that wait for one commit at most.
const TOGETHER_MAX: usize = 1024;

/// How far it is known that commits are durable.
pub(super) struct Durable {
    reached: watch::Sender<Reached>,
    gather: Gather<Revision, Result<()>>,
    own: Mutex<Own>,
}

#[derive(Clone, Copy, Debug)]
struct Reached {
    /// Everything up to here is on the disk.
    durable: Revision,
    /// The commit of this process that is under way goes up to here; else the same.
    pending: Revision,
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
            durable: Revision(0),
            pending: Revision(0),
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

    /// A commit of this process up to `revision` goes out.
    pub(super) fn pending(&self, revision: Revision) {
        self.reached.send_modify(|reached| {
            reached.pending = reached.pending.max(revision);
        });
    }

    /// Everything up to `revision` is on the disk.
    pub(super) fn reached(&self, revision: Revision) {
        self.reached.send_modify(|reached| {
            reached.durable = reached.durable.max(revision);
            reached.pending = reached.pending.max(reached.durable);
        });
    }

    /// The commit that was under way is not, and nobody knows how far it came.
    pub(super) fn given_up(&self) {
        self.reached
            .send_modify(|reached| reached.pending = reached.durable);
    }

    /// Returns once everything up to `revision`, which was just read, is on the disk.
    pub(super) async fn settle(&self, db: &Db, revision: Revision) -> Result<()> {
        let open = |reached: &Reached| revision > reached.durable;
        if !open(&self.reached.borrow()) {
            return Ok(());
        }
        let ours = |reached: &Reached| open(reached) && revision <= reached.pending;
        let mut now = self.reached.subscribe();
        // The sender lives as long as this.
        now.wait_for(|reached| !ours(reached)).await.ok();
        if !open(&self.reached.borrow()) {
            return Ok(());
        }
        self.gather
            .ask(revision, |revisions| self.commit(db, revisions))
            .await
    }

    /// Commits something small for all who wait.
    async fn commit(&self, db: &Db, revisions: Vec<Revision>) -> Vec<Result<()>> {
        let done = self.own.lock().await.commit(db).await;
        if done.is_ok()
            && let Some(highest) = revisions.iter().max()
        {
            self.reached(*highest);
        }
        let done = done.map_err(|failure| failure.not_done(db.server.place()));
        revisions.iter().map(|_| done.clone()).collect()
    }
}

impl Own {
    async fn commit(&mut self, db: &Db) -> Result<(), Failure> {
        let mut session = match self.session.take() {
            Some(session) if !db.server.has_ended(&session) => session,
            _ => {
                let deadline = Instant::now() + WITHIN;
                db.server.reach(Purpose::Upkeep, deadline).await?
            }
        };
        // Another number each time: what changes nothing is not written to the log.
        self.mark.batch += 1;
        let mut script = Script::new();
        note(&mut script, &db.prefix, self.mark);
        session.run(&script, WITHIN).await?;
        self.session = Some(session);
        Ok(())
    }
}
