//! What people see while a command runs: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two lines about one act, where there is no terminal to draw a bar on.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// The screen: what there is to tell goes to standard output (to standard error if that belongs to the JSON
/// object), the bar to standard error.
pub(super) struct Screen {
    json: bool,
    color: bool,
    bar: Option<ProgressBar>,
    begun: Mutex<Begun>,
}

/// The act that is under way.
struct Begun {
    title: String,
    at: Instant,
    last_line: Instant,
}

impl Screen {
    /// A screen, on which the story leaves standard output alone if `json`.
    pub(super) fn new(json: bool) -> Self {
        let terminal = if json {
            std::io::stderr().is_terminal()
        } else {
            std::io::stdout().is_terminal()
        };
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(15));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let now = Instant::now();
        Self {
            json,
            color: terminal && !no_color(),
            bar,
            begun: Mutex::new(Begun {
                title: String::new(),
                at: now,
                last_line: now,
            }),
        }
    }

    /// Whether there is a terminal, on which what is told last is seen alone.
    pub(super) fn is_live(&self) -> bool {
        self.bar.is_some()
    }

    /// Whether standard output is for the JSON object alone.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// Writes a line of the story.
    pub(super) fn say(&self, line: &str) {
        let write = || {
            // Nobody is left to be told if the reader has gone away.
            let _ = if self.json {
                writeln!(std::io::stderr(), "{line}")
            } else {
                writeln!(std::io::stdout(), "{line}")
            };
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// An act begins.
    pub(super) fn begin(&self, title: &str) {
        let now = Instant::now();
        if let Ok(mut begun) = self.begun.lock() {
            *begun = Begun {
                title: title.to_owned(),
                at: now,
                last_line: now,
            };
        }
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_style(style("  {spinner:.cyan} {prefix:<11} {msg}"));
            bar.set_prefix(title.to_owned());
            bar.set_message("");
        }
    }

    /// How far the act is: `done` of `all`, where that is known, and what else there is to say.
    pub(super) fn progress(&self, done: u64, all: Option<u64>, message: &str) {
        if let Some(bar) = &self.bar {
            if let Some(all) = all {
                bar.set_style(style(
                    "  {spinner:.cyan} {prefix:<11} {bar:12.cyan/238} {percent:>3} %  {msg}",
                ));
                bar.set_length(all);
            }
            bar.set_position(done);
            bar.set_message(message.to_owned());
            return;
        }
        let Ok(mut begun) = self.begun.lock() else {
            return;
        };
        if begun.last_line.elapsed() >= LINE_EVERY {
            begun.last_line = Instant::now();
            let line = format!("    {:<11} {message}", begun.title);
            drop(begun);
            self.say(&line);
        }
    }

    /// The act is over; what it came to.
    pub(super) fn end(&self, outcome: &str) {
        let Ok(begun) = self.begun.lock() else { return };
        let (title, took) = (begun.title.clone(), begun.at.elapsed());
        drop(begun);
        let mark = self.good("✓");
        let time = self.faint(&format!("{:>6.1} s", took.as_secs_f64()));
        self.say(&format!(
            "  {mark} {title:<11} {}{time}",
            padded(outcome, 56)
        ));
    }

    /// The show is over: no bar any more.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Green, where there are colours.
    pub(super) fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Red.
    pub(super) fn bad(&self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Bold.
    pub(super) fn strong(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Less important.
    pub(super) fn faint(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether nobody wants to see colours; see <https://no-color.org>.
pub(super) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━━╌")
}

/// `text` with blanks behind it up to a width of `width` characters.
pub(super) fn padded(text: &str, width: usize) -> String {
    let blanks = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(blanks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_padded_by_what_is_seen_of_them() {
        assert_eq!(padded("é", 3), "é  ");
    }
}
