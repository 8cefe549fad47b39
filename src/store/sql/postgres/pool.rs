//! The connections that read: a few, each lent to one reader at a time.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::debug;

use super::conn::Conn;
use super::server::Server;
use crate::store::{Result, StoreError};
use crate::tasks::spawn_from_drop;

/// Connections that read, at most. A few that are always busy do better than many: the server works
/// on each with a process of its own.
pub(super) const READERS_MAX: usize = 4;

/// How long a reader waits for a connection.
const LENT_WITHIN: Duration = Duration::from_secs(10);

/// How long a read may go on whose asker has gone before it is cancelled: most are done sooner, and to
/// cancel one takes a connection.
const DONE_WITHIN: Duration = Duration::from_millis(50);

/// How long it may go on after that.
const CANCELLED_WITHIN: Duration = Duration::from_secs(1);

/// Connections that are not in use.
pub(super) struct Pool {
    lender: Arc<Lender>,
}

/// What those that were lent go back to.
struct Lender {
    server: Arc<Server>,
    idle: Mutex<Vec<Conn>>,
    permits: Arc<Semaphore>,
    /// For large reads, who need one of these as well: one fewer, so that small reads always find a
    /// connection.
    permits_of_large: Arc<Semaphore>,
}

/// A connection that goes back to the pool when it is dropped.
///
/// Whoever reads may go away in the middle of a statement, with his client. The server does not know, and
/// works on. So the connection is back, and its place free, only when it is known to be idle: else the next
/// reader would wait for what nobody wants any more.
pub(super) struct Lent {
    lender: Arc<Lender>,
    conn: Option<(Conn, Permit)>,
    /// A transaction was begun, which ends with the loan.
    in_transaction: bool,
}

/// The right to have a connection.
struct Permit {
    _one: OwnedSemaphorePermit,
    _of_large: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self {
            lender: Arc::new(Lender {
                server,
                idle: Mutex::default(),
                permits: Arc::new(Semaphore::new(READERS_MAX)),
                permits_of_large: Arc::new(Semaphore::new(READERS_MAX - 1)),
            }),
        }
    }

    /// A connection for a read, which may be a small one; waits until one is free.
    pub(super) async fn lend(&self, small: bool) -> Result<Lent> {
        let Lender {
            server,
            permits,
            permits_of_large,
            ..
        } = &*self.lender;
        let permitted = async {
            let of_large = if small {
                None
            } else {
                Some(permits_of_large.clone().acquire_owned().await?)
            };
            let permit = permits.clone().acquire_owned().await?;
            Ok::<_, AcquireError>(Permit {
                _one: permit,
                _of_large: of_large,
            })
        };
        let Ok(Ok(permit)) = timeout(LENT_WITHIN, permitted).await else {
            return Err(StoreError::Unavailable(format!(
                "PostgreSQL at {}: no connection was free within {LENT_WITHIN:?}",
                server.name()
            )));
        };
        let idle = {
            let mut idle = self.lender.idle();
            idle.retain(|conn| !conn.is_closed());
            idle.pop()
        };
        let conn = match idle {
            Some(conn) => conn,
            None => server.connect().await?,
        };
        Ok(Lent {
            lender: self.lender.clone(),
            conn: Some((conn, permit)),
            in_transaction: false,
        })
    }
}

impl Lender {
    /// Nothing panics under this lock, so a poisoned one is good.
    fn idle(&self) -> MutexGuard<'_, Vec<Conn>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection back on which something is under way, when that has ended.
    async fn settle(&self, conn: Conn) {
        let rolled_back = async {
            let mut rolled_back = pin!(conn.roll_back());
            if let Ok(done) = timeout(DONE_WITHIN, &mut rolled_back).await {
                return done.is_ok();
            }
            // It may hit what rolls back, which fails then.
            let cancelled = self.server.cancel(&conn).await;
            cancelled && matches!(timeout(CANCELLED_WITHIN, rolled_back).await, Ok(Ok(())))
        };
        if rolled_back.await {
            self.idle().push(conn);
        } else {
            debug!("a connection is given up, nobody knows what is under way there");
            conn.end();
        }
    }
}

impl Lent {
    /// The connection, for statements of their own.
    pub(super) fn conn(&self) -> Result<&Conn> {
        let lost = || StoreError::Broken("a connection was given back while in use".into());
        self.conn.as_ref().map(|(conn, _)| conn).ok_or_else(lost)
    }

    /// The connection, for a transaction that is over with the loan, wherever it stands then.
    pub(super) fn transaction(&mut self) -> Result<&Conn> {
        self.in_transaction = true;
        self.conn()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let lent = self.conn.take().filter(|(conn, _)| !conn.is_closed());
        let Some((conn, permit)) = lent else {
            return;
        };
        if !conn.is_asked() {
            if self.in_transaction {
                conn.send("ROLLBACK");
            }
            self.lender.idle().push(conn);
            return;
        }
        let lender = self.lender.clone();
        spawn_from_drop(async move {
            lender.settle(conn).await;
            drop(permit);
        });
    }
}
