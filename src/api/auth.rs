//! Users and roles: as in an etcd that has none, and whose authentication is not enabled.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use super::Context;
use super::errors::{auth_not_enabled, not_served, role_not_found, user_not_found};
use crate::proto::etcdserverpb::{self as pb, auth_server};

/// The service; what is about one user or role, or would make one, is refused before it comes here.
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
        Ok(Response::new(pb::AuthStatusResponse {
            header: self.0.current_header().await?,
            enabled: false,
            auth_revision: AUTH_REVISION,
        }))
    }

    /// It is off.
    async fn auth_disable(
        &self,
        _request: Request<pb::AuthDisableRequest>,
    ) -> Served<pb::AuthDisableResponse> {
        let header = self.0.current_header().await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn user_list(
        &self,
        _request: Request<pb::AuthUserListRequest>,
    ) -> Served<pb::AuthUserListResponse> {
        Ok(Response::new(pb::AuthUserListResponse {
            header: self.0.current_header().await?,
            users: Vec::new(),
        }))
    }

    async fn role_list(
        &self,
        _request: Request<pb::AuthRoleListRequest>,
    ) -> Served<pb::AuthRoleListResponse> {
        Ok(Response::new(pb::AuthRoleListResponse {
            header: self.0.current_header().await?,
            roles: Vec::new(),
        }))
    }
}

/// What is said of the other methods, for which there is nothing to ask the store.
pub(super) fn refusal(method: &str) -> Status {
    match method {
        "UserGet" | "UserDelete" | "UserChangePassword" | "UserGrantRole" | "UserRevokeRole" => {
            user_not_found()
        }
        "RoleGet" | "RoleDelete" | "RoleGrantPermission" | "RoleRevokePermission" => {
            role_not_found()
        }
        _ => not_served(
            "a proxy has no users and roles: it logs in to the stores with the credentials in \
             their URLs; limit who can reach it with the network or with TLS",
        ),
    }
}
