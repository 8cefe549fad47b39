//! Two lines of revisions, change by change.

use segue::store::{RequestError, StoreError};
use segue::types::{Compare, CompareTarget, Op, Range, Revision, RevisionFilter, Txn};

use crate::random::{Outcome, Request};

/// A revision that no store reaches here.
const FAR_AHEAD: i64 = 1_000_000;

/// Which revision of the migrating side is which of the twin's. The same up to the base; behind it,
/// a new store that assigns revisions by itself has gaps.
pub(super) struct Lines {
    base: Revision,
    gaps: bool,
    /// One pair per change behind the base, in order: the twin's revision, the other side's.
    changes: Vec<(Revision, Revision)>,
}

impl Lines {
    pub(super) fn from(base: Revision, gaps: bool) -> Self {
        Self {
            base,
            gaps,
            changes: Vec::new(),
        }
    }

    /// Notes the change that a request made, if it did.
    pub(super) fn note(&mut self, twin: &Outcome, seen: &Outcome) {
        let last = self.changes.last().map_or(self.base, |change| change.0);
        if let (Ok((twin, _)), Ok((seen, _))) = (&twin.0, &seen.0)
            && *twin > last
        {
            self.changes.push((*twin, *seen));
        }
    }

    /// The twin's request as it is to be put to the other side.
    pub(super) fn to_seen(&self, request: Request) -> Request {
        match request {
            _ if !self.gaps => request,
            Request::Range(range) => Request::Range(self.range(range)),
            Request::Txn(txn) => Request::Txn(self.txn(txn)),
            Request::Compact(at) => Request::Compact(self.seen(at)),
            other => other,
        }
    }

    /// The other side's answer in the twin's revisions.
    pub(super) fn to_twin(&self, seen: Outcome) -> Outcome {
        if !self.gaps {
            return seen;
        }
        Outcome(match seen.0 {
            Ok((header, reply)) => Ok((self.header(header), self.text_to_twin(&reply))),
            Err(StoreError::Request(RequestError::Compacted(at))) => {
                Err(RequestError::Compacted(self.header(at)).into())
            }
            Err(error) => Err(error),
        })
    }

    /// A text in the twin's revisions. One that belongs to no change stays what it is, and differs.
    pub(super) fn text_to_twin(&self, seen: &str) -> String {
        const MARK: &str = "Revision(";
        if !self.gaps {
            return seen.to_owned();
        }
        let mut parts = seen.split(MARK);
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (number, rest) = part.split_once(')').unwrap();
            let number = Revision(number.parse().unwrap());
            let change = self.changes.iter().find(|(_, seen)| *seen == number);
            let number = change.map_or(number, |(twin, _)| *twin);
            text = format!("{text}{MARK}{}){rest}", number.0);
        }
        text
    }

    /// The twin's revision at a moment when the other side is at `seen`.
    fn header(&self, seen: Revision) -> Revision {
        let past = self.changes.partition_point(|change| change.1 <= seen);
        match past.checked_sub(1) {
            Some(last) => self.changes[last].0,
            None => seen.min(self.base),
        }
    }

    /// The other side's revision for one of the twin's.
    pub(super) fn seen(&self, twin: Revision) -> Revision {
        if !self.gaps || twin <= self.base {
            return twin;
        }
        let change = self.changes.iter().find(|change| change.0 == twin);
        change.map_or(Revision(twin.0 + FAR_AHEAD), |(_, seen)| *seen)
    }

    fn range(&self, range: Range) -> Range {
        let RevisionFilter {
            min_mod,
            max_mod,
            min_create,
            max_create,
        } = range.filter;
        Range {
            at: range.at.map(|at| self.seen(at)),
            filter: RevisionFilter {
                min_mod: self.seen(min_mod),
                max_mod: self.seen(max_mod),
                min_create: self.seen(min_create),
                max_create: self.seen(max_create),
            },
            ..range
        }
    }

    fn txn(&self, txn: Txn) -> Txn {
        let compare = |compare: Compare| Compare {
            target: match compare.target {
                CompareTarget::Create(operand) => CompareTarget::Create(self.seen(operand)),
                CompareTarget::Mod(operand) => CompareTarget::Mod(self.seen(operand)),
                other => other,
            },
            ..compare
        };
        let op = |op| match op {
            Op::Range(range) => Op::Range(self.range(range)),
            Op::Txn(txn) => Op::Txn(self.txn(txn)),
            other => other,
        };
        Txn {
            compares: txn.compares.into_iter().map(compare).collect(),
            success: txn.success.into_iter().map(op).collect(),
            failure: txn.failure.into_iter().map(op).collect(),
        }
    }
}
