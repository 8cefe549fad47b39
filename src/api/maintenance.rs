//! What operators ask of a server.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::Context;
use super::errors::{bad_leader, not_served, status};
use super::hash::hash_kv;
use super::header::RAFT_TERM;
use crate::proto::etcdserverpb::{self as pb, maintenance_server};

/// The service.
pub(super) struct Maintenance(pub Arc<Context>);

type Served<T> = Result<Response<T>, Status>;

#[async_trait]
impl maintenance_server::Maintenance for Maintenance {
    async fn status(&self, _request: Request<pb::StatusRequest>) -> Served<pb::StatusResponse> {
        let stands = self.0.store.status().await;
        let stands = stands.map_err(|error| status(&error))?;
        let index = u64::try_from(stands.revision.0).unwrap_or(0);
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(pb::StatusResponse {
            header: self.0.header(stands.revision),
            version: self.0.version.clone(),
            db_size: bytes(stands.size),
            db_size_in_use: bytes(stands.size_in_use),
            // Every proxy decides by itself what it answers: each is its own leader.
            leader: self.0.identity.member_id,
            raft_term: RAFT_TERM,
            // There is no log of proposals; the revision stands in, since it grows with each write
            // and is the same on all proxies.
            raft_index: index,
            raft_applied_index: index,
            errors: Vec::new(),
            is_learner: false,
        }))
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Served<pb::AlarmResponse> {
        use pb::alarm_request::AlarmAction;
        let header = self.0.current_header().await?;
        match request.into_inner().action() {
            // There are none, so there are none to take back either.
            AlarmAction::Get | AlarmAction::Deactivate => Ok(Response::new(pb::AlarmResponse {
                header,
                alarms: Vec::new(),
            })),
            AlarmAction::Activate => Err(not_served(
                "a proxy raises no alarms: a store that is out of space or broken says so itself",
            )),
        }
    }

    async fn defragment(
        &self,
        _request: Request<pb::DefragmentRequest>,
    ) -> Served<pb::DefragmentResponse> {
        let done = self.0.store.defragment().await;
        // It gives back space and may be repeated.
        done.map_err(|error| status(&error))?;
        // etcd answers without a header.
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Served<pb::HashKvResponse> {
        let hash = hash_kv(&self.0, request.into_inner().revision).await;
        hash.map(Response::new).map_err(|error| status(&error))
    }

    async fn hash(&self, _request: Request<pb::HashRequest>) -> Served<pb::HashResponse> {
        Err(not_served(
            "there is no database file to hash: ask for HashKV (`etcdctl endpoint hashkv`), \
             or compare the stores with `segue verify`",
        ))
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _request: Request<pb::SnapshotRequest>,
    ) -> Served<Self::SnapshotStream> {
        Err(not_served(
            "a proxy has no database file: take the snapshot of the store behind it with that store's own tools",
        ))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Served<pb::MoveLeaderResponse> {
        if !self.0.has_member(request.into_inner().target_id) {
            return Err(bad_leader());
        }
        Err(not_served(
            "proxies elect no leader: any member can be stopped at any time",
        ))
    }

    async fn downgrade(
        &self,
        _request: Request<pb::DowngradeRequest>,
    ) -> Served<pb::DowngradeResponse> {
        Err(not_served(
            "to change the program, stop the proxy and start the other version",
        ))
    }
}
