//! The tables, and how they come to be.
//!
//! What they are is told in `store::sql::tables`. Here they are clustered by their primary keys, so
//! reads by key or revision need no other index.
//!
//! The log's primary key has a hash of the key in it: revision and key together may be longer than
//! the 3072 bytes that an index takes, a prefix of the key would make one revision with many similar
//! keys slow to search, and any second index would have to be written, too. `seq` is the place of a
//! change within its revision, and tells keys of equal hash apart.
//!
//! There are no indices of some rows alone, and one of all leases in `kv` would have to be written with every
//! key that is made or goes, while few keys have a lease. So those that do are in a table of their own, `leased`.

use std::time::Duration;

use super::error::{Failure, code};
use super::script::Script;
use super::session::Session;
use crate::store::sql::rows::Columns as _;
use crate::store::sql::tables::new_identity;
use crate::types::hash::fnv1a;

/// The version of the tables that this program writes. A change of them needs a new one, and steps
/// that lead there from each earlier one that was released; 1 was not.
pub(super) const VERSION: i64 = 2;

/// Longest key: what InnoDB takes in an index.
pub(super) const KEY_BYTES_MAX: usize = 3072;

/// What stands behind the prefix in the names of the tables.
pub(super) const TABLES: [&str; 7] = ["head", "kv", "log", "lease", "leased", "record", "process"];

/// Seconds that a starter waits for another one that creates the tables.
const LOCK_WAIT_S: i64 = 30;

/// How long a step may take.
const WITHIN: Duration = Duration::from_mins(1);

/// The head row of an existing store.
pub(super) struct Found {
    /// The version of the tables.
    pub(super) version: i64,
    /// The store's name.
    pub(super) identity: String,
}

/// The version and the name of the store, or nothing if there is none, or not all of one, yet.
pub(super) async fn find(session: &mut Session, p: &str) -> Result<Option<Found>, Failure> {
    let select = Script::of(&format!("SELECT schema_version, identity FROM {p}head"));
    let head = match session.run(&select, WITHIN).await {
        Ok(mut sets) => sets.first()?,
        Err(Failure::Refused(code::NO_SUCH_TABLE, _)) => None,
        // Without a right on the table, the server does not tell whether there is one.
        Err(err) => return Err(err),
    };
    let found = head.map(|head| {
        Ok(Found {
            version: head.int(0)?,
            identity: head.text(1)?,
        })
    });
    found.transpose()
}

/// Creates what there is not. Several may do this at a time, and one may have been killed in the
/// middle: each step does nothing where it was done, and the head row, which makes it a store, comes
/// last. The first one's row stays.
pub(super) async fn create(session: &mut Session, database: &str, p: &str) -> Result<(), Failure> {
    // Spares the others the deadlocks that statements like these can have among each other. Where
    // there are no such locks they are not needed to be right.
    let name = format!("segue {:x}", hash(format!("{database}/{p}").as_bytes()));
    let mut lock = Script::of("SELECT GET_LOCK(");
    lock.bytes(name.as_bytes())
        .say(", ")
        .int(LOCK_WAIT_S)
        .say(")");
    let locked = session.run(&lock, WITHIN).await;
    if let Err(lost @ Failure::Lost(_)) = locked {
        return Err(lost);
    }
    for table in tables(p) {
        session.run(&Script::of(&table), WITHIN).await?;
    }
    let mut head = Script::of(&format!(
        "INSERT IGNORE INTO {p}head (one, schema_version, identity, revision, compacted, swept, \
         origin, copy_ups, at_ms, fenced, claims, base) VALUES (1, "
    ));
    head.int(VERSION).say(", ");
    head.bytes(new_identity().as_bytes());
    head.say(", 1, 0, 0, 0, 0, 0, 0, 0, 0)");
    session.run(&head, WITHIN).await?;
    if locked.is_ok() {
        let mut release = Script::of("DO RELEASE_LOCK(");
        release.bytes(name.as_bytes()).say(")");
        session.run(&release, WITHIN).await?;
    }
    Ok(())
}

fn tables(p: &str) -> [String; TABLES.len()] {
    const OPTIONS: &str = "ENGINE = InnoDB ROW_FORMAT = DYNAMIC";
    [
        // Where the store stands. One row.
        format!(
            "CREATE TABLE IF NOT EXISTS {p}head (
    one             TINYINT        NOT NULL PRIMARY KEY,
    schema_version  INT            NOT NULL COMMENT 'a program that does not know it keeps its hands off',
    identity        VARBINARY(64)  NOT NULL COMMENT 'tells whether two addresses are one store',
    revision        BIGINT         NOT NULL COMMENT 'of the last change; an empty store is at 1',
    compacted       BIGINT         NOT NULL COMMENT 'reads below it are refused',
    swept           BIGINT         NOT NULL COMMENT 'how far compaction has deleted',
    origin          BIGINT         NOT NULL COMMENT 'changes up to here were the old store''s',
    copy_ups        BIGINT         NOT NULL COMMENT 'batches that take no revision: copied keys, leases, records',
    at_ms           BIGINT         NOT NULL COMMENT 'when something was last committed',
    fenced          TINYINT        NOT NULL COMMENT 'there is a record that is a fence',
    epoch           BIGINT                  COMMENT 'of the migration; NULL without one',
    claims          TINYINT        NOT NULL COMMENT 'deleted keys leave whiteouts',
    base            BIGINT         NOT NULL COMMENT 'last revision of the old store'
) {OPTIONS}"
        ),
        // The latest state of each key.
        format!(
            "CREATE TABLE IF NOT EXISTS {p}kv (
    `key`           VARBINARY({KEY_BYTES_MAX}) NOT NULL PRIMARY KEY,
    create_revision BIGINT         NOT NULL,
    mod_revision    BIGINT         NOT NULL COMMENT 'names the log entry of this state, if logged',
    version         BIGINT         NOT NULL,
    lease           BIGINT         NOT NULL,
    live            TINYINT        NOT NULL COMMENT '0: a whiteout',
    logged          TINYINT        NOT NULL COMMENT '0, 3: copied up and not changed since; 2: without its lease',
    value           LONGBLOB
) {OPTIONS}"
        ),
        // What happened to each key.
        format!(
            "CREATE TABLE IF NOT EXISTS {p}log (
    revision        BIGINT         NOT NULL,
    hash            BIGINT         NOT NULL COMMENT 'of the key: FNV-1a, 64 bits',
    seq             BIGINT         NOT NULL COMMENT 'order of changes within the revision',
    `key`           VARBINARY({KEY_BYTES_MAX}) NOT NULL,
    kind            TINYINT        NOT NULL COMMENT '0 delete, 1 put, 2 copied up, 3 changed again at once',
    create_revision BIGINT         NOT NULL,
    version         BIGINT         NOT NULL,
    lease           BIGINT         NOT NULL,
    prev_revision   BIGINT         NOT NULL COMMENT 'of the entry before of this key; 0: it had no row',
    size            BIGINT         NOT NULL COMMENT 'bytes of key and value',
    value           LONGBLOB,
    PRIMARY KEY (revision, hash, seq)
) {OPTIONS}"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {p}lease (
    id              BIGINT         NOT NULL PRIMARY KEY,
    ttl_s           BIGINT         NOT NULL,
    deadline_ms     BIGINT         NOT NULL COMMENT 'since 1970, by the clock of the server',
    KEY {p}lease_deadline (deadline_ms)
) {OPTIONS}"
        ),
        // The keys that are attached to leases.
        format!(
            "CREATE TABLE IF NOT EXISTS {p}leased (
    `key`           VARBINARY({KEY_BYTES_MAX}) NOT NULL PRIMARY KEY,
    lease           BIGINT         NOT NULL,
    KEY {p}leased_lease (lease)
) {OPTIONS}"
        ),
        // The migration's own state. Not keys: no revision, no event.
        format!(
            "CREATE TABLE IF NOT EXISTS {p}record (
    name            VARBINARY({KEY_BYTES_MAX}) NOT NULL PRIMARY KEY,
    value           LONGBLOB       NOT NULL,
    version         BIGINT         NOT NULL
) {OPTIONS}"
        ),
        // Proxies that write, and the last batch that each committed: tells one whose connection
        // broke in a commit whether it happened.
        format!(
            "CREATE TABLE IF NOT EXISTS {p}process (
    id              BIGINT         NOT NULL PRIMARY KEY,
    batch           BIGINT         NOT NULL,
    seen_ms         BIGINT         NOT NULL COMMENT 'since 1970, by the clock of the server'
) {OPTIONS}"
        ),
    ]
}

/// The log's hash of a key.
pub(super) fn hash(key: &[u8]) -> i64 {
    fnv1a(key).cast_signed()
}
