//! The line and the records: the migration's own state in the store.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::names::Names;
use super::numbers::{Claimed, Era, Numbers};
use super::session::Guarded;
use super::view::{absent, compare, put_op, range_op, range_request, range_response};
use super::{Etcd3, Shared};
use crate::proto::etcdserverpb as pb;
use crate::proto::mvccpb;
use crate::store::{
    FENCE, Guard, GuardedStore, Line, NewStore, Record, RecordTxn, RecordWrite, Replay, Result,
    StoreError,
};
use crate::types::range::successor;
use crate::types::{Epoch, KeyRange, Revision};
use pb::compare::{CompareResult, TargetUnion};
use pb::request_op::Request;
use std::sync::Arc;

/// How often the records are written again when the line changed under them.
const TRIES_MAX: usize = 20;
/// etcd's revision before the first change. Another one would do as well that no key is older than.
const BEFORE_ALL: i64 = 1;
/// Claims that are removed in one transaction. etcd writes each of them down.
const DROPPED_PER_TXN: i64 = 5_000;
/// Ranges of claims that are removed in one transaction: etcd takes 128 operations, unless it is set to take
/// fewer.
const RUNS_PER_TXN: usize = 100;

/// The line as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredLine {
    /// The epoch. Once the migration is settled there is none: what stays is how revisions are
    /// shifted, or they would go back for the clients.
    pub(super) epoch: Option<Epoch>,
    pub(super) claims: bool,
    base: Revision,
    /// etcd's revision that clients see as the base: that of the line where the store held no keys
    /// then or goes into service again, else the one before all of them, or they would have numbers of
    /// the old store's time.
    origin: i64,
    /// The times of service before, of an old store that went into service again.
    earlier: Vec<Era>,
    /// etcd's revision since when keys are replayed: that of the fence.
    pub(super) replaying: Option<i64>,
    /// What is left of the copy-ups of a migration that is over.
    copies: Copies,
    /// etcd's revision of the key that holds the line; 0 where there is none.
    pub(super) written: i64,
}

/// What claims there still are of keys that were copied up, once the migration is over: clients go on to see
/// the numbers that those keys had before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Copies {
    /// None.
    #[default]
    Gone,
    /// Those of copy-ups up to this revision of etcd's.
    Until(i64),
    /// Those of copy-ups before the line was written, at a revision that nobody knew beforehand.
    UntilLine,
}

/// How the line is written down.
#[derive(Serialize, Deserialize)]
struct LineText {
    epoch: Option<Epoch>,
    claims: bool,
    base: Revision,
    /// etcd's revision that is seen as `base`; nothing: the one that wrote this, which nobody knew
    /// beforehand.
    origin: Option<i64>,
    #[serde(default)]
    earlier: Vec<Era>,
    #[serde(default)]
    replaying: Option<i64>,
    #[serde(default)]
    copies: Copies,
}

impl StoredLine {
    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            base: self.base,
            offset: self.base.0 - self.origin,
            after: if self.was_in_service() {
                self.origin
            } else {
                0
            },
            earlier: self.earlier.clone(),
        }
    }

    /// Whether this is an old store that went into service again: what its clients see stays the same
    /// whatever becomes of the line.
    pub(super) fn was_in_service(&self) -> bool {
        !self.earlier.is_empty()
    }

    /// The times of service up to a fence at this revision of etcd's.
    fn service_until(before: Option<&Self>, fence: i64) -> Vec<Era> {
        let numbers = before.map(Self::numbers).unwrap_or_default();
        let mut earlier = numbers.earlier;
        earlier.push(Era {
            after: numbers.after,
            through: before.and_then(|line| line.replaying).unwrap_or(fence),
            offset: numbers.offset,
        });
        earlier
    }

    /// Whether there has to be a line even without an epoch, so that clients see the numbers that they
    /// know.
    fn has_to_stay(&self) -> bool {
        self.base.0 != self.origin
            || self.was_in_service()
            || self.replaying.is_some()
            || self.copies() != Copies::Gone
    }

    /// What stays of a line without its epoch.
    fn without_epoch(&self) -> LineText {
        LineText {
            epoch: None,
            claims: false,
            base: self.base,
            origin: Some(self.origin),
            earlier: self.earlier.clone(),
            // What was replayed before a line has its era now.
            replaying: self.replaying.filter(|_| self.epoch.is_none()),
            copies: self.copies(),
        }
    }

    /// Whether there are claims of a migration that is over: of what was copied up in it, or replayed.
    fn has_claims_of_before(&self) -> bool {
        let replayed = self.replaying.is_some() || self.was_in_service();
        self.epoch.is_none() && (replayed || self.copies != Copies::Gone)
    }

    /// Whether keys are copied up into this store, or were in the epoch that stands. Into an old store that went
    /// into service again none ever are.
    fn takes_copies(&self) -> bool {
        self.epoch.is_some() && !self.was_in_service()
    }

    /// What there will be of copy-ups once there is another line than this.
    fn copies(&self) -> Copies {
        match self.copies {
            _ if self.takes_copies() && self.claims => Copies::UntilLine,
            _ if self.takes_copies() => Copies::Until(self.written),
            Copies::UntilLine => Copies::Until(self.written),
            copies => copies,
        }
    }

    /// Where no key is copied up any more, the revision from which that holds.
    pub(super) fn copied_until(&self) -> Option<i64> {
        match self.copies() {
            Copies::Gone => Some(0),
            Copies::Until(revision) => Some(revision),
            Copies::UntilLine => None,
        }
    }

    /// Whether claims do not change, nor are made: neither by copy-ups nor by replays.
    pub(super) fn claims_stand(&self) -> bool {
        !self.takes_copies() && self.replaying.is_none()
    }

    fn line(&self) -> Option<Line> {
        self.epoch.map(|epoch| Line {
            epoch,
            claims: self.claims,
            base: self.base,
        })
    }

    pub(super) fn read(kv: &mvccpb::KeyValue) -> Result<Self> {
        let text: LineText = serde_json::from_slice(&kv.value).map_err(|error| {
            StoreError::Broken(format!("etcd holds a line that cannot be read: {error}"))
        })?;
        Ok(Self {
            epoch: text.epoch,
            claims: text.claims,
            base: text.base,
            origin: text.origin.unwrap_or(kv.mod_revision),
            earlier: text.earlier,
            replaying: text.replaying,
            copies: text.copies,
            written: kv.mod_revision,
        })
    }
}

/// What the key of the epoch holds.
pub(super) fn epoch_value(epoch: Epoch) -> Bytes {
    epoch.to_string().into()
}

/// The epoch that the key of it holds.
pub(super) fn read_epoch(value: &[u8]) -> Option<Epoch> {
    std::str::from_utf8(value).ok()?.parse().ok().map(Epoch)
}

/// The record has this version; 0 is "does not exist".
pub(super) fn record_compare(names: &Names, name: &str, version: i64) -> pb::Compare {
    compare(
        &KeyRange::One(names.record(name)),
        CompareResult::Equal,
        TargetUnion::Version(version),
    )
}

/// The key that holds the line was written last at this revision of etcd's; 0 is "does not exist".
pub(super) fn line_compare(names: &Names, written: i64) -> pb::Compare {
    compare(
        &KeyRange::One(names.line.clone()),
        CompareResult::Equal,
        TargetUnion::ModRevision(written),
    )
}

fn too_many_others() -> StoreError {
    StoreError::Unavailable("too many others change the state of the migration".into())
}

/// Writes or removes a record.
pub(super) fn record_op(names: &Names, write: &RecordWrite) -> pb::RequestOp {
    let key = names.record(&write.name);
    match &write.value {
        Some(value) => put_op(pb::PutRequest {
            key,
            value: value.clone(),
            ..pb::PutRequest::default()
        }),
        None => delete_op(&KeyRange::One(key)),
    }
}

/// Keeps what else is done in the transaction from those who watch.
pub(super) fn unseen_op(names: &Names) -> pb::RequestOp {
    put_op(pb::PutRequest {
        key: names.unseen.clone(),
        ..pb::PutRequest::default()
    })
}

pub(super) fn delete_op(keys: &KeyRange) -> pb::RequestOp {
    let (key, range_end) = keys.to_etcd();
    pb::RequestOp {
        request: Some(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key,
            range_end,
            prev_kv: false,
        })),
    }
}

impl Shared {
    /// The line as it stands now.
    pub(super) async fn read_line(&self) -> Result<Option<StoredLine>> {
        let request = range_request(&KeyRange::One(self.names.line.clone()));
        let response = self.client.range(request).await?;
        response.kvs.first().map(StoredLine::read).transpose()
    }

    /// etcd's revision that a line has as its origin (nothing: the one that it is written at), and the
    /// times of service before it. The offset stays what it is for as long as the base does.
    async fn origin(
        &self,
        before: Option<&StoredLine>,
        line: Line,
    ) -> Result<(Option<i64>, Vec<Era>)> {
        // An old store serves again: what was copied up into a new one is claimed.
        if !line.claims
            && before.is_none_or(|before| before.epoch.is_none())
            && let Some(fence) = self.fence().await?
        {
            return Ok((None, StoredLine::service_until(before, fence)));
        }
        // Without an epoch a line is what an earlier migration has left, or one that was rolled back.
        let goes_on = |before: &&StoredLine| before.epoch.is_some() && before.base == line.base;
        if let Some(before) = before.filter(goes_on) {
            return Ok((Some(before.origin), before.earlier.clone()));
        }
        let origin = self.plain.holds_keys().await?.then_some(BEFORE_ALL);
        Ok((origin, Vec::new()))
    }

    /// etcd's revision of the fence, if there is one.
    pub(super) async fn fence(&self) -> Result<Option<i64>> {
        let fence = range_request(&KeyRange::One(self.names.fence.clone()));
        let response = self.client.range(fence).await?;
        Ok(response.kvs.first().map(|kv| kv.mod_revision))
    }

    /// Notes that keys are replayed, so that they are looked for claims: before the first, and with the
    /// record in its version. Answers false if it is not.
    pub(super) async fn note_replay(&self, (write, version): &(RecordWrite, i64)) -> Result<bool> {
        for _ in 0..TRIES_MAX {
            let before = self.read_line().await?;
            let mut text = match &before {
                Some(line) if line.epoch.is_some() => return Err(StoreError::StaleEpoch),
                Some(line) if line.replaying.is_some() => return Ok(true),
                Some(line) => line.without_epoch(),
                None => LineText {
                    epoch: None,
                    claims: false,
                    base: Revision(0),
                    origin: Some(0),
                    earlier: Vec::new(),
                    replaying: None,
                    copies: Copies::Gone,
                },
            };
            text.replaying = Some(match self.fence().await? {
                Some(fence) => fence,
                None => self.client.revision(&self.names.line).await?,
            });
            let record = record_compare(&self.names, &write.name, *version);
            let request = pb::TxnRequest {
                compare: vec![self.line_is(before.as_ref()), record],
                success: vec![self.put_line(&text)?],
                failure: Vec::new(),
            };
            if self.client.txn(request).await?.succeeded {
                return Ok(true);
            }
            if self.read_line().await? == before {
                return Ok(false);
            }
        }
        Err(too_many_others())
    }

    /// The condition that the line is still as it was read.
    fn line_is(&self, before: Option<&StoredLine>) -> pb::Compare {
        line_compare(&self.names, before.map_or(0, |before| before.written))
    }

    fn put_line(&self, text: &LineText) -> Result<pb::RequestOp> {
        let text = serde_json::to_vec(text)
            .map_err(|error| StoreError::Broken(format!("the line cannot be written: {error}")))?;
        Ok(put_op(pb::PutRequest {
            key: self.names.line.clone(),
            value: text.into(),
            ..pb::PutRequest::default()
        }))
    }

    /// The operations that set or remove the line.
    async fn line_ops(
        &self,
        before: Option<&StoredLine>,
        line: Option<Line>,
    ) -> Result<Vec<pb::RequestOp>> {
        let names = &self.names;
        let staying = before.filter(|before| before.has_to_stay());
        let text = match (line, staying) {
            (None, None) => {
                return Ok([&names.line, &names.epoch]
                    .map(|key| delete_op(&KeyRange::One(key.clone())))
                    .into());
            }
            (None, Some(before)) => before.without_epoch(),
            (Some(line), _) => {
                let (origin, earlier) = self.origin(before, line).await?;
                LineText {
                    epoch: Some(line.epoch),
                    claims: line.claims,
                    base: line.base,
                    origin,
                    copies: match before {
                        Some(before) if !earlier.is_empty() => before.copies(),
                        _ => Copies::Gone,
                    },
                    earlier,
                    replaying: None,
                }
            }
        };
        Ok(vec![
            self.put_line(&text)?,
            match line {
                Some(line) => put_op(pb::PutRequest {
                    key: names.epoch.clone(),
                    value: epoch_value(line.epoch),
                    ..pb::PutRequest::default()
                }),
                None => delete_op(&KeyRange::One(names.epoch.clone())),
            },
        ])
    }
}

#[async_trait]
impl NewStore for Etcd3 {
    async fn identity(&self) -> Result<String> {
        identity(&self.shared.client, &self.shared.names).await
    }

    fn guarded(&self, guard: Guard) -> Arc<dyn GuardedStore> {
        Arc::new(Guarded::new(self.shared.clone(), guard))
    }

    async fn line(&self) -> Result<Option<Line>> {
        let line = self.shared.read_line().await?;
        Ok(line.and_then(|line| line.line()))
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        let names = &self.shared.names;
        let range = KeyRange::prefix(names.record(prefix));
        let response = self.shared.client.range(range_request(&range)).await?;
        let record = |kv: mvccpb::KeyValue| {
            Some(Record {
                name: names.record_name(&kv.key)?,
                value: kv.value,
                version: kv.version,
            })
        };
        Ok(response.kvs.into_iter().filter_map(record).collect())
    }

    async fn write_records(&self, txn: RecordTxn) -> Result<bool> {
        let shared = &self.shared;
        let line_key = KeyRange::One(shared.names.line.clone());
        for _ in 0..TRIES_MAX {
            let mut request = pb::TxnRequest::default();
            for (name, version) in &txn.expect {
                request
                    .compare
                    .push(record_compare(&shared.names, name, *version));
            }
            for write in &txn.writes {
                request.success.push(record_op(&shared.names, write));
            }
            if !txn.forget.is_empty() {
                let keys = txn.forget.iter().cloned().map(KeyRange::One);
                request.success.extend(keys.map(|key| delete_op(&key)));
                request.success.push(unseen_op(&shared.names));
            }
            let mut seen = None;
            if let Some(line) = txn.line {
                let before = shared.read_line().await?;
                let written = before.as_ref().map_or(0, |before| before.written);
                let unchanged = shared.line_is(before.as_ref());
                if line.is_some_and(|line| line.claims)
                    && before
                        .as_ref()
                        .is_some_and(StoredLine::has_claims_of_before)
                {
                    // In this migration they would be deleted keys. The fence is there for as long as it takes, if
                    // this was the old store of that one.
                    shared.forget_views();
                    match self.drop(std::slice::from_ref(&unchanged), |_| true).await {
                        Err(StoreError::StaleEpoch) => continue,
                        dropped => dropped?,
                    }
                }
                request.compare.push(unchanged);
                request
                    .success
                    .extend(shared.line_ops(before.as_ref(), line).await?);
                request.failure.push(range_op(range_request(&line_key)));
                seen = Some(written);
            }
            let mut response = shared.client.txn(request).await?;
            if response.succeeded {
                return Ok(true);
            }
            let line = response.responses.pop().and_then(range_response);
            let written = line.and_then(|line| line.kvs.first().map(|kv| kv.mod_revision));
            if seen.is_none_or(|seen| seen == written.unwrap_or(0)) {
                return Ok(false);
            }
        }
        Err(too_many_others())
    }

    async fn replay(&self, replay: Replay) -> Result<bool> {
        self.shared.replay(&replay).await
    }

    async fn changes_of(&self, key: Bytes) -> Result<BoxStream<'static, ()>> {
        super::tail::changes_of(&self.shared.client, key).await
    }

    async fn is_empty(&self) -> Result<bool> {
        let mut request = range_request(&KeyRange::all());
        request.limit = 1;
        request.keys_only = true;
        let response = self.shared.client.range(request).await?;
        Ok(response.kvs.is_empty())
    }

    async fn drop_claims(&self) -> Result<()> {
        self.shared.forget_views();
        self.drop(&self.at_rest(), |_| true).await
    }

    async fn settle_claims(&self) -> Result<()> {
        let here =
            |record: &mvccpb::KeyValue| Claimed::read(&record.value, 0) == Some(Claimed::Here);
        self.drop(&self.at_rest(), here).await
    }

    async fn clear(&self) -> Result<()> {
        self.clear_all().await
    }
}

impl Etcd3 {
    /// The conditions that claims go under: there is no line, and no fence, since the claims of an old store
    /// hold the numbers of what was replayed.
    fn at_rest(&self) -> [pb::Compare; 2] {
        let names = &self.shared.names;
        let no_line = absent(&KeyRange::One(names.epoch.clone()));
        [no_line, record_compare(names, FENCE, 0)]
    }

    /// Removes the claims that are `unneeded`, and the mark of what nobody is to see, as long as what is
    /// compared holds. Fails with [`StoreError::StaleEpoch`] if it does not.
    async fn drop(
        &self,
        holds: &[pb::Compare],
        unneeded: impl Fn(&mvccpb::KeyValue) -> bool,
    ) -> Result<()> {
        let names = &self.shared.names;
        let remove = async |keys: &[KeyRange]| {
            let request = pb::TxnRequest {
                compare: holds.to_vec(),
                success: keys.iter().map(delete_op).collect(),
                failure: Vec::new(),
            };
            if self.shared.client.txn(request).await?.succeeded {
                Ok(())
            } else {
                Err(StoreError::StaleEpoch)
            }
        };
        let mut rest = Some(names.all_claims());
        while let Some(claims) = rest {
            let mut request = range_request(&claims);
            request.limit = DROPPED_PER_TXN;
            let page = self.shared.client.long_range(request).await?;
            for some in runs(&page.kvs, &unneeded).chunks(RUNS_PER_TXN) {
                remove(some).await?;
            }
            let last = page.kvs.last().filter(|_| page.more);
            rest = last.and_then(|last| claims.after(&last.key));
        }
        // Nobody asks whether it is there, only whether it was written.
        remove(&[KeyRange::One(names.unseen.clone())]).await
    }
}

/// The ranges of what is `unneeded` among neighbours: each from one that is to the last before one that is not.
fn runs(
    records: &[mvccpb::KeyValue],
    unneeded: impl Fn(&mvccpb::KeyValue) -> bool,
) -> Vec<KeyRange> {
    let runs = records.chunk_by(|a, b| unneeded(a) == unneeded(b));
    runs.filter(|run| unneeded(&run[0]))
        .map(|run| {
            let last = successor(&run[run.len() - 1].key);
            KeyRange::span(run[0].key.clone(), Some(last))
        })
        .collect()
}

/// Tells clusters apart, whatever address they are reached by.
pub(super) async fn identity(client: &Client, names: &Names) -> Result<String> {
    let request = range_request(&KeyRange::One(names.line.clone()));
    let response = client.range(request).await?;
    let cluster = response.header.map_or(0, |header| header.cluster_id);
    Ok(format!("etcd-v3-{cluster:x}"))
}
