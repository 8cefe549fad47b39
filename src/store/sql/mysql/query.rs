//! The queries of a snapshot: how they are asked, and how the answers are read.

use super::cells::Sets;
use super::error::Failure;
use super::fetch::{self, read_into};
use super::script::{Script, Scripts};
use super::text;
use super::walk::Walk;
use crate::store::sql::backend::{Found, Head, LogScan, Query, Snapshot};
use crate::store::sql::rows::{Batches, Columns as _, lease_of, record_of};
use crate::store::sql::tables::log_kind;
use crate::types::{KeyRange, LeaseId, Revision};

/// A snapshot that is being read.
pub(super) struct Reading<'a> {
    snapshot: &'a Snapshot,
    steps: Vec<Step<'a>>,
    round: usize,
}

/// Where a query stands.
enum Step<'a> {
    Rows(Walk<'a>),
    /// Asked for in the first round.
    Other(&'a Query, Option<Found>),
}

impl<'a> Reading<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let steps = snapshot.queries.iter().map(|query| match query {
            Query::Rows(rows) => Step::Rows(Walk::new(rows, snapshot.at)),
            other => Step::Other(other, None),
        });
        Self {
            snapshot,
            steps: steps.collect(),
            round: 0,
        }
    }

    /// Whether one round is enough, whatever is found.
    pub(super) fn is_one_round(&self) -> bool {
        self.steps.iter().all(|step| match step {
            Step::Rows(walk) => walk.is_one_round(),
            Step::Other(..) => true,
        })
    }

    /// Whether there is nothing to ask for any more.
    pub(super) fn is_done(&self) -> bool {
        let mut steps = self.steps.iter();
        self.round > 0
            && steps.all(|step| match step {
                Step::Rows(walk) => walk.is_done(),
                Step::Other(..) => true,
            })
    }

    /// Asks for the next round.
    pub(super) fn ask(&self, scripts: &mut Scripts, p: &str) {
        for step in &self.steps {
            match step {
                Step::Rows(walk) => walk.ask(scripts, p),
                Step::Other(query, _) if self.round == 0 => ask(scripts, p, query),
                Step::Other(..) => {}
            }
        }
    }

    /// Reads the answers to [`Self::ask`].
    pub(super) fn take(
        &mut self,
        sets: &mut Sets,
        head: &Head,
        now_ms: i64,
    ) -> Result<(), Failure> {
        for step in &mut self.steps {
            match step {
                Step::Rows(walk) if !walk.is_done() => walk.take(sets)?,
                Step::Other(query, found @ None) => *found = Some(take(sets, query, head, now_ms)?),
                Step::Rows(_) | Step::Other(..) => {}
            }
        }
        self.round += 1;
        Ok(())
    }

    /// What was found; nothing if it has to be asked for again without what was believed to be known.
    pub(super) fn finish(self, head: &Head) -> Option<Vec<Found>> {
        let at = self.snapshot.at;
        let found = self.steps.into_iter().map(|step| match step {
            Step::Rows(walk) => walk.finish(at, head),
            Step::Other(_, found) => found,
        });
        found.collect()
    }
}

impl Snapshot {
    /// The snapshot without what is believed to be known.
    pub(super) fn without_beliefs(&self) -> Self {
        let mut snapshot = self.clone();
        for query in &mut snapshot.queries {
            if let Query::Rows(rows) = query {
                rows.known = None;
            }
        }
        snapshot
    }
}

fn ask(scripts: &mut Scripts, p: &str, query: &Query) {
    match query {
        Query::Rows(_) => {}
        Query::Prefetch(want) => fetch::ask(scripts, p, want),
        Query::Lease { id, keys } => {
            let script = scripts.next(&format!(
                "SELECT id, ttl_s, deadline_ms FROM {p}lease WHERE id = "
            ));
            script.int(id.0);
            if *keys {
                let script = scripts.next(&format!(
                    "SELECT `key` FROM {p}leased FORCE INDEX ({p}leased_lease) WHERE lease = "
                ));
                script.int(id.0).say(" ORDER BY `key`");
            }
        }
        Query::Leases => {
            scripts.next(&format!("SELECT id FROM {p}lease ORDER BY id"));
        }
        Query::Due(count) => {
            let script = scripts.next(&format!(
                "SELECT id, ttl_s, deadline_ms FROM {p}lease ORDER BY deadline_ms LIMIT "
            ));
            script.int(*count);
        }
        Query::Records(prefix) => {
            let script = scripts.next(&format!(
                "SELECT name, value, version FROM {p}record WHERE "
            ));
            let names = KeyRange::prefix(prefix.clone().into_bytes());
            text::in_span(script, "name", &names);
            script.say(" ORDER BY name");
        }
        Query::Log(scan) => ask_log(scripts, p, scan),
        Query::Any => {
            scripts.next(&format!(
                "SELECT EXISTS (SELECT 1 FROM {p}kv) OR EXISTS (SELECT 1 FROM {p}record)"
            ));
        }
        Query::Sizes => {
            let script = scripts.next(
                "SELECT CAST(COALESCE(SUM(data_length + index_length + data_free), 0) AS SIGNED), \
                 CAST(COALESCE(SUM(data_length + index_length), 0) AS SIGNED) \
                 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name IN (",
            );
            script
                .list(super::schema::TABLES, |script, table| {
                    script.say("'").say(p).say(table).say("'");
                })
                .say(")");
        }
    }
}

fn take(sets: &mut Sets, query: &Query, head: &Head, now_ms: i64) -> Result<Found, Failure> {
    Ok(match query {
        Query::Rows(_) => return Err(Failure::Odd("rows are read in another way".into())),
        Query::Prefetch(want) => {
            Found::Prefetched(fetch::take_prefetched(sets, want, *head, now_ms)?)
        }
        Query::Lease { keys, .. } => {
            let lease = sets.first()?.as_ref().map(lease_of).transpose()?;
            let mut attached = Vec::new();
            if *keys {
                read_into(&mut attached, sets, |row| row.bytes(0))?;
            }
            Found::Lease(lease.map(|lease| (lease, attached)))
        }
        Query::Leases => {
            let mut ids = Vec::new();
            read_into(&mut ids, sets, |row| row.int(0).map(LeaseId))?;
            Found::Leases(ids)
        }
        Query::Due(_) => {
            let mut due = Vec::new();
            read_into(&mut due, sets, lease_of)?;
            Found::Due(due)
        }
        Query::Records(_) => {
            let mut records = Vec::new();
            read_into(&mut records, sets, record_of)?;
            Found::Records(records)
        }
        Query::Log(scan) => take_log(sets, scan, head)?,
        Query::Any => Found::Any(sets.first()?.map_or(Ok(0), |row| row.int(0))? != 0),
        Query::Sizes => match sets.first()? {
            Some(row) => Found::Sizes(
                u64::try_from(row.int(0)?).unwrap_or(0),
                u64::try_from(row.int(1)?).unwrap_or(0),
            ),
            None => Found::Sizes(0, 0),
        },
    })
}

/// Asks for changes: first for the revision with which there are enough of them, which takes a look
/// at their sizes alone, and with it in mind for the changes themselves.
fn ask_log(scripts: &mut Scripts, p: &str, scan: &LogScan) {
    let wanted = |script: &mut Script, of: &str, to: &str| {
        script.say(of).say("revision >= ").int(scan.from.0);
        script.say(" AND ").say(of).say("revision <= ").say(to);
        script
            .say(" AND ")
            .say(of)
            .say("kind <> ")
            .int(log_kind::COPY);
        script.say(" AND ");
        text::in_parts(script, of, &scan.parts);
    };
    let number = |size: usize| i64::try_from(size.max(1)).unwrap_or(i64::MAX);
    let to = scan.to.0.to_string();
    let script = scripts.next(&format!(
        "SELECT MIN(revision) INTO @segue_to FROM (SELECT revision, \
         SUM(SUM(size)) OVER (ORDER BY revision) AS bytes, \
         SUM(COUNT(*)) OVER (ORDER BY revision) AS events FROM \
         (SELECT revision, size FROM {p}log FORCE INDEX (PRIMARY) WHERE "
    ));
    wanted(script, "", &to);
    script
        .say(" ORDER BY revision LIMIT ")
        .int(number(scan.max_events));
    script.say(") found GROUP BY revision) summed WHERE bytes >= ");
    script
        .int(number(scan.max_bytes))
        .say(" OR events >= ")
        .int(number(scan.max_events));
    scripts.next("SELECT @segue_to");
    let (prev, join) = if scan.prev_kv {
        let join = text::join_prev(p, "LEFT JOIN");
        (
            "p.kind, p.value, p.create_revision, p.version, p.lease",
            join,
        )
    } else {
        ("NULL, NULL, NULL, NULL, NULL", String::new())
    };
    let script = scripts.next(&format!(
        "SELECT l.revision, l.`key`, l.kind, l.value, l.create_revision, l.version, l.lease, \
         l.prev_revision, {prev}, l.seq FROM {p}log l FORCE INDEX (PRIMARY) {join} WHERE "
    ));
    wanted(script, "l.", &format!("COALESCE(@segue_to, {to})"));
    script.say(" ORDER BY l.revision");
}

/// Reads the answers to [`ask_log`].
fn take_log(sets: &mut Sets, scan: &LogScan, head: &Head) -> Result<Found, Failure> {
    let enough = sets.first()?.map_or(Ok(None), |row| row.maybe_int(0))?;
    let to = enough.map_or(scan.to, Revision).min(scan.to);
    let scan = LogScan { to, ..scan.clone() };
    // Within a revision they come in the order of hashes.
    let mut rows = Vec::new();
    for row in sets.next()? {
        rows.push((row.int(0)?, row.int(13)?, row));
    }
    rows.sort_unstable_by_key(|(revision, seq, _)| (*revision, *seq));
    let mut batches = Batches::new(&scan, head);
    for (_, _, row) in &rows {
        if !batches.take(row)? {
            break;
        }
    }
    Ok(batches.finish())
}
