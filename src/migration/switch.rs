//! What an operator writes into the switch key, and what is to be done about it.

use std::time::Duration;

use super::phase::Phase;
use super::records::{Outcome, Switch};

/// The switch key's name behind the reserved prefix.
pub const KEY: &str = "switch";
/// The switch key is read this often, besides being watched.
pub const LOOK: Duration = Duration::from_secs(2);

/// What the switch key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The phase to go to.
    pub to: Phase,
    /// Wait until it is safe.
    pub when_ready: bool,
}

impl Request {
    /// Reads a value of the switch key: `normal` (or `true`) or `migration`, and behind it
    /// `when-ready`, if it may wait until it is safe.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        const HELP: &str = "write `normal` (or `true`) or `migration`, and ` when-ready` behind it \
            to let it wait until it is safe";
        let text = std::str::from_utf8(value)
            .map_err(|_| format!("the value is not text: {HELP}"))?
            .to_ascii_lowercase();
        let mut words = text.split_ascii_whitespace();
        let to = match words.next() {
            Some("normal" | "true") => Phase::Normal,
            Some("migration") => Phase::Migration,
            _ => return Err(format!("the value is not understood: {HELP}")),
        };
        let when_ready = match words.next() {
            None => false,
            Some("when-ready" | "--when-ready") => true,
            Some(_) => return Err(format!("the value is not understood: {HELP}")),
        };
        match words.next() {
            None => Ok(Self { to, when_ready }),
            Some(_) => Err(format!("the value is not understood: {HELP}")),
        }
    }

    /// The value that asks for this.
    #[must_use]
    pub fn value(&self) -> String {
        let wait = if self.when_ready { " when-ready" } else { "" };
        format!("{}{wait}", self.to)
    }
}

/// The record for a value of the switch key that is new, before anything was decided about it.
#[must_use]
pub fn seen(revision: i64, value: &[u8]) -> Switch {
    let text: String = String::from_utf8_lossy(value).chars().take(100).collect();
    let record = Switch {
        revision,
        value: text,
        ..Switch::default()
    };
    match Request::parse(value) {
        Ok(request) => Switch {
            to: Some(request.to),
            when_ready: request.when_ready,
            outcome: Outcome::Waiting,
            ..record
        },
        Err(reason) => Switch {
            outcome: Outcome::Refused,
            reason,
            ..record
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_key_is_read_generously_but_never_guessed_at() {
        let ok = |to, when_ready| Ok(Request { to, when_ready });
        for (value, request) in [
            ("true", ok(Phase::Normal, false)),
            ("TRUE\n", ok(Phase::Normal, false)),
            ("Normal", ok(Phase::Normal, false)),
            ("normal when-ready", ok(Phase::Normal, true)),
            ("normal --when-ready", ok(Phase::Normal, true)),
            (" migration ", ok(Phase::Migration, false)),
            ("false", Err(())),
            ("", Err(())),
            ("normal soon", Err(())),
            ("normal when-ready now", Err(())),
            ("settled", Err(())),
        ] {
            assert_eq!(
                Request::parse(value.as_bytes()).map_err(|_| ()),
                request,
                "{value:?}"
            );
        }
        assert!(Request::parse(&[0xff]).is_err());
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for to in [Phase::Normal, Phase::Migration] {
            for when_ready in [false, true] {
                let request = Request { to, when_ready };
                assert_eq!(Request::parse(request.value().as_bytes()), Ok(request));
            }
        }
    }
}
