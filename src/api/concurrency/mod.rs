//! Locks and elections as services, made of the same requests as those of the client libraries, so that
//! both can be used for one name at the same time.
//!
//! Whoever wants something puts a key below its name, attached to a lease, and has his turn when no key there
//! was created before his.

mod election;
mod lock;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tonic::Status;

use super::Context;
use super::errors::{Refusal, status, stopped};
use super::validate;
use crate::proto::etcdserverpb as pb;
use crate::store::{StoreError, Watch, WatchItem};
use crate::tasks::spawn_from_drop;
use crate::types::{
    Answer, Compare, CompareResult, CompareTarget, Delete, Direction, Grant, KeyRange, KeyValue,
    LeaseId, Op, Range, Reply, Revision, RevisionFilter, SortTarget, Txn,
};

pub(super) use election::Election;
pub(super) use lock::Lock;

/// Time to live of the lease of somebody who brings none, in seconds, as in etcd. Nobody renews it.
const TTL_S: i64 = 60;

/// Those who want what has one name.
struct Queue {
    context: Arc<Context>,
    prefix: Bytes,
}

/// One of them.
struct Entry {
    key: Bytes,
    created: Revision,
    lease: LeaseId,
    /// The lease was granted for this request, and nobody else knows it.
    own_lease: bool,
}

/// What was found where somebody wanted to enter.
struct Entered {
    entry: Entry,
    /// When it was found.
    revision: Revision,
    /// The value, if he was there already.
    present: Option<Bytes>,
}

impl Queue {
    fn of(context: &Arc<Context>, name: &[u8]) -> Self {
        Self {
            context: Arc::clone(context),
            prefix: [name, b"/"].concat().into(),
        }
    }

    /// Puts somebody at the end of the queue, unless he is in it already: he is known by his lease.
    async fn enter(&self, lease: i64, value: Bytes) -> Result<Entered, Status> {
        let store = &self.context.store;
        let own_lease = lease == 0;
        let lease = if own_lease {
            let grant = Grant {
                id: None,
                ttl_s: TTL_S,
            };
            store
                .grant(grant)
                .await
                .map_err(|error| told(&error))?
                .reply
                .id
        } else {
            LeaseId(lease)
        };
        let mut key = self.prefix.to_vec();
        key.extend_from_slice(in_hex(lease).as_bytes());
        let key = Bytes::from(key);
        let put = pb::PutRequest {
            key: key.clone(),
            value,
            lease: lease.0,
            ..pb::PutRequest::default()
        };
        checked(validate::put(&put, &self.context.limits))?;
        let txn = Txn {
            compares: vec![created(&key, Revision(0))],
            success: vec![Op::Put(put.into())],
            failure: vec![Op::Range(Range::key(key.clone()))],
        };
        let Answer { revision, reply } = store.txn(txn).await.map_err(|error| told(&error))?;
        let present = match reply.replies.into_iter().next() {
            Some(Reply::Range(range)) => range.kvs.into_iter().next(),
            _ => None,
        };
        let created = present.as_ref().map_or(revision, |kv| kv.create_revision);
        Ok(Entered {
            entry: Entry {
                key,
                created,
                lease,
                own_lease,
            },
            revision,
            present: present.map(|kv| kv.value),
        })
    }

    /// Waits until nobody is before who has `entered`, and answers the revision at which he had his turn. Whoever
    /// gives up while he waits leaves the queue. Fails with `lost` if he is not in it any more.
    async fn turn(&self, entered: &Entered, lost: &str) -> Result<Revision, Status> {
        let entry = &entered.entry;
        let leaving = || Leaving::unless_done(self, entry);
        // Whoever was there already may have had his turn, which he must not lose by asking again.
        let mut leaves = entered.present.is_none().then(leaving);
        let before = RevisionFilter {
            max_create: Revision(entry.created.0 - 1),
            ..RevisionFilter::default()
        };
        let mut waited = false;
        loop {
            let found = self.one(Direction::Descending, before).await?;
            let Some(predecessor) = found.reply else {
                break;
            };
            leaves.get_or_insert_with(leaving);
            waited = true;
            self.deleted(predecessor.key, found.revision).await?;
        }
        let mut revision = entered.revision;
        if waited {
            // His lease may have run out, or another request of his may have given up and come again.
            let own = self.context.store.range(Range::key(entry.key.clone()));
            let own = own.await.map_err(|error| told(&error))?;
            let is_there = |kv: &KeyValue| kv.create_revision == entry.created;
            if !own.reply.kvs.first().is_some_and(is_there) {
                return Err(Status::unknown(lost));
            }
            revision = own.revision;
        }
        if let Some(leaves) = leaves {
            leaves.done();
        }
        Ok(revision)
    }

    /// Whoever has the turn.
    async fn first(&self) -> Result<Answer<Option<KeyValue>>, Status> {
        self.one(Direction::Ascending, RevisionFilter::default())
            .await
    }

    async fn one(
        &self,
        direction: Direction,
        filter: RevisionFilter,
    ) -> Result<Answer<Option<KeyValue>>, Status> {
        let range = Range {
            sort: SortTarget::Create,
            direction,
            filter,
            limit: 1,
            ..Range::of(KeyRange::prefix(self.prefix.clone()))
        };
        let found = self
            .context
            .store
            .range(range)
            .await
            .map_err(|error| told(&error))?;
        Ok(found.map(|mut reply| reply.kvs.pop()))
    }

    /// Waits until `key`, which was there at this revision, is deleted, or may have been.
    async fn deleted(&self, key: Bytes, seen: Revision) -> Result<(), Status> {
        let watch = Watch {
            puts: false,
            ..Watch::of(KeyRange::One(key), Some(seen.next()))
        };
        let opened = self.context.store.watch(watch).await;
        let mut items = opened.map_err(|error| told(&error))?.items;
        let gone = async {
            while let Some(item) = items.next().await {
                match item {
                    WatchItem::Events(_) | WatchItem::End(_) => return,
                    WatchItem::Progress(_) | WatchItem::Epoch(_) => {}
                }
            }
        };
        tokio::select! {
            () = gone => Ok(()),
            () = self.context.shutdown.cancelled() => Err(stopped()),
        }
    }
}

/// Takes somebody out of the queue who gave up while he waited: others would wait for him, until his
/// lease ends.
struct Leaving<'a>(Option<(&'a Queue, &'a Entry)>);

impl<'a> Leaving<'a> {
    fn unless_done(queue: &'a Queue, entry: &'a Entry) -> Self {
        Self(Some((queue, entry)))
    }

    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let Some((queue, entry)) = self.0 else {
            return;
        };
        if queue.context.shutdown.is_cancelled() && !entry.own_lease {
            // He comes back through another proxy, to his place.
            return;
        }
        let store = Arc::clone(&queue.context.store);
        let leave = leave(entry.key.clone(), entry.created);
        // The request that it belonged to is gone. What fails here, the lease makes good.
        spawn_from_drop(async move { drop(store.txn(leave).await) });
    }
}

/// Removes an entry, if it is still the one that was created then.
fn leave(key: Bytes, at: Revision) -> Txn {
    Txn {
        compares: vec![created(&key, at)],
        success: vec![Op::Delete(Delete {
            keys: KeyRange::One(key),
            prev_kv: false,
        })],
        failure: Vec::new(),
    }
}

/// The key was created at this revision; 0: it does not exist.
fn created(key: &Bytes, at: Revision) -> Compare {
    Compare {
        keys: KeyRange::One(key.clone()),
        result: CompareResult::Equal,
        target: CompareTarget::Create(at),
    }
}

/// As the client libraries write a lease into the key of an entry.
fn in_hex(lease: LeaseId) -> String {
    if lease.0 < 0 {
        format!("-{:x}", lease.0.unsigned_abs())
    } else {
        format!("{:x}", lease.0)
    }
}

/// What a client is told of a request that is refused without asking a store, likewise.
fn checked(request: Result<(), Refusal>) -> Result<(), Status> {
    request.map_err(|refusal| Status::unknown(refusal.to_string()))
}

/// What a client is told of `error`: etcd asks itself as one of its own clients would, and of the refusal of a
/// request only the text comes through.
fn told(error: &StoreError) -> Status {
    let status = status(error);
    match error {
        StoreError::Request(_) => Status::unknown(status.message()),
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_written_as_the_go_client_writes_them() {
        for (lease, text) in [
            (0x694d_81f1_7b9c_3b05, "694d81f17b9c3b05"),
            (10, "a"),
            (-10, "-a"),
            (i64::MIN, "-8000000000000000"),
        ] {
            assert_eq!(in_hex(LeaseId(lease)), text);
        }
    }
}
