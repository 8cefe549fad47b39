//! The members of an etcd cluster.

use std::fmt;

use super::{Account, UrlError, host, parse_account};

/// The port of an etcd that none is given for.
const PORT: u16 = 2379;

/// The members of an etcd cluster, and the account to use there.
#[derive(Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `HOST:PORT` of each member that was named, at least one, IPv6 addresses in brackets.
    pub hosts: Vec<String>,
    /// The account, if one was named.
    pub account: Option<Account>,
}

pub(super) fn parse(scheme: &'static str, authority: Option<&str>) -> Result<Cluster, UrlError> {
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
        .map(|(index, text)| match host::parse(text) {
            Ok((name, port)) => Ok(format!("{name}:{}", port.unwrap_or(PORT))),
            Err(what) => Err(UrlError::Host {
                scheme,
                number: index + 1,
                what,
            }),
        })
        .collect::<Result<_, _>>()?;
    Ok(Cluster { hosts, account })
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
