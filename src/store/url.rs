//! Where a store is: the URLs that operators write, with what is secret in them kept secret.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// The port of an etcd that none is given for.
const ETCD_PORT: u16 = 2379;

/// What a right URL looks like, for every error about a wrong one.
const EXAMPLES: &str = "write one of: \
    sqlite:PATH · etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…] (etcd v3) · \
    etcd2://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…] (etcd v2 keys API) · memory:";

/// Where a store is and how to get in. Shows itself without the password.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// In this process; gone when it ends.
    Memory,
    /// A file.
    Sqlite(PathBuf),
    /// etcd, over the v3 API.
    Etcd(Cluster),
    /// etcd, over the v2 HTTP keys API.
    Etcd2(Cluster),
}

/// The members of an etcd cluster, and the account to use there.
#[derive(Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `HOST:PORT` of each member that was named, at least one, IPv6 addresses in brackets.
    pub hosts: Vec<String>,
    /// The account, if one was named.
    pub account: Option<Account>,
}

/// A user name and what proves it.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// The user name.
    pub user: String,
    /// The password, if it is known yet; see [`StoreUrl::supply_password`].
    pub password: Option<Secret>,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it to the store.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What is wrong with a URL. Never quotes what might be a password in the wrong place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It begins with nothing that is known.
    #[error("this is not the URL of a store: {EXAMPLES}")]
    Scheme,
    /// It is the address of something, but does not say what.
    #[error(
        "`{0}` does not say how to talk to the store: write etcd://HOST:PORT for the v3 API of etcd, \
         or etcd2://HOST:PORT for its v2 keys API"
    )]
    Ambiguous(&'static str),
    /// A kind of store that is planned.
    #[error("{0} is not supported by this version yet: {EXAMPLES}")]
    NotYet(&'static str),
    /// No file is named.
    #[error(
        "a file is missing behind `sqlite:`: write sqlite:PATH, for example sqlite:/var/lib/segue/new.db"
    )]
    NoPath,
    /// `SQLite` in memory would be lost with each connection.
    #[error("SQLite is only used with a file: write sqlite:PATH, or memory: for a store in memory")]
    SqliteInMemory,
    /// No host is named.
    #[error("a host is missing: write {0}://HOST:PORT, for example {0}://10.0.0.1:2379")]
    NoHost(&'static str),
    /// A host is not one.
    #[error(
        "host {number} of the {scheme}:// URL is wrong, {what}: write {scheme}://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]"
    )]
    Host {
        /// Of which kind of URL.
        scheme: &'static str,
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Something follows the hosts.
    #[error("nothing may follow the hosts of a {0}:// URL (no path, no parameters)")]
    Trailing(&'static str),
    /// A user name is not text when decoded.
    #[error("the user name or password in the {0}:// URL is not UTF-8 once its %XX are decoded")]
    Encoding(&'static str),
    /// A password, but for whom?
    #[error("the {0}:// URL has an empty user name in front of the `@`")]
    NoUser(&'static str),
}

impl FromStr for StoreUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once(':').ok_or(UrlError::Scheme)?;
        let authority = rest.strip_prefix("//");
        match scheme.to_ascii_lowercase().as_str() {
            "memory" if matches!(rest, "" | "//") => Ok(Self::Memory),
            "sqlite" => sqlite(authority.unwrap_or(rest)).map(Self::Sqlite),
            "etcd" => cluster("etcd", authority).map(Self::Etcd),
            "etcd2" => cluster("etcd2", authority).map(Self::Etcd2),
            "http" => Err(UrlError::Ambiguous("http://")),
            "https" => Err(UrlError::NotYet("TLS towards a store")),
            "postgres" | "postgresql" => Err(UrlError::NotYet("PostgreSQL (postgres://)")),
            "mysql" | "mariadb" => Err(UrlError::NotYet("MySQL (mysql://)")),
            _ => Err(UrlError::Scheme),
        }
    }
}

impl StoreUrl {
    /// The account that the URL names.
    #[must_use]
    pub fn account(&self) -> Option<&Account> {
        match self {
            Self::Memory | Self::Sqlite(_) => None,
            Self::Etcd(cluster) | Self::Etcd2(cluster) => cluster.account.as_ref(),
        }
    }

    /// Sets the password that came some other way than in the URL (which other users of the machine
    /// can see in the list of processes), if the URL names a user and no password.
    pub fn supply_password(&mut self, password: Secret) {
        if let Self::Etcd(cluster) | Self::Etcd2(cluster) = self
            && let Some(account) = &mut cluster.account
            && account.password.is_none()
        {
            account.password = Some(password);
        }
    }

    /// The user who has no password yet.
    #[must_use]
    pub fn lacks_password(&self) -> Option<&str> {
        self.account()
            .filter(|account| account.password.is_none())
            .map(|account| account.user.as_str())
    }
}

/// Reads a password from a file: its first line.
pub fn password_file(path: &Path) -> std::io::Result<Secret> {
    let text = std::fs::read_to_string(path)?;
    Ok(Secret::new(text.lines().next().unwrap_or_default()))
}

fn sqlite(path: &str) -> Result<PathBuf, UrlError> {
    match path {
        "" => Err(UrlError::NoPath),
        ":memory:" => Err(UrlError::SqliteInMemory),
        path => Ok(path.into()),
    }
}

fn cluster(scheme: &'static str, authority: Option<&str>) -> Result<Cluster, UrlError> {
    let authority = authority.ok_or(UrlError::NoHost(scheme))?;
    // The last `@`, since passwords are often written down without encoding them.
    let (account, hosts) = match authority.rsplit_once('@') {
        Some((account, hosts)) => (Some(parse_account(scheme, account)?), hosts),
        None => (None, authority),
    };
    let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
    if hosts.is_empty() {
        return Err(UrlError::NoHost(scheme));
    }
    if hosts.contains(['/', '?', '#']) {
        return Err(UrlError::Trailing(scheme));
    }
    let hosts = hosts
        .split(',')
        .enumerate()
        .map(|(index, text)| {
            parse_host(text).map_err(|what| UrlError::Host {
                scheme,
                number: index + 1,
                what,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Cluster { hosts, account })
}

fn parse_account(scheme: &'static str, text: &str) -> Result<Account, UrlError> {
    let decode = |part: &str| {
        percent_decode_str(part)
            .decode_utf8()
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| UrlError::Encoding(scheme))
    };
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    if user.is_empty() {
        return Err(UrlError::NoUser(scheme));
    }
    let password = decode(password)?;
    Ok(Account {
        user: decode(user)?,
        password: (!password.is_empty()).then(|| Secret::new(password)),
    })
}

/// A host with its port, which may be left out.
fn parse_host(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let (name, port) = match text.rsplit_once(':') {
        // A colon within brackets belongs to an IPv6 address.
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let address = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match address {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_err() => {
            return Err("an IPv6 address stands in the brackets of [ADDRESS]:PORT");
        }
        None if name.is_empty() => return Err("its name is missing"),
        None if name.contains(':') => return Err("an IPv6 address needs brackets: [ADDRESS]:PORT"),
        None if !name.chars().all(is_name) => {
            return Err("its name has characters that no host has");
        }
        Some(_) | None => {}
    }
    let port = match port {
        None => ETCD_PORT,
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err("its port is not a number from 1 to 65535"),
            Ok(port) => port,
        },
    };
    Ok(format!("{name}:{port}"))
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Etcd(cluster) => write!(f, "etcd://{cluster}"),
            Self::Etcd2(cluster) => write!(f, "etcd2://{cluster}"),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(account) = &self.account {
            write!(f, "{}@", account.user)?;
        }
        f.write_str(&self.hosts.join(","))
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(hosts: &[&str], account: Option<(&str, Option<&str>)>) -> Cluster {
        Cluster {
            hosts: hosts.iter().map(ToString::to_string).collect(),
            account: account.map(|(user, password)| Account {
                user: user.into(),
                password: password.map(Secret::new),
            }),
        }
    }

    #[test]
    fn right_urls_are_read() {
        use StoreUrl::{Etcd, Etcd2, Memory, Sqlite};
        for (text, url, shown) in [
            ("memory:", Memory, "memory:"),
            ("sqlite:new.db", Sqlite("new.db".into()), "sqlite:new.db"),
            ("sqlite:///var/x", Sqlite("/var/x".into()), "sqlite:/var/x"),
            ("sqlite:a b@c:d", Sqlite("a b@c:d".into()), "sqlite:a b@c:d"),
            (
                "etcd://h1:1,h2:2/",
                Etcd(etcd(&["h1:1", "h2:2"], None)),
                "etcd://h1:1,h2:2",
            ),
            (
                "ETCD2://h",
                Etcd2(etcd(&["h:2379"], None)),
                "etcd2://h:2379",
            ),
            (
                "etcd://[::1],[::2]:9",
                Etcd(etcd(&["[::1]:2379", "[::2]:9"], None)),
                "etcd://[::1]:2379,[::2]:9",
            ),
            (
                "etcd2://root:pa%40ss:w@rd/x@h:1",
                Etcd2(etcd(&["h:1"], Some(("root", Some("pa@ss:w@rd/x"))))),
                "etcd2://root@h:1",
            ),
            (
                "etcd://root:@h:1",
                Etcd(etcd(&["h:1"], Some(("root", None)))),
                "etcd://root@h:1",
            ),
        ] {
            let parsed: StoreUrl = text.parse().unwrap();
            assert_eq!(parsed, url, "{text}");
            assert_eq!(parsed.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn wrong_urls_are_told_what_to_write() {
        for (text, hint) in [
            ("", "write one of"),
            ("localhost:2379", "write one of"),
            ("memory:x", "write one of"),
            ("http://h:2379", "etcd2://HOST:PORT"),
            ("https://h:2379", "not supported by this version yet"),
            ("postgres://h/db", "not supported by this version yet"),
            ("mysql://h/db", "not supported by this version yet"),
            ("sqlite:", "sqlite:PATH"),
            ("sqlite::memory:", "memory:"),
            ("etcd:h:1", "etcd://HOST:PORT"),
            ("etcd://", "a host is missing"),
            ("etcd://u:p@", "a host is missing"),
            ("etcd://h:1,", "host 2"),
            ("etcd://h:0", "port"),
            ("etcd://h:99999", "port"),
            ("etcd://::1", "brackets"),
            ("etcd://[h]:1", "brackets"),
            ("etcd://h x:1", "characters"),
            ("etcd2://h:1/v2/keys", "nothing may follow"),
            ("etcd2://h:1?x=y", "nothing may follow"),
            ("etcd://:p@h", "empty user name"),
            ("etcd://%ff:p@h", "UTF-8"),
        ] {
            let complaint = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(complaint.contains(hint), "{text}: {complaint}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for text in [
            "etcd://root:hunter2@h:1",
            "etcd2://root:hunter2@h:1,",
            "etcd://root:hunter2",
            "etcd://hunter2@:x",
            "etcd2://:hunter2@h",
            "hunter2://h",
            "root:hunter2@h:2379",
            "etcd:root:hunter2@h",
            "etcd://root:hunter2%ff@h",
            "http://root:hunter2@h",
            "postgres://root:hunter2@h",
        ] {
            let parsed = text.parse::<StoreUrl>();
            let shown = match &parsed {
                Ok(url) => format!("{url} {url:?} {:?} {:#?}", url.account(), parsed),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!shown.contains("hunter2"), "{text}: {shown}");
        }
    }

    #[test]
    fn a_password_from_elsewhere_goes_where_one_is_missing() {
        for (text, lacks, password) in [
            ("etcd://root:@h", Some("root"), Some("given")),
            ("etcd2://root@h", Some("root"), Some("given")),
            ("etcd2://root:own@h", None, Some("own")),
            ("etcd2://h", None, None),
            ("sqlite:x", None, None),
        ] {
            let mut url: StoreUrl = text.parse().unwrap();
            assert_eq!(url.lacks_password(), lacks, "{text}");
            url.supply_password(Secret::new("given"));
            let now = url.account().and_then(|a| a.password.as_ref());
            assert_eq!(now.map(Secret::expose), password, "{text}");
        }
    }

    #[test]
    fn a_password_file_ends_at_its_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "hunter2\n").unwrap();
        assert_eq!(password_file(&path).unwrap().expose(), "hunter2");
        assert!(password_file(&dir.path().join("none")).is_err());
    }
}
