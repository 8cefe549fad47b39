//! Looks out for what other processes write: asks for the head row's revision, again and again.
//!
//! The server tells nobody of itself that something has changed. So it is asked at short intervals
//! while things move and somebody watches them, at longer ones while nothing moves, and rarely while
//! nobody watches: a question is a read by primary key of a row that is in memory.
//!
//! The same question tells whether the server is read-only now. Then another one may be the primary,
//! and what is read here may be out of date, which no read fails of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::Db;
use super::error::Failure;
use super::fetch::head_is_gone;
use super::script::Script;
use super::session::{Purpose, Session};
use crate::store::sql::rows::Columns as _;
use crate::tasks::spawn_owned;
use crate::types::Revision;

/// Between two questions while somebody watches and something moves.
const SHORT: Duration = Duration::from_millis(2);

/// The same while nothing moves: the longest that a change waits to be noticed.
const LONG: Duration = Duration::from_millis(10);

/// Between two questions while nobody watches.
const IDLE: Duration = Duration::from_millis(100);

/// How long things move after a change.
const MOVES_FOR: Duration = Duration::from_millis(100);

/// How long a question may take.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// How old connections to a read-only server get: some accounts may write there all the same, or the
/// name may not lead to the new primary yet.
const READ_ONLY_FOR: Duration = Duration::from_secs(5);

/// How long a server that does not answer is left alone.
const PAUSE: Duration = Duration::from_millis(100);

/// Whoever wants to know asks here. The task behind it ends when it is dropped.
pub(super) struct Lookout {
    seen: watch::Receiver<Revision>,
    wish: Arc<Wish>,
    _ends: DropGuard,
}

/// What those that wait want.
#[derive(Default)]
struct Wish {
    waiting: AtomicUsize,
    eager: AtomicBool,
    /// One of them came.
    changed: Notify,
}

impl Lookout {
    /// Starts the task. It connects when somebody waits for the first time.
    pub(super) fn start(db: &Arc<Db>) -> Self {
        let (sender, seen) = watch::channel(Revision(0));
        let wish = Arc::new(Wish::default());
        let cancel = CancellationToken::new();
        let task = Task {
            db: db.clone(),
            session: None,
            seen: sender,
            wish: wish.clone(),
            moved_at: Instant::now(),
        };
        let cancelled = cancel.clone().cancelled_owned();
        // Ends with the guard.
        spawn_owned(async move {
            tokio::select! {
                () = cancelled => {}
                () = task.run() => {}
            }
            debug!("the lookout has ended");
        });
        Self {
            seen,
            wish,
            _ends: cancel.drop_guard(),
        }
    }

    /// Returns when the store is seen at a revision that is `news`, which is asked at each look.
    pub(super) async fn until(&self, news: impl Fn(Revision) -> bool, eager: bool) {
        let mut seen = self.seen.clone();
        let _waits = Waits::enter(&self.wish, eager);
        if seen.wait_for(|seen| news(*seen)).await.is_err() {
            // The task has ended: so has the store.
            std::future::pending::<()>().await;
        }
    }
}

/// One that waits, until dropped.
struct Waits<'a>(&'a Wish);

impl<'a> Waits<'a> {
    fn enter(wish: &'a Wish, eager: bool) -> Self {
        wish.eager.store(eager, Ordering::Release);
        wish.waiting.fetch_add(1, Ordering::AcqRel);
        wish.changed.notify_one();
        Self(wish)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Task {
    db: Arc<Db>,
    session: Option<Session>,
    seen: watch::Sender<Revision>,
    wish: Arc<Wish>,
    moved_at: Instant,
}

impl Task {
    async fn run(mut self) {
        let mut script = Script::of("SELECT revision, @@global.read_only FROM ");
        script.say(&self.db.prefix).say("head");
        let mut asked = Instant::now();
        loop {
            while self.wish.waiting.load(Ordering::Acquire) == 0 {
                self.wish.changed.notified().await;
            }
            // Somebody who is in more of a hurry than those before cuts the pause short.
            while let Some(left) = self.pause().checked_sub(asked.elapsed())
                && !left.is_zero()
            {
                timeout(left, self.wish.changed.notified()).await.ok();
            }
            asked = Instant::now();
            match self.ask(&script).await {
                Ok(revision) => {
                    // What was no news may be some now.
                    if self.seen.send_replace(revision) != revision {
                        self.moved_at = Instant::now();
                    }
                }
                Err(failure) => {
                    debug!("{}: cannot look out: {failure}", self.db.server.place());
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn pause(&self) -> Duration {
        match self.wish.eager.load(Ordering::Acquire) {
            false => IDLE,
            true if self.moved_at.elapsed() < MOVES_FOR => SHORT,
            true => LONG,
        }
    }

    async fn ask(&mut self, script: &Script) -> Result<Revision, Failure> {
        let server = &self.db.server;
        let mut session = match self.session.take() {
            Some(session) if !server.is_left(&session) => session,
            _ => server.connect(Purpose::Read).await?,
        };
        let row = session.run(script, ASK_WITHIN).await?.first()?;
        let row = row.ok_or_else(head_is_gone)?;
        // A number, or a word in later servers.
        let is_read_only = !matches!(&row.text(1)?[..], "0" | "OFF");
        if is_read_only && session.since().elapsed() > READ_ONLY_FOR {
            server.leave();
        }
        self.session = Some(session);
        row.int(0).map(Revision)
    }
}
