//! How clients see the store: which keys, and with which numbers.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::Excluded;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::claims::KnownClaims;
use super::client::Client;
use super::names::Names;
use super::numbers::{Claimed, Numbers};
use super::records::StoredLine;
use super::tail::Tail;
use crate::proto::etcdserverpb as pb;
use crate::proto::mvccpb;
use crate::store::{RequestError, Result, StoreError};
use crate::types::{Epoch, KeyRange, KeyValue, Reserved, Revision};
use pb::request_op::Request;
use pb::response_op::Response;

/// Reads in one transaction: etcd takes 128 operations, unless it is set to take fewer.
pub(super) const READS_PER_TXN: usize = 100;
/// Transactions on their way at a time, where there is work for many.
const TXNS_IN_FLIGHT: usize = 4;
/// Claims of more keys than this are read as a range, and are not remembered: whoever reads so many
/// is passing through.
const CLAIMS_BY_KEY_MAX: usize = 2000;

/// The store as clients see it under one line, or without any.
pub(super) struct View {
    pub(super) client: Client,
    pub(super) names: Arc<Names>,
    pub(super) numbers: Numbers,
    pub(super) reserved: Reserved,
    pub(super) tail: Tail,
    /// Claims, where a line is set.
    pub(super) known: Option<KnownClaims>,
    /// No key is copied up behind this revision of etcd's.
    copied_until: AtomicI64,
    /// Keys are replayed behind this revision of etcd's.
    replaying: AtomicI64,
    /// Claims do not change, nor are made.
    claims_stand: AtomicBool,
    /// Since when which epoch holds, as far as watches have seen it.
    epochs: Mutex<BTreeMap<Revision, Epoch>>,
}

impl View {
    /// The store as it is, without a line.
    pub(super) fn plain(client: Client, names: Arc<Names>) -> Self {
        Self {
            client,
            reserved: names.reserved().clone(),
            names,
            numbers: Numbers::default(),
            tail: Tail::default(),
            known: None,
            copied_until: AtomicI64::new(0),
            replaying: AtomicI64::new(i64::MAX),
            claims_stand: AtomicBool::new(true),
            epochs: Mutex::default(),
        }
    }

    /// The store under a line with these numbers.
    pub(super) fn under_line(client: Client, names: Arc<Names>, numbers: Numbers) -> Self {
        Self {
            client,
            reserved: names.reserved().clone(),
            names,
            numbers,
            tail: Tail::default(),
            known: Some(KnownClaims::new()),
            copied_until: AtomicI64::new(i64::MAX),
            replaying: AtomicI64::new(i64::MAX),
            claims_stand: AtomicBool::new(false),
            epochs: Mutex::default(),
        }
    }

    /// Takes over how things stand under a line: until when keys were copied up, and since when keys are replayed.
    pub(super) fn set_line(&self, line: &StoredLine) {
        let until = line.copied_until().unwrap_or(i64::MAX);
        self.copied_until.store(until, Ordering::Relaxed);
        let since = line.replaying.unwrap_or(i64::MAX);
        self.replaying.store(since, Ordering::Relaxed);
        self.claims_stand
            .store(line.claims_stand(), Ordering::Relaxed);
    }

    /// Whether what etcd wrote at this revision was replayed. A key that began its life then has a claim of
    /// that very revision, which a later replay takes the place of.
    fn is_replayed(&self, etcd_revision: i64) -> bool {
        etcd_revision > self.replaying.load(Ordering::Relaxed)
            || self.numbers.is_between_eras(etcd_revision)
    }

    /// Whether claims do not change, nor are made: neither by copy-ups nor by replays.
    pub(super) fn claims_stand(&self) -> bool {
        self.claims_stand.load(Ordering::Relaxed)
    }

    /// Whether keys may have been copied up behind this revision of etcd's.
    pub(super) fn copied_after(&self, etcd_revision: i64) -> bool {
        self.known.is_some() && self.copied_until.load(Ordering::Relaxed) > etcd_revision
    }

    /// The claim that gives a pair with etcd's numbers those that clients see, if it is known.
    pub(super) fn claim_of(&self, kv: &KeyValue) -> Option<Claimed> {
        let Some(known) = &self.known else {
            return Some(Claimed::Here);
        };
        if self.is_replayed(kv.create_revision.0) {
            let of_life = |claim: &Claimed| claim.is_of_life(kv.create_revision.0);
            return known.get(&kv.key).filter(of_life);
        }
        // A life that began after the last copy-up began here.
        if kv.create_revision.0 > self.copied_until.load(Ordering::Relaxed) {
            return Some(Claimed::Here);
        }
        known.get(&kv.key)
    }

    /// Gives pairs with etcd's numbers those that clients see.
    ///
    /// Claims that are not known are read now, whenever the pairs were: a claim does not change, and
    /// no key is live without one.
    pub(super) async fn translate(&self, kvs: Vec<&mut KeyValue>) -> Result<()> {
        if self.known.is_none() {
            return Ok(());
        }
        let mut unknown = Vec::new();
        for kv in kvs {
            match self.claim_of(kv) {
                Some(claim) => self.numbers.translate(kv, claim),
                None => unknown.push(kv),
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = unknown.iter().map(|kv| kv.key.clone()).collect();
        let claims = self.read_claims(keys).await?;
        let mut replaced = Vec::new();
        for kv in unknown {
            let created = kv.create_revision.0;
            let of_life = |claim: &Claimed| claim.is_of_life(created);
            if self.is_replayed(created) && !claims.get(&kv.key).is_some_and(of_life) {
                replaced.push(kv);
                continue;
            }
            // A key without a claim came past the proxy: its numbers are this store's.
            let claim = claims.get(&kv.key).copied().unwrap_or(Claimed::Here);
            self.numbers.translate(kv, claim);
        }
        for chunk in replaced.chunks_mut(READS_PER_TXN) {
            self.translate_replaced(chunk).await?;
        }
        Ok(())
    }

    /// The same for pairs of the past whose claims were replaced since: by those of their own time.
    async fn translate_replaced(&self, kvs: &mut [&mut KeyValue]) -> Result<()> {
        let claims_at = |oldest: i64| {
            let reads = kvs.iter().map(|kv| {
                let mut request = range_request(&KeyRange::One(self.names.claim(&kv.key)));
                request.revision = kv.mod_revision.0.max(oldest);
                range_op(request)
            });
            self.client.read(pb::TxnRequest {
                success: reads.collect(),
                ..pb::TxnRequest::default()
            })
        };
        let response = match claims_at(0).await {
            // What a change superseded may be older than what can be read.
            Err(StoreError::Request(RequestError::Compacted(_))) => {
                claims_at(self.client.compacted(&self.names.line).await?).await?
            }
            response => response?,
        };
        let claims = response.responses.into_iter().filter_map(range_response);
        for (kv, records) in kvs.iter_mut().zip(claims) {
            let claim = match records.kvs.first() {
                Some(record) => self.read_claim(record)?.1,
                None => Claimed::Here,
            };
            self.numbers.translate(kv, claim);
        }
        Ok(())
    }

    /// The claims of these keys, of those that are claimed.
    pub(super) async fn claims(&self, keys: Vec<Bytes>) -> Result<HashMap<Bytes, Claimed>> {
        let Some(known) = &self.known else {
            return Ok(HashMap::new());
        };
        if self.claims_stand() && self.numbers.earlier.is_empty() && !self.copied_after(0) {
            return Ok(keys.into_iter().map(|key| (key, Claimed::Here)).collect());
        }
        let mut claims = HashMap::with_capacity(keys.len());
        let mut unknown = Vec::new();
        for key in keys {
            match known.get(&key) {
                Some(claim) => {
                    claims.insert(key, claim);
                }
                None => unknown.push(key),
            }
        }
        if !unknown.is_empty() {
            claims.extend(self.read_claims(unknown.clone()).await?);
        }
        if self.claims_stand() {
            for key in unknown.iter().filter(|key| !claims.contains_key(*key)) {
                self.learn(key, Claimed::Here);
            }
        }
        Ok(claims)
    }

    async fn read_claims(&self, mut keys: Vec<Bytes>) -> Result<HashMap<Bytes, Claimed>> {
        keys.sort_unstable();
        keys.dedup();
        if let [first, .., last] = &keys[..]
            && keys.len() > CLAIMS_BY_KEY_MAX
        {
            let end = crate::types::range::successor(last);
            let range = self
                .names
                .claims_of(&KeyRange::span(first.clone(), Some(end)));
            let response = self.client.long_range(range_request(&range)).await?;
            return response
                .kvs
                .iter()
                .map(|record| self.read_claim(record))
                .collect();
        }
        let reads = keys.chunks(READS_PER_TXN).map(|keys| {
            let gets = keys
                .iter()
                .map(|key| range_op(range_request(&KeyRange::One(self.names.claim(key)))));
            self.client.read(pb::TxnRequest {
                success: gets.collect(),
                ..pb::TxnRequest::default()
            })
        });
        let reads: Vec<_> = reads.collect();
        let mut responses = stream::iter(reads).buffer_unordered(TXNS_IN_FLIGHT);
        let mut claims = HashMap::with_capacity(keys.len());
        while let Some(response) = responses.try_next().await? {
            for range in response.responses.into_iter().filter_map(range_response) {
                for record in &range.kvs {
                    let (key, claim) = self.read_claim(record)?;
                    self.learn(&key, claim);
                    claims.insert(key, claim);
                }
            }
        }
        Ok(claims)
    }

    /// Whether the claim of `key` is known, or none is needed.
    pub(super) fn is_known(&self, key: &[u8]) -> bool {
        let known = self.known.as_ref();
        known.is_none_or(|known| !self.copied_after(0) || known.get(key).is_some())
    }

    /// Remembers that from behind this revision on another epoch holds.
    pub(super) fn learn_epoch(&self, since: Revision, epoch: Epoch) {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        epochs.insert(since, epoch);
    }

    /// The epoch that has begun latest between the two revisions, if a watch has come past its beginning.
    pub(super) fn epoch_between(&self, after: Revision, before: Revision) -> Option<Epoch> {
        let epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let between = (Excluded(after), Excluded(before));
        let begun = (after < before).then(|| epochs.range(between).next_back());
        begun.flatten().map(|(_, epoch)| *epoch)
    }

    /// Remembers a claim.
    pub(super) fn learn(&self, key: &[u8], claim: Claimed) {
        if let Some(known) = &self.known {
            known.learn(key, claim);
        }
    }

    /// Reads a claim record: which key, and what.
    pub(super) fn read_claim(&self, record: &mvccpb::KeyValue) -> Result<(Bytes, Claimed)> {
        self.names
            .claimed(&record.key)
            .zip(Claimed::read(&record.value, record.create_revision))
            .ok_or_else(|| {
                StoreError::Broken(format!(
                    "etcd holds a claim that cannot be read, under the key {:?}",
                    record.key
                ))
            })
    }

    /// Completes a "compacted" from etcd, which does not say what the oldest revision is.
    pub(super) async fn complete_error(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Request(RequestError::Compacted(Revision(0))) => {
                match self.client.compacted(&self.names.line).await {
                    Ok(etcd) => RequestError::Compacted(self.oldest(etcd)).into(),
                    Err(error) => error,
                }
            }
            error => error,
        }
    }

    /// The oldest revision that clients can read at, if etcd is compacted at this one.
    pub(super) fn oldest(&self, etcd_compacted: i64) -> Revision {
        self.numbers.visible(etcd_compacted).max(self.numbers.base)
    }

    /// The oldest revision that clients can watch from, if etcd is compacted at this one: the
    /// changes up to the base are the old store's.
    pub(super) fn oldest_change(&self, etcd_compacted: i64) -> Revision {
        self.oldest(etcd_compacted).max(self.numbers.base.next())
    }

    /// Refuses keys that are the store's own.
    pub(super) fn check_key(&self, key: &[u8]) -> Result<()> {
        if self.names.is_own(key) {
            let text = "keys in this part of the reserved prefix belong to Segue itself";
            return Err(RequestError::Unacceptable(text.into()).into());
        }
        Ok(())
    }
}

/// A read of `keys` as they are.
pub(super) fn range_request(keys: &KeyRange) -> pb::RangeRequest {
    let (key, range_end) = keys.to_etcd();
    pb::RangeRequest {
        key,
        range_end,
        ..pb::RangeRequest::default()
    }
}

/// An operation that reads.
pub(super) fn range_op(request: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestRange(request)),
    }
}

/// An operation that writes.
pub(super) fn put_op(request: pb::PutRequest) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestPut(request)),
    }
}

/// A transaction as an operation.
pub(super) fn txn_op(request: pb::TxnRequest) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Request::RequestTxn(request)),
    }
}

/// The answer to an operation that reads.
pub(super) fn range_response(op: pb::ResponseOp) -> Option<pb::RangeResponse> {
    match op.response {
        Some(Response::ResponseRange(range)) => Some(range),
        _ => None,
    }
}

/// A comparison of one number of all `keys`.
pub(super) fn compare(
    keys: &KeyRange,
    result: pb::compare::CompareResult,
    operand: pb::compare::TargetUnion,
) -> pb::Compare {
    use pb::compare::{CompareTarget, TargetUnion};
    let (key, range_end) = keys.to_etcd();
    let target = match operand {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key,
        range_end,
        target_union: Some(operand),
    }
}

/// None of `keys` exists.
pub(super) fn absent(keys: &KeyRange) -> pb::Compare {
    use pb::compare::{CompareResult, TargetUnion};
    compare(keys, CompareResult::Equal, TargetUnion::CreateRevision(0))
}

/// The revision of a response's header.
pub(super) fn header_revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}
