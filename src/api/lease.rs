//! Leases.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::Context;
use super::errors::{status, stopped};
use super::validate;
use crate::proto::etcdserverpb::{self as pb, lease_server};
use crate::types::{Answer, LeaseId};

/// The service.
pub(super) struct Lease(pub Arc<Context>);

type Served<T> = Result<Response<T>, Status>;

/// Renewals of one stream that are under way at once; the answers keep their order.
const KEEP_ALIVES_MAX: usize = 16;

#[async_trait]
impl lease_server::Lease for Lease {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Served<pb::LeaseGrantResponse> {
        let request = request.into_inner();
        validate::grant(&request)?;
        let answer = self.0.store.grant(request.into()).await;
        let Answer { revision, reply } = answer.map_err(|error| status(&error))?;
        let mut response = pb::LeaseGrantResponse::from(reply);
        response.header = self.0.header(revision);
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Served<pb::LeaseRevokeResponse> {
        let id = LeaseId(request.into_inner().id);
        let answer = self.0.store.revoke(id).await;
        let answer = answer.map_err(|error| status(&error))?;
        Ok(Response::new(pb::LeaseRevokeResponse {
            header: self.0.header(answer.revision),
        }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Served<Self::LeaseKeepAliveStream> {
        let context = Arc::clone(&self.0);
        let shutdown = context.shutdown.clone();
        let renewals = request
            .into_inner()
            .map(move |request| {
                let context = Arc::clone(&context);
                async move { keep_alive(&context, request?).await }
            })
            .buffered(KEEP_ALIVES_MAX)
            .take_until(shutdown.clone().cancelled_owned())
            // The stream ended by itself, or because the proxy goes away: clients are told which.
            .chain(futures_util::stream::iter(std::iter::from_fn(move || {
                shutdown.is_cancelled().then(|| Err(stopped()))
            })));
        Ok(Response::new(ends_with_failure(renewals).boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Served<pb::LeaseTimeToLiveResponse> {
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let answer = self.0.store.time_to_live(LeaseId(id), keys).await;
        let Answer { revision, reply } = answer.map_err(|error| status(&error))?;
        let mut response = match reply {
            Some(lease) => pb::LeaseTimeToLiveResponse::from(lease),
            None => pb::LeaseTimeToLiveResponse {
                id,
                ttl: -1,
                ..pb::LeaseTimeToLiveResponse::default()
            },
        };
        response.header = self.0.header(revision);
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        _request: Request<pb::LeaseLeasesRequest>,
    ) -> Served<pb::LeaseLeasesResponse> {
        let answer = self.0.store.leases().await;
        let Answer { revision, reply } = answer.map_err(|error| status(&error))?;
        let leases = reply.into_iter().map(|id| pb::LeaseStatus { id: id.0 });
        Ok(Response::new(pb::LeaseLeasesResponse {
            header: self.0.header(revision),
            leases: leases.collect(),
        }))
    }
}

/// One renewal. A lease that does not exist is answered with a time to live of 0.
async fn keep_alive(
    context: &Context,
    request: pb::LeaseKeepAliveRequest,
) -> Result<pb::LeaseKeepAliveResponse, Status> {
    let answer = context.store.keep_alive(LeaseId(request.id)).await;
    // A renewal may be repeated whatever happened to it, as a read may.
    let Answer { revision, reply } = answer.map_err(|error| status(&error))?;
    Ok(pb::LeaseKeepAliveResponse {
        header: context.header(revision),
        id: request.id,
        ttl: reply.unwrap_or(0),
    })
}

/// Ends the stream behind its first failure.
fn ends_with_failure<T>(
    stream: impl futures_util::Stream<Item = Result<T, Status>>,
) -> impl futures_util::Stream<Item = Result<T, Status>> {
    stream.scan(false, |failed, item| {
        let before = std::mem::replace(failed, item.is_err());
        std::future::ready((!before).then_some(item))
    })
}
