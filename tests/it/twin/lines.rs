//! Two lines of revisions, change by change.

use segue::proto::etcdserverpb as pb;

use crate::differential::ask::Ask;
use pb::compare::TargetUnion;
use pb::request_op::Request;

/// A revision that no store reaches here.
const FAR_AHEAD: i64 = 1_000_000;

/// What stands before a number in the text of an answer.
const MARK: &str = "revision: ";

/// Which revision of Segue's is which of the twin's.
pub(super) struct Lines {
    /// One pair per change, in order: the twin's revision, Segue's.
    changes: Vec<(i64, i64)>,
}

impl Lines {
    /// Both begin with an empty store.
    pub(super) fn new() -> Self {
        Self {
            changes: vec![(1, 1)],
        }
    }

    /// The twin's latest revision.
    pub(super) fn newest(&self) -> i64 {
        self.last().0
    }

    fn last(&self) -> (i64, i64) {
        *self.changes.last().expect("there is always one")
    }

    /// Notes a change, if the revisions in both headers tell of one. Answers how many revisions Segue
    /// has left out.
    pub(super) fn note(&mut self, twin: i64, segue: i64) -> i64 {
        let last = self.last();
        if twin <= last.0 {
            return 0;
        }
        assert_eq!(twin, last.0 + 1, "a change that nobody asked for");
        if segue <= last.1 {
            // Segue has made no change: the answers will differ.
            return 0;
        }
        self.changes.push((twin, segue));
        segue - last.1 - 1
    }

    /// An answer of Segue's in the twin's revisions. One that belongs to no change is marked, and so
    /// differs; but a header may tell of any revision since the latest change.
    pub(super) fn to_twin(&self, said: &str) -> String {
        let mut parts = said.split(MARK);
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let is_header = text.ends_with(' ') || text.ends_with('{');
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = part.split_at(digits);
            let is = match number.parse() {
                Ok(0) | Err(_) => number.to_owned(),
                Ok(number) if is_header => self.at(number).to_string(),
                Ok(number) => self.change(number),
            };
            text = format!("{text}{MARK}{is}{rest}");
        }
        text
    }

    /// The twin's revision at a moment when Segue is at `segue`.
    fn at(&self, segue: i64) -> i64 {
        let past = self.changes.partition_point(|change| change.1 <= segue);
        past.checked_sub(1)
            .map_or(segue, |last| self.changes[last].0)
    }

    fn change(&self, segue: i64) -> String {
        let found = self.changes.binary_search_by_key(&segue, |change| change.1);
        found.map_or_else(
            |_| format!("{segue} (no change of the twin's)"),
            |at| self.changes[at].0.to_string(),
        )
    }

    /// Segue's revision for one of the twin's.
    pub(super) fn to_segue(&self, twin: i64) -> i64 {
        if twin <= 1 {
            return twin;
        }
        let found = self.changes.binary_search_by_key(&twin, |change| change.0);
        found.map_or(twin + FAR_AHEAD, |at| self.changes[at].1)
    }

    /// What to ask Segue when the twin is asked this.
    pub(super) fn ask(&self, ask: Ask) -> Ask {
        match ask {
            Ask::Range(request) => Ask::Range(self.range(request)),
            Ask::Txn(request) => Ask::Txn(self.txn(request)),
            Ask::Compact(request) => Ask::Compact(pb::CompactionRequest {
                revision: self.to_segue(request.revision),
                ..request
            }),
            other => other,
        }
    }

    fn range(&self, request: pb::RangeRequest) -> pb::RangeRequest {
        pb::RangeRequest {
            revision: self.to_segue(request.revision),
            min_mod_revision: self.to_segue(request.min_mod_revision),
            max_mod_revision: self.to_segue(request.max_mod_revision),
            min_create_revision: self.to_segue(request.min_create_revision),
            max_create_revision: self.to_segue(request.max_create_revision),
            ..request
        }
    }

    fn txn(&self, request: pb::TxnRequest) -> pb::TxnRequest {
        let compare = |compare: pb::Compare| pb::Compare {
            target_union: compare.target_union.map(|operand| match operand {
                TargetUnion::CreateRevision(at) => TargetUnion::CreateRevision(self.to_segue(at)),
                TargetUnion::ModRevision(at) => TargetUnion::ModRevision(self.to_segue(at)),
                other => other,
            }),
            ..compare
        };
        let op = |op: pb::RequestOp| pb::RequestOp {
            request: op.request.map(|request| match request {
                Request::RequestRange(range) => Request::RequestRange(self.range(range)),
                Request::RequestTxn(txn) => Request::RequestTxn(self.txn(txn)),
                other => other,
            }),
        };
        pb::TxnRequest {
            compare: request.compare.into_iter().map(compare).collect(),
            success: request.success.into_iter().map(op).collect(),
            failure: request.failure.into_iter().map(op).collect(),
        }
    }
}

#[test]
fn revisions_are_told_by_the_changes_that_they_belong_to() {
    let mut lines = Lines::new();
    assert_eq!(lines.note(2, 2), 0);
    assert_eq!(lines.note(3, 7), 4);
    assert_eq!(lines.note(3, 9), 0);
    let said =
        "Header { revision: 9, x }, { create_revision: 2, mod_revision: 7 }, { mod_revision: 8 }";
    let told = "Header { revision: 3, x }, { create_revision: 2, mod_revision: 3 }, { mod_revision: \
                8 (no change of the twin's) }";
    assert_eq!(lines.to_twin(said), told);
    assert_eq!(
        [-1, 0, 1, 2, 3, 4].map(|at| lines.to_segue(at)),
        [-1, 0, 1, 2, 7, 1_000_004]
    );
}
