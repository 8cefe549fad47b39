//! `segue copy`

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use clap::Args;

use super::figures::{bytes, number, span};
use super::screen::Screen;
use super::{Failure, open_files, serve};
use crate::config::{Config, Settings};
use crate::migration::offline::{Act, CopyError, Found, Offline, Progress, Receipt};
use crate::migration::phase::Phase;
use crate::migration::records::Control;
use crate::server::{self, Stores};
use crate::store::{PageSize, StoreError, StoreUrl, open_old};
use crate::tasks::Tasks;
use crate::types::{Content, KeyRange, Reserved};

/// How long what is under way may take when the copy is interrupted.
const GRACE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  segue copy --old etcd://127.0.0.1:2379 --new sqlite:new.db
  segue copy --old etcd2://127.0.0.1:4001 --new etcd://127.0.0.1:2479 --json > receipt.json
  segue copy --old sqlite:old.db --new etcd://root@10.0.0.1:2379 --new-password-file FILE
  segue copy --old … --new … --force        whatever the new store holds is deleted first

Stop the application first, and start it on the new store afterwards. If the old store is written to
meanwhile, that is noticed, and the copy is not finished. To migrate without stopping: segue serve.

Interrupted or killed, the same command goes on from where it was. A new store that is not empty is
refused; with --force it is emptied, and what is deleted is said before.

Exit codes: 0 copied and verified, 1 failed, 2 wrong usage or input, 3 refused because it is not safe.";

/// Copy everything to another store, while the application is stopped
///
/// Checks both stores, copies every key and lease with its revisions and versions, compares
/// both stores completely, and prints a receipt. At the end the new store holds the application's keys
/// and nothing else, as after `segue complete`. The old store is only read.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Copy {
    /// The store to copy from
    #[arg(long, env = "SEGUE_OLD", value_name = "URL", hide_env_values = true)]
    old: Option<String>,
    /// The store to copy to, which has to be empty
    #[arg(long, env = "SEGUE_NEW", value_name = "URL", hide_env_values = true)]
    new: Option<String>,
    /// A file whose first line is the password for the old store
    #[arg(long, env = "SEGUE_OLD_PASSWORD_FILE", value_name = "FILE")]
    old_password_file: Option<PathBuf>,
    /// A file whose first line is the password for the new store
    #[arg(long, env = "SEGUE_NEW_PASSWORD_FILE", value_name = "FILE")]
    new_password_file: Option<PathBuf>,
    /// Delete everything that the new store holds, and begin anew
    #[arg(long)]
    force: bool,
    /// Use a database server that is set to lose commits in a crash
    #[arg(long)]
    allow_lossy: bool,
    /// How many parts of the old store are copied at the same time [default: 4]
    #[arg(long, env = "SEGUE_PARALLEL", value_name = "N")]
    parallel: Option<usize>,
    /// Most keys that are copied per second [default: no limit]
    #[arg(long, env = "SEGUE_RATE_KEYS", value_name = "KEYS", value_parser = crate::config::number)]
    rate_keys: Option<u64>,
    /// Most bytes that are copied per second; 8M is 8 MiB [default: no limit]
    #[arg(long, env = "SEGUE_RATE_BYTES", value_name = "BYTES", value_parser = crate::config::number)]
    rate_bytes: Option<u64>,
    /// Keys that begin with this are Segue's own and not copied [default: segue/]
    #[arg(long, env = "SEGUE_RESERVED_PREFIX", value_name = "PREFIX")]
    reserved_prefix: Option<String>,
    /// Print the receipt as one JSON object
    #[arg(long)]
    json: bool,
    /// What to log, as in `RUST_LOG` [default: error]
    #[arg(long, env = "SEGUE_LOG", value_name = "FILTER")]
    log: Option<String>,
}

/// How far it has come, for whoever asks when it is interrupted.
#[derive(Default)]
struct Shown {
    /// The new store is being emptied.
    emptying: bool,
    /// What was told last.
    latest: Option<Progress>,
}

fn failure(error: impl Into<CopyError>) -> Failure {
    match error.into() {
        CopyError::Usage(why) => Failure::Usage(why),
        CopyError::Refused(why) => Failure::Refused(why),
        CopyError::Failed(why) => Failure::Failed(why),
    }
}

impl Copy {
    pub(super) async fn run(self) -> Result<(), Failure> {
        serve::log(self.log.as_deref(), "error")?;
        open_files::raise_limit();
        let config = self.config()?;
        let Some(old) = config.old.clone() else {
            return Err(Failure::Usage(
                "the old store is missing: say --old URL (or SEGUE_OLD), for example --old sqlite:old.db"
                    .into(),
            ));
        };
        let mut signals = serve::Signals::new()?;
        let screen = Screen::new(self.json);
        let tasks = Tasks::new();
        let shown = Mutex::new(Shown::default());
        let opened = OnceLock::new();
        let copied = tokio::select! {
            copied = self.copy(&config, &screen, &tasks, (&shown, &opened)) => copied,
            () = signals.next() => Err(Failure::Failed(interrupted(&shown))),
        };
        screen.clear();
        let end = async {
            tasks.shut_down(GRACE).await;
            if let Some(stores) = opened.get() {
                stores.close().await;
            }
        };
        tokio::select! {
            () = end => {}
            () = signals.next() => {}
        }
        let receipt = Receipt {
            old: old.to_string(),
            new: config.new.to_string(),
            ..copied?
        };
        self.print(&receipt)
    }

    fn config(&self) -> Result<Config, Failure> {
        if self.new.is_none() {
            return Err(Failure::Usage(
                "the new store is missing: say --new URL (or SEGUE_NEW), for example --new sqlite:new.db"
                    .into(),
            ));
        }
        let settings = Settings {
            old: self.old.clone(),
            new: self.new.clone(),
            old_password_file: self.old_password_file.clone(),
            new_password_file: self.new_password_file.clone(),
            allow_lossy: self.allow_lossy.then_some(true),
            parallel: self.parallel,
            rate_keys: self.rate_keys,
            rate_bytes: self.rate_bytes,
            reserved_prefix: self.reserved_prefix.clone(),
            ..Settings::default()
        };
        let config = settings.complete();
        config.map_err(|error| Failure::Usage(error.to_string()))
    }

    async fn copy(
        &self,
        config: &Config,
        screen: &Screen,
        tasks: &Tasks,
        (shown, opened): (&Mutex<Shown>, &OnceLock<Stores>),
    ) -> Result<Receipt, Failure> {
        screen.begin("preflight");
        let stores = server::open_now(config).await;
        let Stores { old, new } = opened.get_or_init({
            let stores = stores.map_err(serve::not_started)?;
            || stores
        });
        let (old, new) = (old.clone(), new.clone());
        let Some(old) = old else {
            return Err(Failure::Usage("the old store is missing".into()));
        };
        let reserved = Reserved::new(config.reserved_prefix.clone());
        let control = Control {
            paused: false,
            rate_keys: config.rate_keys,
            rate_bytes: config.rate_bytes,
        };
        let how = (config.parallel, control);
        let offline = Offline::new(old, Arc::clone(&new), reserved, how, tasks.clone());
        let found = offline
            .inspect(&|name| {
                screen.say(&format!(
                    "waiting to see whether {name} still works on the new store"
                ));
            })
            .await
            .map_err(failure)?;
        let contents = found.contents(&new).await.map_err(failure)?;
        let mut deleted = 0;
        let mut empty = false;
        match (&found, contents) {
            (_, Some(contents)) if self.force => {
                // Nothing is deleted for a store that cannot be copied.
                empty = offline.probe(true).await.map_err(failure)?;
                let url = &config.new;
                screen.say(&format!("--force: deleting from {url} {contents}"));
                deleted = contents.keys;
                see(shown).emptying = true;
                offline.clear().await.map_err(failure)?;
                see(shown).emptying = false;
            }
            (Found::Unfinished(state), _) => {
                offline.check_unchanged(state).await.map_err(failure)?;
                if state.phase == Phase::Migration {
                    empty = offline.probe(false).await.map_err(failure)?;
                }
                screen.say("going on with the copy that an earlier run has begun");
            }
            (Found::Other(contents), _) if contents.rest => {
                return Err(Failure::Refused(format!(
                    "an earlier --force did not finish emptying the new store ({}): {} keys are left of what it \
                     held. Say --force to go on with that and copy then, or give an empty store",
                    config.new, contents.keys
                )));
            }
            (Found::Other(contents), _) => {
                return Err(Failure::Refused(format!(
                    "the new store ({}) is not empty: it holds {contents}. If that is a copy which was \
                     finished, there is nothing left to do: it is ready to be used. Else give an empty \
                     store, or say --force to delete all of it first",
                    config.new
                )));
            }
            (Found::Empty, _) => empty = offline.probe(false).await.map_err(failure)?,
        }
        let remark = if empty {
            let remark = remark_on_empty(config).await;
            screen.say(&remark);
            Some(remark)
        } else {
            None
        };
        let receipt = offline
            .run(&|progress| {
                let mut shown = see(shown);
                tell(screen, shown.latest.as_ref(), progress);
                shown.latest = Some(progress.clone());
            })
            .await
            .map_err(failure)?;
        screen.end("what only the copy needed is removed");
        Ok(Receipt {
            deleted,
            remark,
            ..receipt
        })
    }

    fn print(&self, receipt: &Receipt) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(receipt)
                .map_err(|error| Failure::Failed(error.to_string()))?
        } else {
            render(receipt)
        };
        let written = writeln!(std::io::stdout(), "{text}");
        written.map_err(|error| Failure::Failed(format!("the receipt cannot be written: {error}")))
    }
}

/// Puts progress on the screen.
fn tell(screen: &Screen, before: Option<&Progress>, progress: &Progress) {
    if before.is_none_or(|before| before.act != progress.act) {
        if let Some(before) = before {
            let all = number(progress.all);
            screen.end(&match before.act {
                Act::Leases => "leases and their keys are copied".to_owned(),
                Act::Copying => format!("{all} keys are copied"),
                Act::Verifying => format!("{all} keys are the same in both stores"),
                Act::Settling => String::new(),
            });
        }
        screen.begin(match progress.act {
            Act::Leases => "leases",
            Act::Copying => "copying",
            Act::Verifying => "verifying",
            Act::Settling => "settling",
        });
    }
    let all = match progress.act {
        Act::Copying | Act::Verifying => Some(progress.all),
        Act::Leases | Act::Settling => None,
    };
    screen.progress(progress.done, all, &words(progress));
}

/// How far it is, in words.
fn words(progress: &Progress) -> String {
    let status = &progress.status;
    let mut text = match progress.act {
        Act::Leases => "leases and their keys".to_owned(),
        Act::Copying => {
            let eta = match status.eta_s {
                Some(seconds) if progress.done < progress.all => {
                    format!(", about {} left", span(Duration::from_secs(seconds)))
                }
                _ => String::new(),
            };
            format!(
                "{} of {} keys, {}, {} keys/s{eta}",
                number(progress.done),
                number(progress.all),
                bytes(status.bytes_copied),
                number(status.keys_per_s)
            )
        }
        Act::Verifying => format!(
            "{} of {} keys compared",
            number(progress.done),
            number(progress.all)
        ),
        Act::Settling => "removing what only the copy needed".to_owned(),
    };
    if let Some(trouble) = &status.trouble {
        text = format!("{text}; trying again: {trouble}");
    }
    text
}

/// What is said of an old store without keys: somebody may have named another one than he meant.
async fn remark_on_empty(config: &Config) -> String {
    let what = "the old store holds no keys";
    let Some(StoreUrl::Etcd(cluster)) = &config.old else {
        return format!("{what}: is it the one that the application uses?");
    };
    let over_v2 = StoreUrl::Etcd2(cluster.clone());
    let reserved = Reserved::new(config.reserved_prefix.clone());
    let holds_keys = async {
        let old = open_old(&over_v2, &reserved).await?;
        let page = old
            .scan(KeyRange::all(), PageSize::pairs(1), Content::KeysOnly)
            .await?;
        Ok::<_, StoreError>(page.last_key().is_some())
    };
    // Most etcds do not serve that API any more.
    match tokio::time::timeout(GRACE, holds_keys).await {
        Ok(Ok(true)) => format!(
            "{what} that were written with the v3 API, but there are keys of the v2 API: to copy those, say --old \
             {over_v2}"
        ),
        _ => format!("{what}: is it the one that the application uses?"),
    }
}

fn see(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

fn interrupted(shown: &Mutex<Shown>) -> String {
    let shown = see(shown);
    if shown.emptying {
        return "stopped while emptying the new store: some of what it held is still there. The same command, \
                with --force, goes on with that"
            .into();
    }
    match &shown.latest {
        None => "stopped before anything was copied".into(),
        Some(progress) => format!(
            "stopped: {} of {} keys are copied. The same command goes on from here, as long as the old \
             store is not changed",
            number(progress.status.keys_copied),
            number(progress.all)
        ),
    }
}

fn render(receipt: &Receipt) -> String {
    let mut lines = vec![
        ("from", receipt.old.clone()),
        ("to", receipt.new.clone()),
        (
            "copied",
            format!(
                "{} keys, {}, {} leases",
                number(receipt.keys),
                bytes(receipt.bytes),
                number(receipt.leases)
            ),
        ),
        (
            "verified",
            format!(
                "{} keys compared, {} the same in both{}",
                number(receipt.compared),
                number(receipt.equal),
                match receipt.expired {
                    0 => String::new(),
                    expired => format!(", {} with a lease that has run out", number(expired)),
                }
            ),
        ),
        (
            "revision",
            format!(
                "{} was the old store's last; the new one goes on from {}",
                receipt.base, receipt.revision
            ),
        ),
    ];
    if let Some(remark) = &receipt.remark {
        lines.push(("remark", remark.clone()));
    }
    if receipt.deleted > 0 {
        let deleted = format!("{} keys of the new store", number(receipt.deleted));
        lines.push(("deleted", deleted));
    }
    let mut took = span(Duration::from_millis(receipt.took_ms));
    if receipt.resumed {
        took.push_str(", going on with what an earlier run had begun");
    }
    lines.push(("took", took));
    let lines = lines.iter().map(|(name, text)| format!("{name:<9} {text}"));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_from_the_receipt_what_was_done() {
        let receipt = Receipt {
            old: "etcd://a:1".into(),
            new: "sqlite:b".into(),
            keys: 1234,
            compared: 1235,
            equal: 1234,
            expired: 1,
            base: 77,
            revision: 78,
            deleted: 5,
            remark: Some("look again".into()),
            resumed: true,
            took_ms: 61_000,
            ..Receipt::default()
        };
        let text = render(&receipt);
        for part in [
            "from      etcd://a:1",
            "1,234 keys",
            "1 with a lease that has run out",
            "77 was",
            "goes on from 78",
            "5 keys of the new store",
            "remark    look again",
            "1 min 1 s, going on",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let plain = render(&Receipt::default());
        assert!(
            !plain.contains("deleted") && !plain.contains("lease that"),
            "{plain}"
        );
    }

    #[test]
    fn whoever_stops_it_is_told_what_is_left_behind() {
        let shown = |emptying| {
            let shown = Shown {
                emptying,
                latest: None,
            };
            interrupted(&Mutex::new(shown))
        };
        assert!(shown(false).contains("before anything was copied"));
        let emptying = shown(true);
        for part in ["stopped while emptying", "--force"] {
            assert!(emptying.contains(part), "{emptying}");
        }
    }
}
