//! What clients ask of a store and what it answers, free of any wire format.
//!
//! Requests are valid by construction where that is cheap; what cannot be seen from the type
//! (duplicate keys, sizes, numbers of operations) is checked in `api` before a store sees it.

use bytes::Bytes;

use super::kv::{KeyValue, LeaseId, Revision};
use super::range::KeyRange;

/// A reply together with the store's current revision when the request was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// The current revision, also for reads of the past.
    pub revision: Revision,
    /// The reply proper.
    pub reply: T,
}

impl<T> Answer<T> {
    /// The same answer with another reply.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        Answer {
            revision: self.revision,
            reply: change(self.reply),
        }
    }
}

/// A read of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which keys.
    pub keys: KeyRange,
    /// The revision to read at; nothing is the latest. Below 0 only in transactions, see
    /// [`Self::past`].
    pub at: Option<Revision>,
    /// Most pairs to answer with; 0 is no limit.
    pub limit: usize,
    /// What to sort by.
    pub sort: SortTarget,
    /// Which way.
    pub direction: Direction,
    /// How much of each pair to answer with.
    pub content: Content,
    /// Which of the keys to answer with, by their revisions.
    pub filter: RevisionFilter,
    /// The client accepts an answer that is stale (never one that is inconsistent).
    pub serializable: bool,
}

impl Range {
    /// All of `keys`, latest, in key order.
    #[must_use]
    pub fn of(keys: KeyRange) -> Self {
        Self {
            keys,
            at: None,
            limit: 0,
            sort: SortTarget::Key,
            direction: Direction::Ascending,
            content: Content::Full,
            filter: RevisionFilter::default(),
            serializable: false,
        }
    }

    /// One key, latest.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self::of(KeyRange::One(key.into()))
    }

    /// The revision of the past to read at, if it is one. A transaction may name one below 0, which in etcd
    /// is compacted like any other, but for -1 as long as nothing was compacted: then it reads the latest.
    #[must_use]
    pub fn past(&self) -> Option<Revision> {
        self.at.filter(|at| at.0 > 0)
    }

    /// Whether a store that reads in key order may stop one pair behind the limit.
    #[must_use]
    pub fn limit_can_be_pushed_down(&self) -> bool {
        let in_order = match self.direction {
            Direction::Unsaid => true,
            Direction::Ascending => self.sort == SortTarget::Key,
            Direction::Descending => false,
        };
        in_order && self.filter == RevisionFilter::default()
    }
}

/// What a range is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortTarget {
    /// The key, in byte order.
    Key,
    /// The version.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value, in byte order.
    Value,
}

/// Which way a range is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Largest first.
    Descending,
    /// Smallest first. But as etcd has it where no order was named, a limit counts in the order of the keys:
    /// what is sorted is as many pairs as it allows, and one more.
    Unsaid,
}

/// How much of each pair an answer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Everything.
    Full,
    /// Everything but the values.
    KeysOnly,
    /// Only the count.
    CountOnly,
}

/// Bounds on the revisions of the pairs to answer with, both ends included; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RevisionFilter {
    /// Lowest mod revision.
    pub min_mod: Revision,
    /// Highest mod revision.
    pub max_mod: Revision,
    /// Lowest create revision.
    pub min_create: Revision,
    /// Highest create revision.
    pub max_create: Revision,
}

impl RevisionFilter {
    /// Whether `kv` passes.
    #[must_use]
    pub fn admits(&self, kv: &KeyValue) -> bool {
        let within = |number: Revision, min: Revision, max: Revision| {
            (min.0 == 0 || number >= min) && (max.0 == 0 || number <= max)
        };
        within(kv.mod_revision, self.min_mod, self.max_mod)
            && within(kv.create_revision, self.min_create, self.max_create)
    }
}

/// What a range answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeReply {
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, whatever the limit and the filters.
    pub count: usize,
    /// The limit cut the answer.
    pub more: bool,
}

/// A write of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: Bytes,
    /// The new value; nothing keeps the present one, and is an error where there is none.
    pub value: Option<Bytes>,
    /// The lease to attach to (`LeaseId::NONE` detaches); nothing keeps the present one, and is an
    /// error where there is no key.
    pub lease: Option<LeaseId>,
    /// Answer with the pair before the write.
    pub prev_kv: bool,
}

impl Put {
    /// Sets `key` to `value`, without a lease.
    #[must_use]
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: Some(value.into()),
            lease: Some(LeaseId::NONE),
            prev_kv: false,
        }
    }
}

/// What a put answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutReply {
    /// The pair before the write, if it was asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// A removal of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// Which keys.
    pub keys: KeyRange,
    /// Answer with the pairs before the removal.
    pub prev_kv: bool,
}

/// What a delete answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteReply {
    /// Keys that were removed.
    pub deleted: usize,
    /// The pairs before the removal in key order, if they were asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// A transaction: `success` if all `compares` hold, else `failure`, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// What is done if all hold.
    pub success: Vec<Op>,
    /// What is done otherwise.
    pub failure: Vec<Op>,
}

impl Txn {
    /// A transaction without conditions.
    #[must_use]
    pub fn of(ops: Vec<Op>) -> Self {
        Self {
            success: ops,
            ..Self::default()
        }
    }

    /// Has every read, those of nested transactions included, be of the latest state.
    pub fn read_the_latest(&mut self) {
        for op in self.success.iter_mut().chain(&mut self.failure) {
            match op {
                Op::Range(range) => range.serializable = false,
                Op::Txn(nested) => nested.read_the_latest(),
                Op::Put(_) | Op::Delete(_) => {}
            }
        }
    }

    /// Every operation in both branches, nested transactions included, outermost first.
    pub fn visit<'a>(&'a self, see: &mut dyn FnMut(&'a Op)) {
        for op in self.success.iter().chain(&self.failure) {
            see(op);
            if let Op::Txn(nested) = op {
                nested.visit(see);
            }
        }
    }

    /// Every condition, those of nested transactions included.
    pub fn visit_compares<'a>(&'a self, see: &mut dyn FnMut(&'a Compare)) {
        self.compares.iter().for_each(&mut *see);
        for op in self.success.iter().chain(&self.failure) {
            if let Op::Txn(nested) = op {
                nested.visit_compares(see);
            }
        }
    }

    /// Whether no branch writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let mut writes = false;
        self.visit(&mut |op| writes |= matches!(op, Op::Put(_) | Op::Delete(_)));
        !writes
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A read; sees what earlier operations of the transaction wrote.
    Range(Range),
    /// A write.
    Put(Put),
    /// A removal.
    Delete(Delete),
    /// A transaction in the transaction.
    Txn(Txn),
}

/// What one operation of a transaction answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a read.
    Range(RangeReply),
    /// To a write.
    Put(PutReply),
    /// To a removal.
    Delete(DeleteReply),
    /// To a nested transaction.
    Txn(TxnReply),
}

/// What a transaction answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnReply {
    /// Whether the conditions held.
    pub succeeded: bool,
    /// One reply per operation of the branch that was taken.
    pub replies: Vec<Reply>,
}

/// A condition on one key, or on every key of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The keys. One that does not exist has numbers 0 and no value; an empty span holds as if it
    /// held one key that does not exist.
    pub keys: KeyRange,
    /// How the key's property has to stand to the operand.
    pub result: CompareResult,
    /// Which property, and the operand.
    pub target: CompareTarget,
}

/// How a property has to stand to the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareResult {
    /// property = operand
    Equal,
    /// property > operand
    Greater,
    /// property < operand
    Less,
    /// property ≠ operand
    NotEqual,
}

impl CompareResult {
    /// Whether `ordering`, the property's to the operand, is what was asked for.
    #[must_use]
    pub fn accepts(self, ordering: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Greater => ordering.is_gt(),
            Self::Less => ordering.is_lt(),
            Self::NotEqual => ordering.is_ne(),
        }
    }
}

/// A property of a key with the operand to compare it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    /// The version.
    Version(i64),
    /// The create revision.
    Create(Revision),
    /// The mod revision.
    Mod(Revision),
    /// The value.
    Value(Bytes),
    /// The lease.
    Lease(LeaseId),
}
