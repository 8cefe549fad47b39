//! Locks.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::{Queue, checked, told};
use crate::api::{Context, validate};
use crate::proto::v3lockpb::{self as pb, lock_server};
use crate::types::{Delete, KeyRange};

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
        let revision = queue.turn(&entered, "mutex: session is expired").await?;
        Ok(Response::new(pb::LockResponse {
            header: self.0.header(revision),
            key: entered.entry.key,
        }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let pb::UnlockRequest { key } = request.into_inner();
        checked(validate::not_empty(&key))?;
        let delete = Delete {
            keys: KeyRange::One(key),
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
