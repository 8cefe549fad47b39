//! Changes of another store.
//!
//! A key gets the numbers that it had there by its claim record, as in a copy-up. etcd cannot delete and put a
//! key in one transaction, so each piece takes two: the first removes the keys with their claims, the second
//! begins new lives of those that are to be there, in the revision that their claim names. Each holds to the
//! version of the record, which is written with the last: so whoever goes on behind a crash does it again.
//! Until then nothing of it counts, so that the pieces before the last may be under way at the same time.

use futures_util::{StreamExt as _, stream};

use super::Shared;
use super::copy_up::{copy_ops, pieces};
use super::records::{delete_op, record_compare, record_op, unseen_op};
use crate::proto::etcdserverpb as pb;
use crate::store::{RecordWrite, Replay, Replayed, Result};
use crate::types::KeyRange;

/// What a pair and its claim are replayed with takes no more than this besides the key (twice) and the value,
/// of the bytes that etcd takes in one request.
pub const REPLAY_OVERHEAD_BYTES: usize = 1024;
/// Pieces under way at a time. More bring etcd no more keys per second.
const PIECES_AT_ONCE: usize = 4;

impl Shared {
    pub(super) async fn replay(&self, replay: &Replay) -> Result<bool> {
        for change in &replay.changes {
            self.plain.check_key(change.key())?;
        }
        if !self.note_replay(&replay.record).await? {
            return Ok(false);
        }
        let weigh = |change: &Replayed| change.key().len() + change.bytes();
        let mut pieces = pieces(&replay.changes, weigh);
        let last = pieces.pop().unwrap_or_default();
        // Those who wait for locks are told apart by the order in which their keys were made.
        let mut live = replay.changes.iter().filter_map(Replayed::live);
        let at_once = if live.any(|kv| kv.lease.is_some()) {
            1
        } else {
            PIECES_AT_ONCE
        };
        let work: Vec<_> = pieces
            .into_iter()
            .map(|piece| self.replay_piece(piece, &replay.record, false))
            .collect();
        let mut done = stream::iter(work).buffer_unordered(at_once);
        while let Some(done) = done.next().await {
            if !done? {
                return Ok(false);
            }
        }
        self.replay_piece(last, &replay.record, true).await
    }

    async fn replay_piece(
        &self,
        piece: &[Replayed],
        record: &(RecordWrite, i64),
        is_last: bool,
    ) -> Result<bool> {
        let names = &self.names;
        if !piece.is_empty() {
            let keys = piece.iter().map(Replayed::key);
            let mut removals: Vec<_> = keys
                .flat_map(|key| [key.clone(), names.claim(key)])
                .map(|key| delete_op(&KeyRange::One(key)))
                .collect();
            removals.push(unseen_op(names));
            if !self.replay_txn(removals, record).await? {
                return Ok(false);
            }
        }
        let live = piece.iter().filter_map(Replayed::live);
        let mut puts: Vec<_> = live.flat_map(|kv| copy_ops(names, kv)).collect();
        if is_last {
            puts.push(record_op(names, &record.0));
        }
        Ok(puts.is_empty() || self.replay_txn(puts, record).await?)
    }

    async fn replay_txn(
        &self,
        success: Vec<pb::RequestOp>,
        (write, version): &(RecordWrite, i64),
    ) -> Result<bool> {
        let request = pb::TxnRequest {
            compare: vec![record_compare(&self.names, &write.name, *version)],
            success,
            failure: Vec::new(),
        };
        Ok(self.client.txn(request).await?.succeeded)
    }
}
