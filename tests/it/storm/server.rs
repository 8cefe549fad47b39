//! A store's server of its own, which can be killed.

use super::plan::Kind;
use crate::support::{Etcd, MariaDb, Postgres, Segue};

/// A running server with one store in it.
pub(super) struct Server {
    /// The store's.
    pub(super) url: String,
    process: Process,
}

enum Process {
    Etcd(Etcd),
    Postgres(Postgres),
    Mariadb(MariaDb),
}

impl Server {
    /// A server with an empty store, as Segue makes it.
    pub(super) async fn start(kind: Kind) -> Self {
        let (url, process) = match kind {
            Kind::Etcd => {
                let etcd = Etcd::start().await;
                (etcd.url(), Process::Etcd(etcd))
            }
            Kind::Postgres => {
                let server = Postgres::start().await;
                (server.schema(), Process::Postgres(server))
            }
            Kind::Mariadb => {
                let server = MariaDb::start().await;
                (server.database().await, Process::Mariadb(server))
            }
        };
        if kind != Kind::Etcd {
            // An old store that waits has to be one.
            drop(Segue::start(["--new", &url]).await);
        }
        Self { url, process }
    }

    pub(super) fn kill(&mut self) {
        match &mut self.process {
            Process::Etcd(server) => server.kill(),
            Process::Postgres(server) => server.kill(),
            Process::Mariadb(server) => server.kill(),
        }
    }

    /// Starts it anew, and waits until it serves.
    pub(super) async fn restart(&mut self) {
        match &mut self.process {
            Process::Etcd(server) => server.restart().await,
            Process::Postgres(server) => server.restart().await,
            Process::Mariadb(server) => server.restart().await,
        }
    }
}
