//! Reading the rows of a range: in one round, or in several where values come with the first rows
//! only.

use super::cells::Sets;
use super::error::Failure;
use super::fetch::{ask_past, read_into, take_past};
use super::script::{Script, Scripts};
use super::text;
use crate::store::sql::backend::{Found, Head, Row, Rows};
use crate::store::sql::rows::{Columns as _, Taken, row_of};
use crate::store::sql::tables::log_kind;
use crate::types::{KeyRange, Revision};

/// A range that is being read.
pub(super) struct Walk<'a> {
    want: &'a Rows,
    at: Option<Revision>,
    taken: Taken,
    /// What is still to be read, in order.
    rest: Vec<KeyRange>,
    /// The count, if it was asked for and answered.
    count: Option<usize>,
    round: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(want: &'a Rows, at: Option<Revision>) -> Self {
        Self {
            want,
            at,
            taken: Taken::new(want),
            rest: want.parts.clone(),
            count: None,
            round: 0,
        }
    }

    /// Whether one round is enough, whatever is found.
    pub(super) fn is_one_round(&self) -> bool {
        self.want.values == 0 || self.want.values >= self.taken.left
    }

    /// Whether there is nothing to ask for any more.
    pub(super) fn is_done(&self) -> bool {
        self.round > 0 && !self.reads()
    }

    fn reads(&self) -> bool {
        !self.taken.is_full() && !self.rest.is_empty()
    }

    /// The count is not asked for where the rows tell it, or somebody believes to know it.
    fn counts(&self) -> bool {
        self.round == 0 && self.want.count && self.want.limit.is_some() && self.want.known.is_none()
    }

    /// Rows of the next round at most; with values as long as some are wanted.
    fn limit(&self) -> (Option<usize>, bool) {
        let values = self.taken.values > 0;
        let most = if values {
            self.taken.values
        } else {
            usize::MAX
        };
        let limit = most.min(self.taken.left);
        ((limit < usize::MAX).then_some(limit), values)
    }

    /// Asks for the next round.
    pub(super) fn ask(&self, scripts: &mut Scripts, p: &str) {
        if self.reads() {
            let (limit, values) = self.limit();
            let whiteouts = self.want.whiteouts;
            if let Some(at) = self.at {
                ask_past(scripts, p, &self.rest, at, limit, values, whiteouts);
            } else {
                let wanted = |script: &mut Script| {
                    text::in_parts(script, "", &self.rest);
                    if !whiteouts {
                        script.say(" AND live = 1");
                    }
                };
                if let Some(bytes) = self.want.bytes {
                    ask_last(scripts, p, wanted, limit, values, bytes);
                }
                let script = scripts.next(&text::select_rows(p, values));
                wanted(script);
                if self.want.bytes.is_some() {
                    script.say(" AND `key` <= @segue_last");
                }
                script.say(" ORDER BY `key`");
                text::limit(script, limit);
            }
        }
        if self.counts() {
            ask_count(scripts, p, &self.want.parts, self.at);
        }
    }

    /// Reads the answer to [`Self::ask`].
    pub(super) fn take(&mut self, sets: &mut Sets) -> Result<(), Failure> {
        let counts = self.counts();
        if self.reads() {
            let (limit, values) = self.limit();
            let mut rows = Vec::new();
            if self.at.is_some() {
                rows = take_past(sets, limit, self.want.whiteouts)?;
            } else {
                read_into(&mut rows, sets, row_of)?;
            }
            let full = limit.is_some_and(|limit| rows.len() >= limit);
            for row in rows {
                self.taken.take(row, values);
            }
            self.rest = match self.taken.rows.last() {
                Some(last) if full => behind(&self.rest, last),
                _ => Vec::new(),
            };
        }
        if counts {
            let mut sum = 0;
            for _ in 0..counted(self.at) {
                sum += sets.first()?.map_or(Ok(0), |row| row.int(0))?;
            }
            self.count = usize::try_from(sum).ok();
        }
        self.round += 1;
        Ok(())
    }

    /// What was found; nothing if somebody was wrong about the count, so that it has to be asked for.
    pub(super) fn finish(self, at: Option<Revision>, head: &Head) -> Option<Found> {
        let count = if !self.want.count {
            0
        } else if !self.taken.is_full() {
            self.taken.rows.iter().filter(|row| row.live).count()
        } else if let Some(known) = self.want.known.and_then(|known| known.holds(at, head)) {
            known
        } else {
            self.count?
        };
        Some(Found::Rows {
            rows: self.taken.rows,
            count,
        })
    }
}

/// Asks for the key of the row with which `bytes` are reached, or of the last one, which takes a look at
/// the sizes alone.
fn ask_last(
    scripts: &mut Scripts,
    p: &str,
    wanted: impl Fn(&mut Script),
    limit: Option<usize>,
    values: bool,
    bytes: usize,
) {
    let value = if values {
        " + COALESCE(LENGTH(value), 0)"
    } else {
        ""
    };
    let script = scripts.next("SELECT COALESCE(MIN(IF(bytes >= ");
    script.int(i64::try_from(bytes).unwrap_or(i64::MAX));
    script.say(&format!(
        ", `key`, NULL)), MAX(`key`)) INTO @segue_last FROM \
         (SELECT `key`, SUM(size) OVER (ORDER BY `key`) AS bytes FROM \
         (SELECT `key`, LENGTH(`key`){value} AS size FROM {p}kv FORCE INDEX (PRIMARY) WHERE "
    ));
    wanted(script);
    script.say(" ORDER BY `key`");
    text::limit(script, limit);
    script.say(") found) summed");
}

/// What is left of `parts` behind a row.
fn behind(parts: &[KeyRange], last: &Row) -> Vec<KeyRange> {
    let key = &last.kv.key;
    let rest = parts.iter().filter_map(|part| match part {
        KeyRange::One(one) => (one > key).then(|| part.clone()),
        KeyRange::Span { .. } if part.start() > key => Some(part.clone()),
        KeyRange::Span { end: Some(end), .. } if end <= key => None,
        KeyRange::Span { .. } => part.after(key),
    });
    rest.collect()
}

/// Asks how many keys are live in a range.
fn ask_count(scripts: &mut Scripts, p: &str, parts: &[KeyRange], at: Option<Revision>) {
    let script = scripts.next(&format!("SELECT COUNT(*) FROM {p}kv WHERE live = 1 AND "));
    text::in_parts(script, "", parts);
    if let Some(at) = at {
        script.say(" AND mod_revision <= ").int(at.0);
        let script = scripts.next(&format!(
            "SELECT COUNT(*) FROM {p}log l FORCE INDEX (PRIMARY) {join} WHERE l.revision > ",
            join = text::join_prev(p, "STRAIGHT_JOIN"),
        ));
        script
            .int(at.0)
            .say(" AND l.prev_revision BETWEEN 1 AND ")
            .int(at.0);
        script
            .say(" AND p.kind <> ")
            .int(log_kind::DELETE)
            .say(" AND ");
        text::in_parts(script, "l.", parts);
    }
}

/// Statements of [`ask_count`].
fn counted(at: Option<Revision>) -> usize {
    1 + usize::from(at.is_some())
}
