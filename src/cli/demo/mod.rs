//! `segue demo`: a migration to watch, with nothing installed.
//!
//! - [`flow`]: the show, act by act.
//! - [`stores`], [`seed`], [`proxy`]: the stores, what is in the old one, and Segue before them.
//! - [`clients`], [`troupe`], [`stage`]: the live clients and what they share.
//! - [`ledger`], [`check`], [`meter`]: what they did and saw, whether it was right, and how fast.
//! - [`report`]: what people get to see.

mod check;
mod clients;
mod flow;
mod ledger;
mod meter;
mod proxy;
mod report;
mod seed;
mod stage;
mod stores;
mod troupe;

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use tempfile::TempDir;

use self::proxy::Proxy;
use self::report::Report;
use self::stage::Address;
use super::Failure;
use super::screen::{self, Screen};
use crate::config::Config;
use crate::tasks::Tasks;

/// How long clients may take to end when the demo is interrupted.
const GRACE: Duration = Duration::from_secs(3);

/// How long a store that the demo is done with may still be in use, and make files.
const RELEASE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  segue demo                                       nothing has to be installed or prepared
  segue demo --json > outcome.json
  segue demo --old etcd://127.0.0.1:2479 --new sqlite:new.db
  segue demo --keys 100000 --seconds 20

A store named with --old is filled if it is empty. If it is not, nothing is written to it:
the clients then only read what is there, and keep keys of their own in the new store.
A store named with --new has to be empty. Both stay as they are at the end.

Exit codes: 0 every promise was kept, 1 one was broken or the demo failed, 2 wrong usage or input.";

/// Watch a migration: live clients, every key moves, nobody notices
///
/// Fills an old store with an application's data, lets clients of several kinds use it, points them at
/// segue, migrates, flips the switch, and compares everything with what the clients were told. Takes
/// less than 30 seconds.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Demo {
    /// How many keys the old store is filled with
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = keys)]
    pub keys: usize,
    /// About how long the keys take to move; the clients perform half as long before and after
    #[arg(long, value_name = "SECONDS", default_value_t = 8.0, value_parser = seconds)]
    pub seconds: f64,
    /// The old store [default: an SQLite file in a temporary directory]
    #[arg(long, value_name = "URL")]
    pub old: Option<String>,
    /// The new store, empty [default: an SQLite file in a temporary directory]
    #[arg(long, value_name = "URL")]
    pub new: Option<String>,
    /// A file whose first line is the password for the old store
    #[arg(long, value_name = "FILE")]
    pub old_password_file: Option<PathBuf>,
    /// A file whose first line is the password for the new store
    #[arg(long, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
    /// Print one JSON object, and nothing else, on standard output
    #[arg(long)]
    pub json: bool,
    /// Keep the temporary directory, and say where it is
    #[arg(long)]
    pub keep: bool,
}

fn keys(text: &str) -> Result<usize, String> {
    let max = seed::KEYS_MAX;
    let number = text.parse().ok().filter(|keys| (100..=max).contains(keys));
    number.ok_or_else(|| format!("a number from 100 to {max}"))
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok();
    let number = number.filter(|seconds| (0.5..=3_600.0).contains(seconds));
    number.ok_or_else(|| "a number of seconds from 0.5 to 3600".to_owned())
}

/// Where the show takes place; has to be closed in any case.
struct House {
    dir: TempDir,
    keep: bool,
    tasks: Tasks,
    proxy: Option<Proxy>,
}

impl House {
    fn open(keep: bool) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new()
            .prefix("segue-demo-")
            .disable_cleanup(keep)
            .tempdir();
        let dir = dir.map_err(|error| {
            Failure::Failed(format!("a temporary directory cannot be made: {error}"))
        })?;
        Ok(Self {
            dir,
            keep,
            tasks: Tasks::new(),
            proxy: None,
        })
    }

    /// Starts Segue; answers where it serves clients.
    async fn raise(&mut self, config: Config) -> Result<Address, Failure> {
        let proxy = Proxy::start(config).await?;
        Ok(self.proxy.insert(proxy).address())
    }

    /// Stops Segue.
    async fn lower(&mut self) -> Result<(), Failure> {
        match self.proxy.take() {
            Some(proxy) => proxy.stop().await,
            None => Ok(()),
        }
    }

    fn proxy(&self) -> Result<&Proxy, Failure> {
        let missing = || Failure::Failed("segue does not run".into());
        self.proxy.as_ref().ok_or_else(missing)
    }

    /// Ends whatever still runs, and removes the directory unless it is kept.
    async fn close(mut self) -> Result<(), Failure> {
        self.tasks.shut_down(GRACE).await;
        let lowered = self.lower().await;
        let removed = if self.keep {
            Ok(())
        } else {
            remove(self.dir.path()).await
        };
        lowered.and(removed)
    }
}

/// Removes the directory at `path`. A store that was being opened or closed when the demo was interrupted
/// goes on in a thread of its own, and may put a file into the directory while it is being emptied: then it
/// is emptied again. Where the directory is gone, nothing can be put.
async fn remove(path: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + RELEASE;
    loop {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound && !path.exists() => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(Failure::Failed(format!(
                    "the temporary directory {} cannot be removed: {error}",
                    path.display()
                )));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

impl Demo {
    pub(super) async fn run(self) -> Result<(), Failure> {
        if std::env::var("RUST_LOG").is_ok() {
            super::serve::log(None, "off")?;
        }
        super::open_files::raise_limit();
        let screen = Screen::new(self.json);
        let mut house = House::open(self.keep)?;
        let kept = house.dir.path().to_owned();
        screen.say("");
        let title = "A running application moves from one store to another";
        screen.say(&format!("  {}", screen.strong(title)));
        screen.say("");
        let outcome = tokio::select! {
            outcome = flow::play(&self, &mut house, &screen) => outcome,
            stopped = interrupted() => Err(stopped),
        };
        screen.clear();
        let closed = house.close().await;
        if self.keep {
            screen.say(&format!("  The files stay in {}", kept.display()));
        }
        let report = outcome?;
        tell(&report, &screen)?;
        closed?;
        if report.kept {
            Ok(())
        } else {
            Err(Failure::Failed("the demo has seen broken promises".into()))
        }
    }
}

/// Prints the outcome.
fn tell(report: &Report, screen: &Screen) -> Result<(), Failure> {
    if !screen.json() {
        report.show(screen);
        screen.say("");
        return Ok(());
    }
    let object = serde_json::to_string_pretty(report);
    let object = object.map_err(|error| Failure::Failed(error.to_string()))?;
    let written = writeln!(std::io::stdout(), "{object}");
    written.map_err(|error| Failure::Failed(format!("the outcome cannot be written: {error}")))
}

/// Resolves when somebody wants the demo to stop.
async fn interrupted() -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    match signals {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            Failure::Failed("stopped in the middle of the demo".into())
        }
        (Err(error), _) | (_, Err(error)) => {
            Failure::Failed(format!("signals cannot be received: {error}"))
        }
    }
}
