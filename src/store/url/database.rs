//! A database on a PostgreSQL, MySQL or MariaDB server.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::parameters::Parameters;
use super::table::{self, Columns};
use super::{Account, UrlError, host, parse_account};

/// What the names of Segue's tables begin with unless told otherwise.
pub const PREFIX: &str = "segue_";

/// The schema that Segue makes in a PostgreSQL database unless told otherwise.
pub const SCHEMA: &str = "segue";

/// Longest prefix or schema: the names of tables and indexes have to stay below PostgreSQL's 63
/// bytes, and those behind the prefix are at most 24 long.
const NAME_BYTES_MAX: usize = 32;

/// Where a database is, how to get in, and which part of it is Segue's.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    /// The server.
    pub host: Host,
    /// Its port; part of the socket's name for PostgreSQL, without meaning for a socket of MySQL.
    pub port: u16,
    /// The account. A user without a password may be let in by other means.
    pub account: Account,
    /// The database's name.
    pub name: String,
    /// The schema that Segue's tables are in (PostgreSQL only): letters, digits and `_`.
    pub schema: String,
    /// What the names of Segue's tables begin with: letters, digits and `_`.
    pub prefix: String,
    /// Whether and how the connection is encrypted.
    pub tls: Tls,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address, IPv6 without brackets.
    Name(String),
    /// On this machine: the directory of the sockets (PostgreSQL), or the socket (MySQL).
    Socket(PathBuf),
}

/// Whether a connection is encrypted. One that is encrypted is always verified as well: whoever can
/// read it can also answer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// It is not.
    Off,
    /// It is, and the server's certificate has to be for its name and from an authority in this
    /// file (PEM), or, if there is none, from one that the system trusts.
    Verify(Option<PathBuf>),
}

/// What one kind of database has differently from the other.
pub(super) struct Kind {
    scheme: &'static str,
    port: u16,
    parameters: &'static [&'static str],
    /// The parameter with the path of a socket.
    socket: &'static str,
    mode: &'static str,
    off: &'static str,
    verify: &'static str,
    /// Modes that exist and protect from less.
    weak: &'static [&'static str],
    root: &'static str,
    schemas: bool,
}

pub(super) const POSTGRES: Kind = Kind {
    scheme: "postgres",
    port: 5432,
    parameters: &["schema", "prefix", "sslmode", "sslrootcert", "host"],
    socket: "host",
    mode: "sslmode",
    off: "disable",
    verify: "verify-full",
    weak: &["allow", "prefer", "require", "verify-ca"],
    root: "sslrootcert",
    schemas: true,
};

pub(super) const MYSQL: Kind = Kind {
    scheme: "mysql",
    port: 3306,
    parameters: &["prefix", "ssl-mode", "ssl-ca", "socket"],
    socket: "socket",
    mode: "ssl-mode",
    off: "DISABLED",
    verify: "VERIFY_IDENTITY",
    weak: &["PREFERRED", "REQUIRED", "VERIFY_CA"],
    root: "ssl-ca",
    schemas: false,
};

/// Reads what follows the `scheme:`.
pub(super) fn parse(
    kind: &Kind,
    authority: Option<&str>,
) -> Result<(Database, Option<Columns>), UrlError> {
    let wrong = |what| UrlError::Database {
        scheme: kind.scheme,
        what,
    };
    let authority = authority.ok_or_else(|| wrong("there is no `//` behind its `:`"))?;
    let (place, parameters) = match authority.split_once('?') {
        Some((place, parameters)) => (place, Some(parameters)),
        None => (authority, None),
    };
    // The last `@`, since passwords are often written down without encoding them.
    let (account, place) = place
        .rsplit_once('@')
        .ok_or_else(|| wrong("the user is missing"))?;
    let account = parse_account(kind.scheme, account)?;
    let (server, name) = place
        .split_once('/')
        .filter(|(_, name)| !name.is_empty())
        .ok_or_else(|| wrong("the database is missing"))?;
    let name = decode(name)
        .filter(|name| !name.contains('\0'))
        .ok_or_else(|| wrong("its database's name is not UTF-8 once its %XX are decoded"))?;
    let mut parameters = Parameters::parse(kind.scheme, parameters, kind.parameters)?;
    let (host, port) = server_of(kind, server, &mut parameters)?;
    let tls = tls_of(kind, &host, &mut parameters)?;
    let segues = ["schema", "prefix"].map(|name| parameters.has(name));
    let columns = table::parse(&mut parameters)?;
    if columns.is_some() && segues.contains(&true) {
        return Err(UrlError::Parameter(format!(
            "schema= and prefix= in the {} URL are about Segue's own tables, and table= about one that \
             is not: write table=SCHEMA.TABLE for a table in a schema",
            kind.scheme
        )));
    }
    let schema = if kind.schemas { SCHEMA } else { "" };
    let database = Database {
        host,
        port,
        account,
        name,
        schema: own_name("schema", schema, &mut parameters)?,
        prefix: own_name("prefix", PREFIX, &mut parameters)?,
        tls,
    };
    Ok((database, columns))
}

fn decode(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

fn server_of(
    kind: &Kind,
    text: &str,
    parameters: &mut Parameters,
) -> Result<(Host, u16), UrlError> {
    let wrong = |what| UrlError::Database {
        scheme: kind.scheme,
        what,
    };
    let socket = parameters.take(kind.socket)?;
    // postgres://user@%2Frun%2Fpostgresql/db, as PostgreSQL's own programs take it.
    let in_place = || match text.split_once(':') {
        Some((path, port)) => (path, Some(port)),
        None => (text, None),
    };
    if let Some(path) = socket {
        if !path.starts_with('/') {
            return Err(UrlError::Parameter(format!(
                "`{}=` in the {} URL is for a socket, an absolute path: write a host behind the `@`",
                kind.socket, kind.scheme
            )));
        }
        // Some host has to stand in the URLs of many programs; only this one is not contradicted.
        let port = match text {
            "" | "localhost" => kind.port,
            text => match host::parse(text).map_err(wrong)? {
                (host, port) if host == "localhost" => port.unwrap_or(kind.port),
                _ => return Err(wrong("it names both a host and a socket")),
            },
        };
        return Ok((Host::Socket(path.into()), port));
    }
    let (path, port) = in_place();
    if path.to_ascii_lowercase().starts_with("%2f") {
        let path = decode(path).ok_or_else(|| wrong("its socket's path is not UTF-8"))?;
        let port = match port.map(str::parse) {
            None => kind.port,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err(wrong("its port is not a number from 1 to 65535")),
        };
        return Ok((Host::Socket(path.into()), port));
    }
    if text.contains(',') {
        return Err(wrong("it names more than one host"));
    }
    let (name, port) = host::parse(text).map_err(wrong)?;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    Ok((Host::Name(name.to_owned()), port.unwrap_or(kind.port)))
}

fn tls_of(kind: &Kind, host: &Host, parameters: &mut Parameters) -> Result<Tls, UrlError> {
    let root = parameters.take(kind.root)?;
    let mode = parameters.take(kind.mode)?;
    let is = |text: &str, mode: &str| text.eq_ignore_ascii_case(mode);
    let wrong = |what: String| Err(UrlError::Parameter(what));
    let Kind {
        mode: name,
        off,
        verify,
        ..
    } = *kind;
    // What PostgreSQL's own programs call the system's authorities.
    let roots = |root: Option<String>| root.filter(|root| root != "system").map(PathBuf::from);
    match mode {
        None if root.is_none() && host.is_local() => Ok(Tls::Off),
        Some(mode) if is(&mode, off) => match root {
            None => Ok(Tls::Off),
            Some(_) => wrong(format!(
                "{}= has no use with {name}={off}: leave one of them out",
                kind.root
            )),
        },
        Some(mode) if kind.weak.iter().any(|weak| is(&mode, weak)) => wrong(format!(
            "{name}={mode} does not make sure that it is the right server that answers: write \
             {name}={verify} (with {}=PATH if its certificate is not from an authority that the system \
             trusts), or {name}={off} for no encryption at all",
            kind.root
        )),
        Some(mode) if !is(&mode, verify) => wrong(format!(
            "{name}= takes {verify} or {off} in the {} URL",
            kind.scheme
        )),
        None | Some(_) if matches!(host, Host::Socket(_)) => wrong(format!(
            "a socket's connection does not leave the machine and has no TLS: leave out {name}= and {}=",
            kind.root
        )),
        None | Some(_) => Ok(Tls::Verify(roots(root))),
    }
}

/// A name that goes into statements, so of characters only that need no thought there.
fn own_name(name: &str, default: &str, parameters: &mut Parameters) -> Result<String, UrlError> {
    let Some(text) = parameters.take(name)? else {
        return Ok(default.to_owned());
    };
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if text.bytes().all(good)
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text.len() <= NAME_BYTES_MAX
    {
        Ok(text)
    } else {
        Err(UrlError::Parameter(format!(
            "`{name}=` in the {} URL takes up to {NAME_BYTES_MAX} lower-case letters, digits and `_`, and \
             no digit first",
            parameters.scheme()
        )))
    }
}

impl Host {
    /// Whether what is sent there does not leave this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Name(name) => {
                name.eq_ignore_ascii_case("localhost")
                    || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl Database {
    /// Whether both are seen to be the same tables, whoever asks for them and however. What is not
    /// seen here, the stores' identities tell.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        let place = |of: &Self| {
            (
                of.host.clone(),
                of.port,
                of.name.clone(),
                of.schema.clone(),
                of.prefix.clone(),
            )
        };
        place(self) == place(other)
    }

    /// Shows the URL without the password, with what is not as it would be by itself.
    pub(super) fn show(
        &self,
        kind: &Kind,
        columns: Option<&Columns>,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        write!(f, "{}://{}@", kind.scheme, encoded(&self.account.user))?;
        let mut parameters = Vec::new();
        let mut name = |name: &str, value: &str| parameters.push(format!("{name}={value}"));
        match &self.host {
            Host::Name(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port)?,
            Host::Name(name) => write!(f, "{name}:{}", self.port)?,
            Host::Socket(path) => {
                if self.port != kind.port {
                    write!(f, "localhost:{}", self.port)?;
                }
                name(kind.socket, &encoded_path(path));
            }
        }
        if kind.schemas && self.schema != SCHEMA {
            name("schema", &self.schema);
        }
        if self.prefix != PREFIX {
            name("prefix", &self.prefix);
        }
        match &self.tls {
            Tls::Off if !self.host.is_local() => name(kind.mode, kind.off),
            Tls::Verify(None) if self.host.is_local() => name(kind.mode, kind.verify),
            Tls::Verify(Some(path)) => name(kind.root, &encoded_path(path)),
            Tls::Off | Tls::Verify(None) => {}
        }
        if let Some(columns) = columns {
            parameters.push(columns.to_string());
        }
        write!(f, "/{}", encoded(&self.name))?;
        if !parameters.is_empty() {
            write!(f, "?{}", parameters.join("&"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{:?}:{}/", self.account, self.host, self.port)?;
        write!(f, "{} ({}.{}*, ", self.name, self.schema, self.prefix)?;
        write!(f, "{:?})", self.tls)
    }
}

/// Everything but what stands in names for itself.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-').remove(b'~');

/// Everything but what stands in paths for itself.
const PLAIN_PATH: &AsciiSet = &PLAIN.remove(b'/').remove(b'.');

/// A name as it is written in a URL. A `.` or `,` in it is none that takes a parameter apart.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

fn encoded_path(path: &Path) -> String {
    utf8_percent_encode(&path.to_string_lossy(), PLAIN_PATH).to_string()
}
