//! What `segue serve` is told: flags first, then the environment, then a TOML file, then defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::api::Limits;
use crate::migration::phase::Phase;
use crate::store::url::{Secret, StoreUrl, UrlError, password_file};

/// Where the etcd API listens unless told otherwise: where clients of etcd look.
pub const LISTEN: &str = "127.0.0.1:2379";
/// Where the admin API listens unless told otherwise.
pub const ADMIN: &str = "127.0.0.1:2381";
/// Shards of the backfill that are copied at the same time. More than this gains little on the
/// stores that were measured and takes more memory (about 8 MiB each).
const PARALLEL: usize = 4;

/// The settings as flags and environment variables give them.
#[derive(Args, Clone, Debug, Default)]
pub struct Settings {
    /// The store that the data comes from; without it the new store is served alone
    #[arg(long, env = "SEGUE_OLD", value_name = "URL", hide_env_values = true)]
    pub old: Option<String>,
    /// The store that the data goes to
    #[arg(long, env = "SEGUE_NEW", value_name = "URL", hide_env_values = true)]
    pub new: Option<String>,
    /// A file whose first line is the password for the old store
    #[arg(long, env = "SEGUE_OLD_PASSWORD_FILE", value_name = "FILE")]
    pub old_password_file: Option<PathBuf>,
    /// A file whose first line is the password for the new store
    #[arg(long, env = "SEGUE_NEW_PASSWORD_FILE", value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
    /// Where clients find the etcd API; port 0 picks a free one [default: 127.0.0.1:2379]
    #[arg(long, env = "SEGUE_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Where `segue status` and the other commands find the admin API [default: 127.0.0.1:2381]
    #[arg(long, env = "SEGUE_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// What this proxy is called among its fellows [default: its advertised address]
    #[arg(long, env = "SEGUE_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// The client URL that the member list names for this proxy [default: where it listens]. Say it where
    /// `--listen` names no address (0.0.0.0): clients that sync their endpoints go there
    #[arg(long, env = "SEGUE_ADVERTISE", value_name = "URL")]
    pub advertise: Option<String>,
    /// The phase in which a migration begins: `migration`, or `passthrough`, in which the old store
    /// alone serves until `segue start` [default: migration]
    #[arg(long, env = "SEGUE_START", value_name = "PHASE")]
    pub start: Option<String>,
    /// Begin even though the new store holds keys: they stay, and win over the old store's where both have
    /// the same
    #[arg(long, env = "SEGUE_ALLOW_NONEMPTY", num_args = 0..=1, default_missing_value = "true")]
    pub allow_nonempty: Option<bool>,
    /// Take database servers that are set to lose what they have acknowledged when the machine crashes
    #[arg(long, env = "SEGUE_ALLOW_LOSSY", num_args = 0..=1, default_missing_value = "true")]
    pub allow_lossy: Option<bool>,
    /// Never write to the old store: it is not fenced and does not follow the new one's changes, so there is
    /// no way back
    #[arg(long, env = "SEGUE_NO_MIRROR", num_args = 0..=1, default_missing_value = "true")]
    pub no_mirror: Option<bool>,
    /// How many parts of the old store are copied at the same time [default: 4]
    #[arg(long, env = "SEGUE_PARALLEL", value_name = "N")]
    pub parallel: Option<usize>,
    /// Most keys that the backfill copies per second [default: no limit]
    #[arg(long, env = "SEGUE_RATE_KEYS", value_name = "KEYS", value_parser = number)]
    pub rate_keys: Option<u64>,
    /// Most bytes that the backfill copies per second; 8M is 8 MiB [default: no limit]
    #[arg(long, env = "SEGUE_RATE_BYTES", value_name = "BYTES", value_parser = number)]
    pub rate_bytes: Option<u64>,
    /// Do not verify by itself when the backfill is complete
    #[arg(long, env = "SEGUE_NO_AUTO_VERIFY", num_args = 0..=1, default_missing_value = "true")]
    pub no_auto_verify: Option<bool>,
    /// Carry what others change in the old store past the proxies (in etcd v2 and v3 and in existing
    /// tables) into the new one, unless the key was changed through a proxy since it was copied. Say it
    /// to all proxies
    #[arg(long, env = "SEGUE_FOLLOW", num_args = 0..=1, default_missing_value = "true")]
    pub follow: Option<bool>,
    /// Most bytes of a request that writes, as the old etcd has it; 8M is 8 MiB [default: 1572864]
    #[arg(long, env = "SEGUE_MAX_REQUEST_BYTES", value_name = "BYTES", value_parser = number)]
    pub max_request_bytes: Option<u64>,
    /// Most operations or conditions of a transaction, as the old etcd has it [default: 128]
    #[arg(long, env = "SEGUE_MAX_TXN_OPS", value_name = "N")]
    pub max_txn_ops: Option<usize>,
    /// Keys that begin with this are Segue's own and hidden from clients [default: segue/]
    #[arg(long, env = "SEGUE_RESERVED_PREFIX", value_name = "PREFIX")]
    pub reserved_prefix: Option<String>,
    /// What to log, as in `RUST_LOG` [default: info]
    #[arg(long, env = "SEGUE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// A TOML file with these settings; names as the flags, with `_` for `-`
    #[arg(long, env = "SEGUE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The same settings as a file gives them. Unknown names are errors, since a misspelt setting that
/// is silently ignored is found too late.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_field_names, reason = "named as the flags are")]
struct File {
    old: Option<String>,
    new: Option<String>,
    old_password_file: Option<PathBuf>,
    new_password_file: Option<PathBuf>,
    listen: Option<String>,
    admin: Option<String>,
    name: Option<String>,
    advertise: Option<String>,
    start: Option<String>,
    allow_nonempty: Option<bool>,
    allow_lossy: Option<bool>,
    no_mirror: Option<bool>,
    parallel: Option<usize>,
    rate_keys: Option<Amount>,
    rate_bytes: Option<Amount>,
    no_auto_verify: Option<bool>,
    follow: Option<bool>,
    max_request_bytes: Option<Amount>,
    max_txn_ops: Option<usize>,
    reserved_prefix: Option<String>,
    log: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

/// What `segue serve` does, all decided.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own, named as its flag is"
)]
#[derive(Clone, Debug)]
pub struct Config {
    /// The store that the data comes from.
    pub old: Option<StoreUrl>,
    /// The store that the data goes to.
    pub new: StoreUrl,
    /// Where the etcd API listens.
    pub listen: SocketAddr,
    /// Where the admin API listens.
    pub admin: SocketAddr,
    /// The member's name, if it is not to be its advertised URL.
    pub name: Option<String>,
    /// The client URL for the member list, if it is not to be the address listened on.
    pub advertise: Option<String>,
    /// The phase that a migration begins in.
    pub start: Phase,
    /// A new store with keys is taken.
    pub allow_nonempty: bool,
    /// Database servers that may lose commits are taken.
    pub allow_lossy: bool,
    /// The old store is fenced and follows the new one's changes.
    pub mirror: bool,
    /// Shards copied at the same time.
    pub parallel: usize,
    /// Keys per second; nothing is no limit.
    pub rate_keys: Option<u64>,
    /// Bytes per second; nothing is no limit.
    pub rate_bytes: Option<u64>,
    /// Verify once when the backfill is complete.
    pub auto_verify: bool,
    /// Carry what others change in the old store into the new one.
    pub follow: bool,
    /// What is refused for its size.
    pub limits: Limits,
    /// The prefix of reserved keys.
    pub reserved_prefix: String,
    /// The filter for logs, if one was asked for.
    pub log: Option<String>,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to serve.
    #[error(
        "the new store is missing: say --new URL (or SEGUE_NEW, or `new` in the configuration file), \
         for example --new sqlite:new.db"
    )]
    NoNew,
    /// A store's URL is not one.
    #[error("--{which}: {error}")]
    Url {
        /// `old` or `new`.
        which: &'static str,
        /// Why.
        error: UrlError,
    },
    /// An address is not one.
    #[error("--{which} {text}: not an address to listen on; write IP:PORT, for example {example}")]
    Address {
        /// `listen` or `admin`.
        which: &'static str,
        /// What was given.
        text: String,
        /// What it might look like.
        example: &'static str,
    },
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file with a password cannot be read.
    #[error("--{which}-password-file {}: the file cannot be read: {error}", path.display())]
    Password {
        /// `old` or `new`.
        which: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not one.
    #[error("the configuration file {} is wrong: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Where and why, without quoting a value.
        message: String,
    },
    /// Anything else.
    #[error("{0}")]
    Value(String),
}

impl Settings {
    /// Completes the settings from the file, if one is named, and the defaults.
    pub fn complete(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let secrets = [
            ("old", self.old_password_file.or(file.old_password_file)),
            ("new", self.new_password_file.or(file.new_password_file)),
        ];
        let [old_secret, new_secret] = secrets.map(|(which, path)| password(which, path));
        let old = self.old.or(file.old).filter(|url| !url.is_empty());
        let new = self.new.or(file.new).ok_or(ConfigError::NoNew)?;
        let old = old.map(|url| store("old", &url, old_secret?)).transpose()?;
        let reserved_prefix = self
            .reserved_prefix
            .or(file.reserved_prefix)
            .unwrap_or_else(|| "segue/".into());
        if reserved_prefix.is_empty() {
            return Err(ConfigError::Value(
                "--reserved-prefix must not be empty: it would hide every key".into(),
            ));
        }
        let parallel = self.parallel.or(file.parallel).unwrap_or(PARALLEL);
        if !(1..=64).contains(&parallel) {
            return Err(ConfigError::Value(
                "--parallel takes a number from 1 to 64".into(),
            ));
        }
        let etcds = Limits::default();
        let request_bytes = limit(
            self.max_request_bytes,
            file.max_request_bytes,
            "max_request_bytes",
        )?;
        Ok(Config {
            old,
            new: store("new", &new, new_secret?)?,
            listen: address("listen", self.listen.or(file.listen), LISTEN)?,
            admin: address("admin", self.admin.or(file.admin), ADMIN)?,
            name: self.name.or(file.name),
            advertise: self.advertise.or(file.advertise),
            start: phase(self.start.or(file.start).as_deref())?,
            allow_nonempty: self
                .allow_nonempty
                .or(file.allow_nonempty)
                .unwrap_or_default(),
            allow_lossy: self.allow_lossy.or(file.allow_lossy).unwrap_or_default(),
            mirror: !self.no_mirror.or(file.no_mirror).unwrap_or_default(),
            parallel,
            rate_keys: limit(self.rate_keys, file.rate_keys, "rate_keys")?,
            rate_bytes: limit(self.rate_bytes, file.rate_bytes, "rate_bytes")?,
            auto_verify: !self
                .no_auto_verify
                .or(file.no_auto_verify)
                .unwrap_or_default(),
            follow: self.follow.or(file.follow).unwrap_or_default(),
            limits: Limits {
                txn_ops: self
                    .max_txn_ops
                    .or(file.max_txn_ops)
                    .filter(|ops| *ops > 0)
                    .unwrap_or(etcds.txn_ops),
                request_bytes: request_bytes.map_or(etcds.request_bytes, |bytes| {
                    usize::try_from(bytes).unwrap_or(usize::MAX)
                }),
            },
            reserved_prefix,
            log: self.log.or(file.log),
        })
    }
}

impl File {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        // Only the message and the line: the offending text could hold a password.
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or(String::new(), |line| format!("line {line}: "));
            ConfigError::File {
                path: path.to_owned(),
                message: format!("{place}{}", error.message()),
            }
        })
    }
}

fn password(which: &'static str, path: Option<PathBuf>) -> Result<Option<Secret>, ConfigError> {
    let Some(path) = path else {
        let variable = format!("SEGUE_{}_PASSWORD", which.to_uppercase());
        return Ok(std::env::var(variable).ok().map(Secret::new));
    };
    match password_file(&path) {
        Ok(secret) => Ok(Some(secret)),
        Err(error) => Err(ConfigError::Password { which, path, error }),
    }
}

fn store(
    which: &'static str,
    text: &str,
    password: Option<Secret>,
) -> Result<StoreUrl, ConfigError> {
    let mut url: StoreUrl = text
        .parse()
        .map_err(|error| ConfigError::Url { which, error })?;
    if let Some(password) = password {
        url.supply_password(password);
    }
    match url.lacks_password() {
        Some(user) => Err(ConfigError::Value(format!(
            "--{which} names the user {user} and no password: give it with --{which}-password-file \
             FILE or in SEGUE_{}_PASSWORD",
            which.to_uppercase()
        ))),
        None => Ok(url),
    }
}

fn address(
    which: &'static str,
    text: Option<String>,
    default: &'static str,
) -> Result<SocketAddr, ConfigError> {
    let text = text.unwrap_or_else(|| default.to_owned());
    // What people type for "any address" and for this machine, without asking a resolver.
    let spelt = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None if text.starts_with(':') => format!("0.0.0.0{text}"),
        None => text.clone(),
    };
    spelt.parse().map_err(|_| ConfigError::Address {
        which,
        text,
        example: default,
    })
}

fn limit(flag: Option<u64>, file: Option<Amount>, name: &str) -> Result<Option<u64>, ConfigError> {
    let limit = match (flag, file) {
        (Some(number), _) | (None, Some(Amount::Number(number))) => Some(number),
        (None, Some(Amount::Text(text))) => {
            Some(number(&text).map_err(|error| ConfigError::Value(format!("{name}: {error}")))?)
        }
        (None, None) => None,
    };
    Ok(limit.filter(|limit| *limit > 0))
}

/// Reads a number that may end in k, M or G (powers of 1024).
pub fn number(text: &str) -> Result<u64, String> {
    let trimmed = text
        .trim()
        .trim_end_matches("iB")
        .trim_end_matches(['b', 'B']);
    let (digits, factor) = match trimmed.char_indices().last() {
        Some((at, 'k' | 'K')) => (&trimmed[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&trimmed[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&trimmed[..at], 1 << 30),
        _ => (trimmed, 1),
    };
    digits
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "write a whole number, for example 5000 or 8M; 0 is no limit".to_owned())
}

/// The phase that a migration begins in.
fn phase(text: Option<&str>) -> Result<Phase, ConfigError> {
    match text.unwrap_or("migration") {
        "migration" => Ok(Phase::Migration),
        "passthrough" => Ok(Phase::Passthrough),
        other => Err(ConfigError::Value(format!(
            "--start takes `migration` or `passthrough`, not {other:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(settings: Settings) -> Result<Config, String> {
        settings.complete().map_err(|error| error.to_string())
    }

    fn with_file(text: &str, settings: Settings) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        complete(Settings {
            config: Some(file.path().to_owned()),
            ..settings
        })
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = "new = 'sqlite:file.db'\nlisten = '127.0.0.1:1'\nrate_bytes = '2M'\nparallel = 2\nmax_request_bytes = '8M'";
        let config = with_file(
            file,
            Settings {
                listen: Some("127.0.0.1:7".into()),
                ..Settings::default()
            },
        )
        .unwrap();
        assert_eq!(config.new.to_string(), "sqlite:file.db");
        assert_eq!(config.listen.port(), 7);
        assert_eq!(config.admin.port(), 2381);
        assert_eq!(config.rate_bytes, Some(2 << 20));
        assert_eq!(config.parallel, 2);
        assert!(config.auto_verify && !config.allow_nonempty && config.old.is_none());
        assert!(!config.allow_lossy);
        let limits = Limits {
            request_bytes: 8 << 20,
            ..Limits::default()
        };
        assert_eq!(config.limits, limits);
    }

    #[test]
    fn wrong_settings_are_told_what_to_write() {
        let new = || Settings {
            new: Some("sqlite:x".into()),
            ..Settings::default()
        };
        let set = |change: &dyn Fn(&mut Settings)| {
            let mut settings = new();
            change(&mut settings);
            complete(settings).unwrap_err()
        };
        for (error, hint) in [
            (complete(Settings::default()).unwrap_err(), "--new URL"),
            (set(&|s| s.old = Some("x".into())), "--old: "),
            (set(&|s| s.listen = Some("x".into())), "IP:PORT"),
            (set(&|s| s.parallel = Some(0)), "1 to 64"),
            (set(&|s| s.start = Some("x".into())), "`passthrough`"),
            (set(&|s| s.reserved_prefix = Some(String::new())), "empty"),
            (
                set(&|s| s.config = Some("/no/such".into())),
                "cannot be read",
            ),
            (
                set(&|s| s.new_password_file = Some("/no/such".into())),
                "--new-password-file /no/such: the file",
            ),
            (
                set(&|s| s.old = Some("etcd://u@h".into())),
                "--old-password-file",
            ),
            (with_file("listen = 'x:1'", new()).unwrap_err(), "listen"),
            (with_file("\nlisten = 5", new()).unwrap_err(), "line 2"),
            (
                with_file("rate_keys = 'x'", new()).unwrap_err(),
                "rate_keys",
            ),
        ] {
            assert!(error.contains(hint), "{error:?} does not speak of {hint:?}");
        }
    }

    #[test]
    fn a_password_in_a_broken_file_is_not_repeated() {
        let error = with_file("new = 'etcd://u:hunter2@h:x'", Settings::default()).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        let error = with_file("new = etcd://u:hunter2@h", Settings::default()).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn numbers_may_have_a_unit() {
        for (text, value) in [("0", 0), ("500", 500), ("8k", 8192), ("2MiB", 2 << 20)] {
            assert_eq!(number(text), Ok(value), "{text}");
        }
        for text in ["", "x", "-1", "1T", "99999999999999999999", "1.5M"] {
            assert!(number(text).is_err(), "{text}");
        }
    }
}
