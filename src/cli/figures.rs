//! Figures as people read them.

use std::time::Duration;

use indicatif::{BinaryBytes, HumanCount};

/// A number with its thousands set apart.
pub(super) fn number(number: u64) -> String {
    HumanCount(number).to_string()
}

/// Bytes in the unit that suits them.
pub(super) fn bytes(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// A span of time in the two units that suit it.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 if duration.subsec_nanos() > 0 => format!("{:.1} s", duration.as_secs_f64()),
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_easy_to_read() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (20_000, "20,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(number(value), text);
        }
        for (value, text) in [(1023, "1023 B"), (21 << 20, "21.00 MiB")] {
            assert_eq!(bytes(value), text);
        }
        for (ms, text) in [
            (1_234, "1.2 s"),
            (5_000, "5 s"),
            (59_999, "59 s"),
            (3_700_000, "1 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }
}
