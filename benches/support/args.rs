//! The command line of a benchmark: `cargo bench --bench proxy -- --quick`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Measures Segue next to its peer, in rounds that take turns, and reports ratios.
#[derive(Parser, Clone, Debug)]
pub struct Args {
    /// A smoke run: shows that everything works, its figures mean little
    #[arg(long)]
    pub quick: bool,
    /// Rounds per figure; medians are taken over them
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of one measurement in a round
    #[arg(long, value_name = "MILLISECONDS")]
    round_ms: Option<u64>,
    /// Requests in flight
    #[arg(long, value_delimiter = ',', default_value = "1,16,128")]
    pub in_flight: Vec<usize>,
    /// Only the operations or stores whose names contain this
    #[arg(long)]
    pub only: Option<String>,
    /// Another build of the program, to be measured in turn with this one where a benchmark can
    #[arg(long, value_name = "PROGRAM")]
    pub beside: Option<PathBuf>,
    /// Where the report goes as JSON; default: target/bench/NAME.json
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    /// From the command line; ends the program if that is wrong.
    pub fn read() -> Self {
        Self::parse()
    }

    /// Rounds per figure.
    pub fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 2 } else { 7 })
    }

    /// How long each target is under load in one round.
    pub fn round(&self) -> Duration {
        let default = if self.quick { 150 } else { 1500 };
        Duration::from_millis(self.round_ms.unwrap_or(default))
    }

    /// `full`, or `quick` in a smoke run.
    pub fn scale<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Whether something of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only))
    }
}
