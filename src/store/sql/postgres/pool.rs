//! The connections that read: a few, each lent to one reader at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::conn::Conn;
use super::server::Server;
use crate::store::{Result, StoreError};

/// Connections that read, at most. A few that are always busy do better than many: the server works
/// on each with a process of its own.
pub(super) const READERS_MAX: usize = 4;

/// How long a reader waits for a connection.
const LENT_WITHIN: Duration = Duration::from_secs(10);

/// Connections that are not in use.
pub(super) struct Pool {
    server: Arc<Server>,
    idle: Mutex<Vec<Conn>>,
    permits: Semaphore,
}

/// A connection that goes back to the pool when it is dropped.
pub(super) struct Lent<'a> {
    pool: &'a Pool,
    conn: Option<Conn>,
    /// A transaction was begun, which ends with the loan.
    in_transaction: bool,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            idle: Mutex::default(),
            permits: Semaphore::new(READERS_MAX),
        }
    }

    /// A connection; waits until one is free.
    pub(super) async fn lend(&self) -> Result<Lent<'_>> {
        let permit = tokio::time::timeout(LENT_WITHIN, self.permits.acquire()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(StoreError::Unavailable(format!(
                "PostgreSQL at {}: no connection was free within {LENT_WITHIN:?}",
                self.server.name()
            )));
        };
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|conn| !conn.is_closed());
            idle.pop()
        };
        let conn = match idle {
            Some(conn) => conn,
            None => self.server.connect().await?,
        };
        Ok(Lent {
            pool: self,
            conn: Some(conn),
            in_transaction: false,
            _permit: permit,
        })
    }
}

impl Lent<'_> {
    /// The connection, for statements of their own.
    pub(super) fn conn(&self) -> Result<&Conn> {
        let lost = || StoreError::Broken("a connection was given back while in use".into());
        self.conn.as_ref().ok_or_else(lost)
    }

    /// The connection, for a transaction that is over with the loan, wherever it stands then.
    pub(super) fn transaction(&mut self) -> Result<&Conn> {
        self.in_transaction = true;
        self.conn()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take().filter(|conn| !conn.is_closed()) else {
            return;
        };
        if self.in_transaction {
            conn.send("ROLLBACK");
        }
        let mut idle = self
            .pool
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        idle.push(conn);
    }
}
