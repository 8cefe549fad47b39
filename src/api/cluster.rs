//! Who serves this API: the proxies, not the stores behind them.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use super::Context;
use super::errors::{member_not_found, not_served};
use crate::proto::etcdserverpb::{self as pb, cluster_server};

/// One proxy of the fleet, as clients get to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// Knows the proxies of the fleet.
pub trait Members: Send + Sync + 'static {
    /// All of them, this one included.
    fn members(&self) -> Vec<Member>;
}

/// A fleet that does not change.
impl Members for Vec<Member> {
    fn members(&self) -> Vec<Member> {
        self.clone()
    }
}

/// The service.
pub(super) struct Cluster(pub Arc<Context>);

type Served<T> = Result<Response<T>, Status>;

impl Cluster {
    /// The answer to a change of the member `id`.
    fn unchanged<T>(&self, id: u64) -> Served<T> {
        if self.0.has_member(id) {
            start_a_proxy_instead()
        } else {
            Err(member_not_found())
        }
    }
}

fn start_a_proxy_instead<T>() -> Served<T> {
    Err(not_served(
        "members are proxies: start one with `segue serve` on the same stores, or stop it; \
         the members of the stores behind them are changed there",
    ))
}

#[async_trait]
impl cluster_server::Cluster for Cluster {
    async fn member_list(
        &self,
        _request: Request<pb::MemberListRequest>,
    ) -> Served<pb::MemberListResponse> {
        let header = self.0.current_header().await?;
        let members = self
            .0
            .members
            .members()
            .into_iter()
            .map(|member| pb::Member {
                id: member.id,
                name: member.name,
                // etcdctl prints these; a proxy has no peers, it is reached by its clients alone.
                peer_ur_ls: Vec::new(),
                client_ur_ls: member.client_urls,
                is_learner: false,
            });
        Ok(Response::new(pb::MemberListResponse {
            header,
            members: members.collect(),
        }))
    }

    async fn member_add(
        &self,
        _request: Request<pb::MemberAddRequest>,
    ) -> Served<pb::MemberAddResponse> {
        start_a_proxy_instead()
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Served<pb::MemberRemoveResponse> {
        self.unchanged(request.into_inner().id)
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Served<pb::MemberUpdateResponse> {
        self.unchanged(request.into_inner().id)
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Served<pb::MemberPromoteResponse> {
        self.unchanged(request.into_inner().id)
    }
}
