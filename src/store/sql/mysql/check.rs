//! Whether a server can be trusted with a store, and what an account may do there.

use std::collections::HashMap;
use std::time::Duration;

use tracing::warn;

use super::error::{Failure, code};
use super::schema::TABLES;
use super::script::Script;
use super::session::{Place, Session};
use crate::store::sql::rows::Columns as _;
use crate::store::{RequestError, Result, StoreError};

/// How long a question may take.
const WITHIN: Duration = Duration::from_secs(30);

/// Below it, Segue says that the server takes less than etcd does.
const PACKET_BYTES_ADVISED: usize = 16 << 20;

/// What a server is like.
#[derive(Clone, Debug)]
pub(super) struct Traits {
    /// MariaDB, which has other settings than MySQL.
    pub(super) mariadb: bool,
    /// Several servers that all take writes.
    pub(super) galera: bool,
    /// Longest text that it takes.
    pub(super) packet_bytes: usize,
    /// What weakens its promise that what is committed stays committed, with the remedy.
    pub(super) lossy: Vec<String>,
    /// Why it cannot be used at all.
    pub(super) unusable: Option<String>,
}

/// Asks a server what it is like.
pub(super) async fn traits(session: &mut Session) -> Result<Traits, Failure> {
    let names = [
        "version",
        "version_comment",
        "max_allowed_packet",
        "innodb_flush_log_at_trx_commit",
        "innodb_doublewrite",
        "innodb_page_size",
        "innodb_force_recovery",
        "innodb_flush_method",
        "debug_no_sync",
        "log_bin",
        "sync_binlog",
        "binlog_format",
        "read_only",
        "wsrep_on",
    ];
    let mut script = Script::of("SHOW VARIABLES WHERE Variable_name IN (");
    script
        .list(names, |script, name| {
            script.say("'").say(name).say("'");
        })
        .say(")");
    let mut variables = HashMap::new();
    for row in session.run(&script, WITHIN).await?.next()? {
        variables.insert(row.text(0)?.to_ascii_lowercase(), row.text(1)?);
    }
    Ok(Traits::of(&variables))
}

impl Traits {
    fn of(variables: &HashMap<String, String>) -> Self {
        let get = |name: &str| variables.get(name).map_or("", String::as_str);
        let on = |name: &str| matches!(get(name).to_ascii_uppercase().as_str(), "ON" | "1" | "YES");
        let differs = |name: &str, good: &[&str]| {
            variables
                .get(name)
                .is_some_and(|value| !good.iter().any(|good| value.eq_ignore_ascii_case(good)))
        };
        let mariadb = get("version").to_ascii_lowercase().contains("mariadb")
            || get("version_comment")
                .to_ascii_lowercase()
                .contains("mariadb");
        let mut lossy = Vec::new();
        let mut weak = |name: &str, why: &str, remedy: &str| {
            lossy.push(format!("{name} is {}: {why}; set {remedy}", get(name)));
        };
        // 3 is 1 with one more sync, in MariaDB.
        if differs("innodb_flush_log_at_trx_commit", &["1", "3"]) {
            weak(
                "innodb_flush_log_at_trx_commit",
                "commits of the last second are lost in a crash",
                "innodb_flush_log_at_trx_commit = 1",
            );
        }
        if differs("innodb_doublewrite", &["ON", "1", "DETECT_AND_RECOVER"]) {
            weak(
                "innodb_doublewrite",
                "a page that was being written in a crash is lost",
                "innodb_doublewrite = ON",
            );
        }
        if on("log_bin") && differs("sync_binlog", &["1"]) {
            weak(
                "sync_binlog",
                "after a crash replicas, and a restore from the binary log, lack commits or have \
                 some that the server lost",
                "sync_binlog = 1",
            );
        }
        if get("innodb_flush_method").eq_ignore_ascii_case("nosync") {
            weak(
                "innodb_flush_method",
                "nothing is synced",
                "innodb_flush_method = O_DIRECT",
            );
        }
        if on("debug_no_sync") {
            weak("debug_no_sync", "nothing is synced", "debug_no_sync = OFF");
        }
        let unusable = if let Some(needed) = too_old(get("version"), mariadb) {
            Some(format!("its version is {}: {needed}", get("version")))
        } else if on("read_only") {
            Some("it is read-only: name the primary server".to_owned())
        } else if on("log_bin") && get("binlog_format").eq_ignore_ascii_case("STATEMENT") {
            Some(
                "binlog_format is STATEMENT, with which InnoDB refuses to write under READ COMMITTED: \
                 set binlog_format = ROW, or MIXED"
                    .to_owned(),
            )
        } else if !matches!(get("innodb_force_recovery"), "" | "0") {
            Some("innodb_force_recovery is set: the server is being rescued".to_owned())
        } else if get("innodb_page_size")
            .parse()
            .is_ok_and(|size: u64| size < 16 * 1024)
        {
            Some(format!(
                "innodb_page_size is {}: keys of up to 3072 bytes need pages of 16 KiB or more",
                get("innodb_page_size")
            ))
        } else {
            None
        };
        Self {
            mariadb,
            galera: on("wsrep_on"),
            packet_bytes: get("max_allowed_packet").parse().unwrap_or(4 << 20),
            lossy,
            unusable,
        }
    }

    /// Refuses a server that cannot be used, or that may lose what it has committed unless that is
    /// allowed.
    pub(super) fn admit(&self, place: &Place, allow_lossy: bool) -> Result<()> {
        if let Some(why) = &self.unusable {
            return Err(StoreError::Broken(format!("{place}: {why}")));
        }
        if !self.lossy.is_empty() {
            let why = self.lossy.join("; ");
            if !allow_lossy {
                let told = format!(
                    "{place} may lose what it has committed, and a store that comes back with older \
                     revisions misleads its clients: {why}; or accept this with --allow-lossy"
                );
                return Err(RequestError::Unacceptable(told).into());
            }
            warn!("{place} may lose what it has committed: {why}");
        }
        if self.packet_bytes < PACKET_BYTES_ADVISED {
            warn!(
                "{place}: max_allowed_packet is {}, so values of more than {} bytes are refused; \
                 16M is enough for all that etcd takes by default",
                self.packet_bytes,
                super::value_bytes_max(self.packet_bytes)
            );
        }
        Ok(())
    }
}

/// Tries, without doing anything, whether the account may do with the tables what it has to.
pub(super) async fn privileges(session: &mut Session, p: &str) -> Result<(), Failure> {
    let mut script = Script::of("START TRANSACTION");
    for table in TABLES {
        let column = match table {
            "head" => "one",
            "kv" | "log" | "record" => "version",
            "lease" => "ttl_s",
            "leased" => "lease",
            _ => "batch",
        };
        for text in [
            format!("SELECT 1 FROM {p}{table} WHERE 1 = 0"),
            format!("INSERT INTO {p}{table} SELECT * FROM {p}{table} WHERE 1 = 0"),
            format!("UPDATE {p}{table} SET {column} = 0 WHERE 1 = 0"),
            format!("DELETE FROM {p}{table} WHERE 1 = 0"),
        ] {
            script.next(&text);
        }
    }
    script.next("ROLLBACK");
    session.run(&script, WITHIN).await.map(drop)
}

/// A failure while the store is opened, with what to do about it.
pub(super) async fn told(
    failure: Failure,
    session: &mut Session,
    database: &str,
    place: &Place,
) -> StoreError {
    let Failure::Refused(code::TABLE_ACCESS_DENIED | code::DATABASE_ACCESS_DENIED, why) = &failure
    else {
        return failure.not_done(place);
    };
    let whom = Script::of("SELECT CURRENT_USER()");
    let account = match session.run(&whom, WITHIN).await {
        Ok(mut sets) => sets.first().ok().flatten(),
        Err(_) => None,
    };
    let account = account.and_then(|row| row.text(0).ok()).unwrap_or_default();
    let (user, host) = account.rsplit_once('@').unwrap_or((&account, "%"));
    let lacks = match why.split_once(" command denied") {
        Some((right, _)) => format!("the account lacks the right {right}"),
        None => why.clone(),
    };
    RequestError::Credentials(format!(
        "{place}: {lacks}; have an administrator run: GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON \
         `{database}`.* TO '{user}'@'{host}'"
    ))
    .into()
}

/// What is needed instead of a server of this version, if it is too old: it would fail at the first statement
/// with a window function. Others that speak the protocol count otherwise.
fn too_old(version: &str, mariadb: bool) -> Option<&'static str> {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let version_is = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    match mariadb {
        true if version_is < (10, 2) => Some("Segue needs MariaDB 10.2 or later"),
        false if version_is < (8, 0) && !version.contains("TiDB") => {
            Some("Segue needs MySQL 8.0 or later")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Traits {
        let sound = [
            ("version", "10.11.19-MariaDB"),
            ("max_allowed_packet", "16777216"),
            ("innodb_flush_log_at_trx_commit", "1"),
            ("innodb_doublewrite", "ON"),
            ("innodb_page_size", "16384"),
            ("innodb_force_recovery", "0"),
            ("log_bin", "OFF"),
            ("sync_binlog", "0"),
            ("read_only", "OFF"),
        ];
        let all = sound.iter().chain(variables);
        let all = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Traits::of(&all.collect())
    }

    #[test]
    fn settings_that_lose_commits_are_named_with_their_remedy() {
        for (variables, remedy) in [
            (&[][..], None),
            (&[("innodb_flush_log_at_trx_commit", "3")], None),
            (&[("innodb_doublewrite", "DETECT_AND_RECOVER")], None),
            (&[("log_bin", "ON"), ("sync_binlog", "1")], None),
            (
                &[("innodb_flush_log_at_trx_commit", "0")],
                Some("innodb_flush_log_at_trx_commit = 1"),
            ),
            (
                &[("innodb_doublewrite", "DETECT_ONLY")],
                Some("innodb_doublewrite = ON"),
            ),
            (&[("log_bin", "ON")], Some("sync_binlog = 1")),
            (&[("innodb_flush_method", "nosync")], Some("O_DIRECT")),
            (&[("debug_no_sync", "ON")], Some("debug_no_sync = OFF")),
        ] {
            let lossy = of(variables).lossy;
            let told = lossy.join("; ");
            match remedy {
                None => assert_eq!(told, "", "{variables:?}"),
                Some(remedy) => assert!(told.contains(remedy), "{variables:?}: {told}"),
            }
        }
    }

    #[test]
    fn servers_that_cannot_be_used_are_told_why() {
        for (variables, why) in [
            (&[("version", "5.7.44-log")][..], "MySQL 8.0"),
            (&[("version", "10.1.48-MariaDB")], "MariaDB 10.2"),
            (&[("read_only", "ON")], "primary"),
            (
                &[("log_bin", "ON"), ("binlog_format", "STATEMENT")],
                "binlog_format = ROW",
            ),
            (&[("innodb_force_recovery", "1")], "rescued"),
            (&[("innodb_page_size", "8192")], "16 KiB"),
        ] {
            let told = of(variables).unusable.unwrap();
            assert!(told.contains(why), "{variables:?}: {told}");
        }
        for good in [
            "8.0.11",
            "10.2.8-MariaDB",
            "11.4.2-MariaDB-log",
            "5.7.25-TiDB-v7.1.0",
            "?",
        ] {
            assert_eq!(of(&[("version", good)]).unusable, None, "{good}");
        }
        assert_eq!(of(&[("binlog_format", "STATEMENT")]).unusable, None);
    }
}
