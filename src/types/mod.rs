//! The words of the project as data: keys, ranges, pairs, revisions, requests, answers. No I/O.

pub mod event;
pub mod hash;
pub mod kv;
pub mod lease;
pub mod range;
pub mod request;
pub mod reserved;

pub use event::{Change, Event, EventBatch};
pub use kv::{Epoch, KeyValue, LeaseId, Revision};
pub use lease::{Grant, Granted, LeaseStatus};
pub use range::KeyRange;
pub use request::{
    Answer, Compare, CompareResult, CompareTarget, Content, Delete, DeleteReply, Direction, Op,
    Put, PutReply, Range, RangeReply, Reply, RevisionFilter, SortTarget, Txn, TxnReply,
};
pub use reserved::Reserved;
