//! The line and the records: the migration's own state in the store.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::names::Names;
use super::numbers::Numbers;
use super::session::Guarded;
use super::view::{absent, compare, put_op, range_op, range_request, range_response};
use super::{Etcd3, Shared};
use crate::proto::etcdserverpb as pb;
use crate::proto::mvccpb;
use crate::store::{
    Guard, GuardedStore, Line, NewStore, Record, RecordTxn, RecordWrite, Replay, Result, StoreError,
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

/// The line as it stands in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredLine {
    /// The epoch. Once the migration is settled there is none: what stays is how revisions are
    /// shifted, or they would go back for the clients.
    pub(super) epoch: Option<Epoch>,
    pub(super) claims: bool,
    base: Revision,
    /// etcd's revision that clients see as the base: that of the line where the store held no keys
    /// then, else the one before all of them, or they would have numbers of the old store's time.
    origin: i64,
    /// etcd's revision of the key that holds the line; 0 where there is none.
    written: i64,
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
}

impl StoredLine {
    pub(super) fn numbers(&self) -> Numbers {
        Numbers {
            base: self.base,
            offset: self.base.0 - self.origin,
        }
    }

    /// Where no key is copied up any more, the revision from which that holds. Without an epoch,
    /// what was copied up is no longer told from other keys.
    pub(super) fn copied_until(&self) -> Option<i64> {
        match self.epoch {
            None => Some(0),
            Some(_) => (!self.claims).then_some(self.written),
        }
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
            written: kv.mod_revision,
        })
    }
}

/// What the key of the epoch holds.
pub(super) fn epoch_value(epoch: Epoch) -> Bytes {
    epoch.to_string().into()
}

/// The record has this version; 0 is "does not exist".
pub(super) fn record_compare(names: &Names, name: &str, version: i64) -> pb::Compare {
    compare(
        &KeyRange::One(names.record(name)),
        CompareResult::Equal,
        TargetUnion::Version(version),
    )
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

    /// etcd's revision that a line with this base has as its origin; nothing: the one that it is
    /// written at. The offset stays what it is for as long as the base does.
    async fn origin(&self, before: Option<&StoredLine>, base: Revision) -> Result<Option<i64>> {
        match before.filter(|before| before.base == base) {
            Some(before) => Ok(Some(before.origin)),
            None => Ok(self.plain.holds_keys().await?.then_some(BEFORE_ALL)),
        }
    }

    /// The operations that set or remove the line.
    async fn line_ops(
        &self,
        before: Option<&StoredLine>,
        line: Option<Line>,
    ) -> Result<Vec<pb::RequestOp>> {
        let names = &self.names;
        let shifted = before.filter(|before| before.base.0 != before.origin);
        let text = match (line, shifted) {
            (None, None) => {
                return Ok([&names.line, &names.epoch]
                    .map(|key| delete_op(&KeyRange::One(key.clone())))
                    .into());
            }
            (None, Some(before)) => LineText {
                epoch: None,
                claims: false,
                base: before.base,
                origin: Some(before.origin),
            },
            (Some(line), _) => LineText {
                epoch: Some(line.epoch),
                claims: line.claims,
                base: line.base,
                origin: self.origin(before, line.base).await?,
            },
        };
        let text = serde_json::to_vec(&text)
            .map_err(|error| StoreError::Broken(format!("the line cannot be written: {error}")))?;
        let put = |key: &Bytes, value| {
            put_op(pb::PutRequest {
                key: key.clone(),
                value,
                ..pb::PutRequest::default()
            })
        };
        Ok(vec![
            put(&names.line, text.into()),
            match line {
                Some(line) => put(&names.epoch, epoch_value(line.epoch)),
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
            let mut seen = None;
            if let Some(line) = txn.line {
                let before = shared.read_line().await?;
                let written = before.map_or(0, |before| before.written);
                request.compare.push(compare(
                    &line_key,
                    CompareResult::Equal,
                    TargetUnion::ModRevision(written),
                ));
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
        Err(StoreError::Unavailable(
            "too many others change the state of the migration".into(),
        ))
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
        let names = &self.shared.names;
        let claims = names.all_claims();
        let no_line = absent(&KeyRange::One(names.epoch.clone()));
        self.shared.forget_views();
        loop {
            let mut request = range_request(&claims);
            request.limit = DROPPED_PER_TXN;
            request.keys_only = true;
            let response = self.shared.client.long_range(request).await?;
            let Some(last) = response.kvs.last() else {
                return Ok(());
            };
            let page = KeyRange::span(claims.start().clone(), Some(successor(&last.key)));
            let request = pb::TxnRequest {
                compare: vec![no_line.clone()],
                success: vec![delete_op(&page)],
                failure: Vec::new(),
            };
            if !self.shared.client.txn(request).await?.succeeded {
                return Err(StoreError::StaleEpoch);
            }
            if !response.more {
                return Ok(());
            }
        }
    }

    async fn clear(&self) -> Result<()> {
        self.clear_all().await
    }
}

/// Tells clusters apart, whatever address they are reached by.
pub(super) async fn identity(client: &Client, names: &Names) -> Result<String> {
    let request = range_request(&KeyRange::One(names.line.clone()));
    let response = client.range(request).await?;
    let cluster = response.header.map_or(0, |header| header.cluster_id);
    Ok(format!("etcd-v3-{cluster:x}"))
}
