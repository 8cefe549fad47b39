//! The command line: one file per command. All but `serve`, `copy` and `demo` talk to a running proxy
//! through its admin API, and to nothing else.

/// Prints a line for whoever reads the output. A reader that has gone away has read enough, as `head` has:
/// then the command ends at once, as if by SIGPIPE, which Rust's programs ignore.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::print_line(format_args!($($text)*))
    };
}

mod client;
mod complete;
mod copy;
mod demo;
mod dry_run;
mod figures;
mod open_files;
mod pause;
mod rejects;
mod rollback;
mod screen;
mod serve;
mod start;
mod status;
mod switch;
mod verify;
mod waiting;

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::ADMIN;

/// Why a command did not do what was asked, and so its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something went wrong; exit code 1.
    #[error("{0}")]
    Failed(String),
    /// What was asked makes no sense; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// It was refused, because it is not safe now; exit code 3.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    fn code(&self) -> ExitCode {
        match self {
            Self::Failed(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
            Self::Refused(_) => ExitCode::from(3),
        }
    }
}

const ABOUT: &str = "\
Segue speaks the etcd v3 API and moves a running application from one key-value store to another, \
without a pause and without anyone noticing.

Point the application at segue as if it were etcd. Behind it stand two stores, the old one and the \
new one. Segue shows both as one while it copies every key in the background; when all is copied and \
verified, flip the switch, and the old store is no longer asked.";

const STEPS: &str = "\
A whole migration:
  segue serve --old etcd://127.0.0.1:4001 --new etcd://127.0.0.1:2479
  segue status --watch     how far it is
  segue switch             when all is copied and verified: the new store alone from now on
  segue rollback           if anything is wrong: back to the old store, with every write
  segue complete           when you are sure: the migration is settled
Or, while the application is stopped:
  segue copy --old etcd://127.0.0.1:4001 --new etcd://127.0.0.1:2479

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 refused because it is not safe now.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "segue", version, about = "Moves a running application from one key-value store to another", long_about = ABOUT, after_help = STEPS)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Start(start::Start),
    Status(status::Status),
    Switch(switch::Switch),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Rates(pause::Rates),
    Verify(verify::Verify),
    Rejects(rejects::Rejects),
    Rollback(rollback::Rollback),
    Complete(complete::Complete),
    Copy(Box<copy::Copy>),
    Demo(Box<demo::Demo>),
}

/// Which proxy to talk to.
#[derive(Args, Clone, Debug)]
pub struct Admin {
    /// The admin API of a running proxy
    #[arg(long, env = "SEGUE_ADMIN", value_name = "URL", default_value = ADMIN)]
    pub admin: String,
}

/// Runs the command that the process was started with, to the end.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("segue: cannot start: {error}"));
            return ExitCode::from(1);
        }
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Serve(command) => command.run().await,
            Command::Start(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::Switch(command) => command.run().await,
            Command::Pause(command) => command.run().await,
            Command::Resume(command) => command.run().await,
            Command::Rates(command) => command.run().await,
            Command::Verify(command) => command.run().await,
            Command::Rejects(command) => command.run().await,
            Command::Rollback(command) => command.run().await,
            Command::Complete(command) => command.run().await,
            Command::Copy(command) => command.run().await,
            Command::Demo(command) => Box::pin(command.run()).await,
        }
    });
    // What still runs has had its time to end.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(format_args!("segue: {failure}"));
            failure.code()
        }
    }
}

/// Writes a line to standard error. Where that fails, as on a full disk, nobody can be told, and it is no
/// reason to do anything else than before (`eprintln!` would panic).
fn complain(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// What a shell tells of a program that SIGPIPE has ended.
const BY_SIGPIPE: i32 = 128 + 13;

fn print_line(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let printed = out.write_fmt(text).and_then(|()| out.write_all(b"\n"));
    if let Err(error) = printed.and_then(|()| out.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(BY_SIGPIPE);
        }
        complain(format_args!("segue: cannot write the output: {error}"));
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{}: {help}", command.get_name());
        }
    }
}
