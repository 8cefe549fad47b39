//! `segue serve`

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::screen::no_color;
use super::{Failure, open_files};
use crate::config::Settings;
use crate::migration::Timing;
use crate::migration::offline::CopyError;
use crate::server::{Server, StartError};
use crate::store::{RequestError, StoreError};

const EXAMPLES: &str = "\
Examples:
  segue serve --old etcd2://127.0.0.1:4001 --new etcd://127.0.0.1:2479
  segue serve --old sqlite:old.db --new sqlite:new.db --listen 0.0.0.0:2379
  segue serve --new sqlite:data.db            etcd's API on SQLite, no migration
  SEGUE_NEW_PASSWORD=… segue serve --old … --new etcd://root@10.0.0.1:2379
  segue serve --config /etc/segue.toml

Stores:
  sqlite:PATH                                  a file
  postgres://USER[:PASSWORD]@HOST/DATABASE     PostgreSQL; ?schema= prefix= sslmode= sslrootcert=
  mysql://USER[:PASSWORD]@HOST/DATABASE        MySQL, MariaDB; ?prefix= ssl-mode= ssl-ca=
  …?table=TABLE&key=COLUMN&value=COLUMN        a table there or in a file (old store only);
                                               key=A,B for several; revision= expires= if there are
  etcd://[USER[:PASSWORD]@]HOST:PORT[,…]       etcd, v3 API
  etcd2://[USER[:PASSWORD]@]HOST:PORT[,…]      etcd, v2 keys API (old store only)
  memory:                                      gone when the process ends

Settings come from flags, then SEGUE_… variables, then the TOML file (the same names with `_`).
A password on the command line can be seen by everybody on the machine: use a file or a variable.";

/// Serve the etcd API, and migrate from the old store to the new one
///
/// Without --old the new store is served alone. With it, a migration begins, or goes on where it was:
/// clients can use both stores as one at once, while every key is copied in the background. Several
/// proxies with the same stores are one fleet.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Serve {
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let config = self
            .settings
            .complete()
            .map_err(|error| Failure::Usage(error.to_string()))?;
        log(config.log.as_deref(), "info")?;
        open_files::raise_limit();
        let mut signals = Signals::new()?;
        let server = tokio::select! {
            started = Server::start(config, Timing::default()) => {
                started.map_err(not_started)?
            }
            () = signals.next() => return Ok(()),
        };
        tokio::select! {
            () = server.ready() => {
                let mut out = std::io::stdout().lock();
                let _ = writeln!(
                    out,
                    "segue is ready: etcd API on {}, admin on {}, phase {}",
                    server.api,
                    server.admin,
                    server.phase()
                );
                let _ = out.flush();
            }
            why = server.gone() => return give_up(server, &mut signals, &why).await,
            () = signals.next() => return stop(server, &mut signals).await,
        }
        tokio::select! {
            why = server.gone() => give_up(server, &mut signals, &why).await,
            () = signals.next() => stop(server, &mut signals).await,
        }
    }
}

/// The exit code for stores that cannot be opened, or a server that does not start.
pub(super) fn not_started(error: StartError) -> Failure {
    let text = error.to_string();
    match error {
        StartError::Open(error) | StartError::NeitherStore { new: error, .. } => {
            match CopyError::from(error) {
                CopyError::Usage(_) => Failure::Usage(text),
                CopyError::Refused(_) => Failure::Refused(text),
                CopyError::Failed(_) => Failure::Failed(text),
            }
        }
        // Of a kind that cannot be a new store.
        StartError::Store {
            which: "new",
            error: StoreError::Request(RequestError::Unsupported(_)),
            ..
        }
        | StartError::Itself { .. } => Failure::Usage(text),
        StartError::OldMissing(_) | StartError::LeftBehind => Failure::Refused(text),
        StartError::Store { .. } | StartError::Listen { .. } => Failure::Failed(text),
    }
}

/// Stops by itself, so that clients go to another proxy at once.
async fn give_up(server: Server, signals: &mut Signals, why: &str) -> Result<(), Failure> {
    // What did not end in time is in the log.
    let _ = stop(server, signals).await;
    Err(Failure::Failed(why.into()))
}

async fn stop(server: Server, signals: &mut Signals) -> Result<(), Failure> {
    tokio::select! {
        left = server.stop() => match left.as_slice() {
            [] => Ok(()),
            left => Err(Failure::Failed(format!("did not end in time: {}", left.join(", ")))),
        },
        () = signals.next() => Err(Failure::Failed("stopped at once".into())),
    }
}

/// Begins to log: what was asked for, else what `RUST_LOG` says, else what is `usual`.
pub(super) fn log(asked: Option<&str>, usual: &str) -> Result<(), Failure> {
    let filter = match (asked, std::env::var("RUST_LOG")) {
        (Some(filter), _) => filter.to_owned(),
        (None, Ok(filter)) => filter,
        (None, Err(_)) => usual.to_owned(),
    };
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| Failure::Usage(format!("--log {filter}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !no_color())
        .with_target(false)
        // A line that cannot be written is told of by `eprintln!` otherwise, which panics then: whatever
        // task has logged it would die of a full disk.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// What asks the process to end.
pub(super) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| Failure::Failed(error.to_string()));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
