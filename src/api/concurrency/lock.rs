//! Locks.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::{Queue, told};
use crate::api::Context;
use crate::proto::v3lockpb::{self as pb, lock_server};
use crate::types::{Delete, KeyRange, Range};

/// The service.
pub(in crate::api) struct Lock(pub Arc<Context>);

#[async_trait]
impl lock_server::Lock for Lock {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        let pb::LockRequest { name, lease } = request.into_inner();
        let queue = Queue::of(&self.0, &name);
        let entered = queue.enter(lease, Bytes::new()).await?;
        let entry = entered.entry;
        let mut revision = entered.revision;
        if queue.turn(&entry).await? {
            // His lease may have run out while he waited.
            let own = self.0.store.range(Range::key(entry.key.clone()));
            let own = own.await.map_err(|error| told(&error))?;
            if own.reply.kvs.is_empty() {
                return Err(Status::unknown("mutex: session is expired"));
            }
            revision = own.revision;
        }
        Ok(Response::new(pb::LockResponse {
            header: self.0.header(revision),
            key: entry.key,
        }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let delete = Delete {
            keys: KeyRange::One(request.into_inner().key),
            prev_kv: false,
        };
        let deleted = self
            .0
            .store
            .delete(delete)
            .await
            .map_err(|error| told(&error))?;
        Ok(Response::new(pb::UnlockResponse {
            header: self.0.header(deleted.revision),
        }))
    }
}
