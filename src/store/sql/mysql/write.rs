//! Writing a batch: its changes as statements.

use std::collections::HashMap;

use super::schema::hash;
use super::script::{Script, Scripts};
use super::text::{NOW_MS, TOGETHER};
use crate::store::sql::backend::{Changes, Head, LogEntry, LogKind, Logged, Over, Row, Written};
use crate::store::sql::tables::{self, log_kind};
use crate::types::Revision;

/// Entries in one statement that deletes them, which is slow to plan.
const ENTRIES_TOGETHER: usize = 64;

/// A batch as it is noted down with its changes, so that one whose connection breaks in the commit
/// can look whether it happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Who wrote it.
    pub(super) process: i64,
    /// Its number, higher than that of the one before.
    pub(super) batch: i64,
}

/// The statements that write `changes` over `before` and commit.
pub(super) fn write(
    p: &str,
    changes: &Changes,
    before: &Head,
    mark: Mark,
    packet_full: usize,
) -> Vec<Script> {
    let mut scripts = Scripts::new(packet_full);
    write_log(&mut scripts, p, &changes.log);
    write_rows(&mut scripts, p, changes, before);
    attach(&mut scripts, p, changes);
    if changes.renew_leases {
        let script = scripts.next(&format!(
            "UPDATE {p}lease SET deadline_ms = ttl_s * 1000 + "
        ));
        script.int(changes.head.at_ms);
    }
    scripts.rows(
        &format!("INSERT INTO {p}lease (id, ttl_s, deadline_ms) VALUES "),
        &changes.leases,
        " ON DUPLICATE KEY UPDATE ttl_s = VALUES(ttl_s), deadline_ms = VALUES(deadline_ms)",
        |script, lease| {
            ints(
                script.say("("),
                &[lease.id.0, lease.ttl_s, lease.deadline_ms],
            )
            .say(")");
        },
    );
    for ids in changes.dropped_leases.chunks(TOGETHER) {
        scripts.rows(
            &format!("DELETE FROM {p}lease WHERE id IN ("),
            ids,
            ")",
            |script, id| {
                script.int(id.0);
            },
        );
    }
    scripts.rows(
        &format!("INSERT INTO {p}record (name, value, version) VALUES "),
        &changes.records,
        " ON DUPLICATE KEY UPDATE value = VALUES(value), version = VALUES(version)",
        |script, record| {
            script.say("(").bytes(record.name.as_bytes()).say(", ");
            script.bytes(&record.value).say(", ");
            script.int(record.version).say(")");
        },
    );
    for names in changes.dropped_records.chunks(TOGETHER) {
        scripts.rows(
            &format!("DELETE FROM {p}record WHERE name IN ("),
            names,
            ")",
            |script, name| {
                script.bytes(name.as_bytes());
            },
        );
    }
    set_head(&mut scripts, p, &changes.head, before);
    note(scripts.next(""), p, mark);
    let mut scripts = scripts.finish();
    // With the last statements, so that it is sent with them.
    if let Some(last) = scripts.last_mut() {
        last.next("COMMIT");
    }
    scripts
}

/// Notes that a process was here, and which batch was its last.
pub(super) fn note(script: &mut Script, p: &str, mark: Mark) {
    script.say(&format!(
        "INSERT INTO {p}process (id, batch, seen_ms) VALUES ("
    ));
    ints(script, &[mark.process, mark.batch]);
    script.say(&format!(
        ", {NOW_MS}) ON DUPLICATE KEY UPDATE batch = VALUES(batch), seen_ms = VALUES(seen_ms)"
    ));
}

/// Rows that are as an entry of the same batch has them.
struct AsLogged {
    /// There are some.
    any: bool,
    /// Those of all entries that wrote a key in this batch, but for these, which have these numbers in it: they
    /// were superseded within the batch.
    but: Vec<i64>,
}

impl AsLogged {
    /// Tells them from the others. What the batch finds has revisions up to `before`.
    fn of(changes: &Changes, before: Revision) -> (Self, Vec<&Row>) {
        let mut last = HashMap::with_capacity(changes.log.len());
        let mut but = Vec::new();
        for (entry, number) in changes.log.iter().zip(0i64..) {
            if entry.kind == LogKind::Put && entry.kv.mod_revision > before {
                but.extend(
                    last.insert(&entry.kv.key, (entry, number))
                        .map(|(_, at)| at),
                );
            }
        }
        let mut others = Vec::new();
        let mut any = false;
        for Written { row, .. } in &changes.rows {
            let is_entry = |(entry, _): &(&LogEntry, i64)| {
                row.live && row.logged == Logged::Yes && entry.kv == row.kv
            };
            if last.get(&row.kv.key).is_some_and(is_entry) {
                last.remove(&row.kv.key);
                any = true;
            } else {
                others.push(row);
            }
        }
        but.extend(last.into_values().map(|(_, number)| number));
        but.sort_unstable();
        if but.len() > TOGETHER {
            let rows = changes.rows.iter().map(|written| &written.row).collect();
            let none = Self {
                any: false,
                but: Vec::new(),
            };
            return (none, rows);
        }
        (Self { any, but }, others)
    }
}

/// Writes the rows, behind the log: most of them are as their entry in it, so the server makes them of
/// that, and reads keys and values once.
fn write_rows(scripts: &mut Scripts, p: &str, changes: &Changes, before: &Head) {
    const COLUMNS: &str =
        "(`key`, create_revision, mod_revision, version, lease, live, logged, value)";
    const OVER: &str = " ON DUPLICATE KEY UPDATE create_revision = VALUES(create_revision), \
                        mod_revision = VALUES(mod_revision), version = VALUES(version), \
                        lease = VALUES(lease), live = VALUES(live), logged = VALUES(logged), \
                        value = VALUES(value)";
    let (as_logged, others) = AsLogged::of(changes, before.revision);
    if as_logged.any {
        let script = scripts.next(&format!(
            "INSERT INTO {p}kv {COLUMNS} SELECT `key`, create_revision, revision, version, lease, 1, {}, \
             value FROM {p}log FORCE INDEX (PRIMARY) WHERE revision > ",
            tables::logged(Logged::Yes)
        ));
        script.int(before.revision.0);
        script.say(" AND kind = ").int(log_kind::PUT);
        if !as_logged.but.is_empty() {
            script.say(" AND seq NOT IN (");
            ints(script, &as_logged.but).say(")");
        }
        script.say(OVER);
    }
    scripts.rows(
        &format!("INSERT INTO {p}kv {COLUMNS} VALUES "),
        others,
        OVER,
        |script, Row { kv, live, logged }| {
            script.say("(").bytes(&kv.key).say(", ");
            let numbers = [
                kv.create_revision.0,
                kv.mod_revision.0,
                kv.version,
                kv.lease.0,
                i64::from(*live),
                i64::from(tables::logged(*logged)),
            ];
            ints(script, &numbers).say(", ");
            script.maybe_bytes(live.then_some(&kv.value)).say(")");
        },
    );
    for keys in changes.removed.chunks(TOGETHER) {
        scripts.rows(
            &format!("DELETE FROM {p}kv WHERE `key` IN ("),
            keys,
            ")",
            |script, removed| {
                script.bytes(&removed.key);
            },
        );
    }
}

/// Notes what has become attached to a lease, or to another one, and what is attached to none any more.
fn attach(scripts: &mut Scripts, p: &str, changes: &Changes) {
    let differs = |it: &&Written| match it.over {
        Over::Nothing => it.row.kv.lease.is_some(),
        Over::Row { lease, .. } => lease != Some(it.row.kv.lease),
    };
    let (attached, detached): (Vec<_>, Vec<_>) = changes
        .rows
        .iter()
        .filter(differs)
        .partition(|it| it.row.kv.lease.is_some());
    let removed = changes.removed.iter().filter(|it| it.lease.is_some());
    let detached: Vec<_> = detached
        .iter()
        .map(|it| &it.row.kv.key)
        .chain(removed.map(|it| &it.key))
        .collect();
    scripts.rows(
        &format!("INSERT INTO {p}leased (`key`, lease) VALUES "),
        attached,
        " ON DUPLICATE KEY UPDATE lease = VALUES(lease)",
        |script, Written { row, .. }| {
            script.say("(").bytes(&row.kv.key).say(", ");
            script.int(row.kv.lease.0).say(")");
        },
    );
    for keys in detached.chunks(TOGETHER) {
        scripts.rows(
            &format!("DELETE FROM {p}leased WHERE `key` IN ("),
            keys,
            ")",
            |script, key| {
                script.bytes(key);
            },
        );
    }
}

fn write_log(scripts: &mut Scripts, p: &str, log: &[LogEntry]) {
    let is_copy = |entry: &&LogEntry| entry.kind == LogKind::Copy;
    let copies: Vec<_> = log.iter().filter(is_copy).collect();
    for copies in copies.chunks(ENTRIES_TOGETHER) {
        let script = scripts.next(&format!("DELETE FROM {p}log WHERE "));
        for (index, LogEntry { kv, .. }) in copies.iter().enumerate() {
            script.say(if index == 0 { "" } else { " OR " });
            script.say("revision = ").int(kv.mod_revision.0);
            script.say(" AND hash = ").int(hash(&kv.key));
            script.say(" AND `key` = ").bytes(&kv.key);
        }
    }
    scripts.rows(
        &format!(
            "INSERT INTO {p}log (revision, hash, seq, kind, create_revision, version, lease, \
             prev_revision, size, `key`, value) VALUES "
        ),
        log.iter().zip(0i64..),
        "",
        |script, (entry, index)| {
            let LogEntry {
                kind,
                kv,
                prev_revision,
            } = entry;
            let value = (*kind != LogKind::Delete).then_some(&kv.value[..]);
            let seq = match kind {
                // Its place within a revision of the past means nothing, and must not be taken.
                LogKind::Copy => rand::random_range(0..=i64::MAX),
                _ => index,
            };
            let size = kv.key.len() + value.map_or(0, <[u8]>::len);
            let numbers = [
                kv.mod_revision.0,
                hash(&kv.key),
                seq,
                log_kind::of(*kind),
                kv.create_revision.0,
                kv.version,
                kv.lease.0,
                prev_revision.0,
                i64::try_from(size).unwrap_or(i64::MAX),
            ];
            ints(script.say("("), &numbers).say(", ");
            script.bytes(&kv.key).say(", ").maybe_bytes(value).say(")");
        },
    );
}

/// Sets what is not as it was `before`: mostly the revision and the time.
fn set_head(scripts: &mut Scripts, p: &str, head: &Head, before: &Head) {
    let (new, old) = (head_columns(head), head_columns(before));
    let changed: Vec<_> = new
        .iter()
        .zip(old)
        .filter(|(new, old)| *new != old)
        .collect();
    if changed.is_empty() {
        return;
    }
    let script = scripts.next(&format!("UPDATE {p}head SET "));
    script.list(changed, |script, ((column, number), _)| {
        script.say(column).say(" = ");
        match number {
            Some(number) => script.int(*number),
            None => script.say("NULL"),
        };
    });
    script.say(" WHERE one = 1");
}

/// The columns of the head row that change.
fn head_columns(head: &Head) -> [(&'static str, Option<i64>); 10] {
    let line = head.line;
    let claims = line.is_some_and(|line| line.claims);
    [
        ("revision", Some(head.revision.0)),
        ("compacted", Some(head.compacted.0)),
        ("swept", Some(head.swept.0)),
        ("origin", Some(head.origin.0)),
        ("copy_ups", Some(head.unnumbered)),
        ("at_ms", Some(head.at_ms)),
        ("fenced", Some(i64::from(head.fenced))),
        ("claims", Some(i64::from(claims))),
        ("base", Some(line.map_or(0, |line| line.base.0))),
        ("epoch", line.map(|line| line.epoch.0.cast_signed())),
    ]
}

/// Goes on with numbers, with commas between.
fn ints<'a>(script: &'a mut Script, numbers: &[i64]) -> &'a mut Script {
    script.list(numbers, |script, number| {
        script.int(*number);
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::sql::backend::Removed;
    use crate::types::{KeyValue, LeaseId};

    fn kv(key: &'static str, revision: i64) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: Bytes::from(format!("{key} at {revision}")),
            create_revision: Revision(5),
            mod_revision: Revision(revision),
            version: 1,
            lease: LeaseId::NONE,
        }
    }

    fn entry(kind: LogKind, key: &'static str, revision: i64) -> LogEntry {
        LogEntry {
            kind,
            kv: kv(key, revision),
            prev_revision: Revision(0),
        }
    }

    fn written(kv: KeyValue, live: bool, logged: Logged) -> Written {
        Written {
            row: Row { kv, live, logged },
            over: Over::Nothing,
        }
    }

    #[test]
    fn rows_are_made_of_their_entry_if_it_is_the_last_one_of_the_batch() {
        let changes = Changes {
            rows: vec![
                written(kv("once", 11), true, Logged::Yes),
                written(kv("twice", 13), true, Logged::Yes),
                written(kv("whiteout", 15), false, Logged::Yes),
                written(kv("copied", 9), true, Logged::No),
                written(kv("replayed", 10), true, Logged::Yes),
            ],
            log: vec![
                entry(LogKind::Put, "once", 11),
                entry(LogKind::Put, "twice", 12),
                entry(LogKind::Brief, "twice", 13),
                entry(LogKind::Put, "twice", 13),
                entry(LogKind::Put, "whiteout", 14),
                entry(LogKind::Delete, "whiteout", 15),
                entry(LogKind::Put, "removed", 16),
                entry(LogKind::Delete, "removed", 17),
                entry(LogKind::Put, "replayed", 10),
            ],
            ..Changes::none(Head::at(10))
        };
        let (as_logged, others) = AsLogged::of(&changes, Revision(10));
        assert!(as_logged.any);
        assert_eq!(as_logged.but, [1, 4, 6]);
        let others: Vec<&[u8]> = others.iter().map(|row| &row.kv.key[..]).collect();
        assert_eq!(others, [&b"whiteout"[..], b"copied", b"replayed"]);
    }

    #[test]
    fn keys_are_noted_only_when_their_lease_changes() {
        let attached = |key, lease, over| Written {
            over,
            ..written(
                KeyValue {
                    lease: LeaseId(lease),
                    ..kv(key, 11)
                },
                true,
                Logged::Yes,
            )
        };
        let over = |lease| Over::Row { place: None, lease };
        let gone = |key: &'static str, lease| Removed {
            key: key.into(),
            place: None,
            lease: LeaseId(lease),
        };
        let changes = Changes {
            rows: vec![
                attached("new", 0, Over::Nothing),
                attached("same", 7, over(Some(LeaseId(7)))),
                attached("still none", 0, over(Some(LeaseId::NONE))),
                attached("a", 7, Over::Nothing),
                attached("b", 7, over(Some(LeaseId(8)))),
                attached("c", 7, over(None)),
                attached("d", 0, over(Some(LeaseId(7)))),
                attached("e", 0, over(None)),
            ],
            removed: vec![gone("f", 7), gone("none", 0)],
            ..Changes::none(Head::at(10))
        };
        let mut scripts = Scripts::new(1000);
        attach(&mut scripts, "p_", &changes);
        let text: Vec<u8> = scripts.finish()[0].as_bytes().into();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "INSERT INTO p_leased (`key`, lease) VALUES (X'61', 7), (X'62', 7), (X'63', 7) \
             ON DUPLICATE KEY UPDATE lease = VALUES(lease);\n\
             DELETE FROM p_leased WHERE `key` IN (X'64', X'65', X'66')"
        );
    }

    #[test]
    fn rows_are_written_themselves_if_too_many_entries_would_have_to_be_left_out() {
        let revisions = 11..=200;
        let changes = Changes {
            rows: vec![written(kv("hot", 200), true, Logged::Yes)],
            log: revisions
                .map(|revision| entry(LogKind::Put, "hot", revision))
                .collect(),
            ..Changes::none(Head::at(10))
        };
        let (as_logged, others) = AsLogged::of(&changes, Revision(10));
        assert!(!as_logged.any);
        assert_eq!(others.len(), 1);
    }
}
