//! Logging in: as to an etcd whose authentication is not enabled.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use super::Context;
use super::errors::{auth_not_enabled, status};
use crate::proto::etcdserverpb::{self as pb, auth_server};

/// The service; what manages users and roles is refused before it comes here.
pub(super) struct Auth(pub Arc<Context>);

type Served<T> = Result<Response<T>, Status>;

/// etcd counts changes of users and roles, and begins with this.
const AUTH_REVISION: u64 = 1;

#[async_trait]
impl auth_server::Auth for Auth {
    /// Clients that were given a user name try this first. Those of etcd's own library go on without a token
    /// where they are told so in just these words, and fail at anything else.
    async fn authenticate(
        &self,
        _request: Request<pb::AuthenticateRequest>,
    ) -> Served<pb::AuthenticateResponse> {
        Err(auth_not_enabled())
    }

    async fn auth_status(
        &self,
        _request: Request<pb::AuthStatusRequest>,
    ) -> Served<pb::AuthStatusResponse> {
        let stands = self.0.store.status().await;
        let stands = stands.map_err(|error| status(&error))?;
        Ok(Response::new(pb::AuthStatusResponse {
            header: self.0.header(stands.revision),
            enabled: false,
            auth_revision: AUTH_REVISION,
        }))
    }
}
