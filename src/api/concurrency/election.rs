//! Elections.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{Queue, checked, created, leave, told};
use crate::api::Context;
use crate::api::errors::stopped;
use crate::api::validate;
use crate::proto::etcdserverpb::PutRequest;
use crate::proto::v3electionpb::{self as pb, election_server};
use crate::store::{Watch, WatchItem, Watching};
use crate::types::{Change, KeyRange, KeyValue, Op, Revision, Txn};

/// The service.
pub(in crate::api) struct Election(pub Arc<Context>);

const NOT_LEADER: &str = "election: not leader";

type Served<T> = Result<Response<T>, Status>;

#[async_trait]
impl election_server::Election for Election {
    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Served<pb::CampaignResponse> {
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let queue = Queue::of(&self.0, &name);
        let entered = queue.enter(lease, value.clone()).await?;
        let entry = &entered.entry;
        let leader = pb::LeaderKey {
            name,
            key: entry.key.clone(),
            rev: entry.created.0,
            lease: entry.lease.0,
        };
        if entered
            .present
            .as_ref()
            .is_some_and(|present| *present != value)
        {
            self.proclaim_as(&leader, value).await?;
        }
        queue.turn(&entered, NOT_LEADER).await?;
        Ok(Response::new(pb::CampaignResponse {
            header: self.0.header(entered.revision),
            leader: Some(leader),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Served<pb::ProclaimResponse> {
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(missing_leader)?;
        let revision = self.proclaim_as(&leader, value).await?;
        Ok(Response::new(pb::ProclaimResponse {
            header: self.0.header(revision),
        }))
    }

    async fn leader(&self, request: Request<pb::LeaderRequest>) -> Served<pb::LeaderResponse> {
        let queue = Queue::of(&self.0, &request.into_inner().name);
        let found = queue.first().await?;
        let leader = found.reply;
        let leader = leader.ok_or_else(|| Status::unknown("election: no leader"))?;
        Ok(Response::new(response(&self.0, found.revision, leader)))
    }

    type ObserveStream = BoxStream<'static, Result<pb::LeaderResponse, Status>>;

    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Served<Self::ObserveStream> {
        let observer = Observer {
            queue: Queue::of(&self.0, &request.into_inner().name),
            leader: None,
        };
        let leaders = stream::try_unfold(observer, async |mut observer| {
            let context = Arc::clone(&observer.queue.context);
            tokio::select! {
                next = observer.next() => {
                    let (revision, leader) = next?;
                    Ok(Some((response(&context, revision, leader), observer)))
                }
                () = context.shutdown.cancelled() => Err(stopped()),
            }
        });
        Ok(Response::new(leaders.boxed()))
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Served<pb::ResignResponse> {
        let leader = request.into_inner().leader;
        let leader = leader.ok_or_else(missing_leader)?;
        checked(validate::not_empty(&leader.key))?;
        let resigned = self
            .0
            .store
            .txn(leave(leader.key, Revision(leader.rev)))
            .await;
        Ok(Response::new(pb::ResignResponse {
            header: self
                .0
                .header(resigned.map_err(|error| told(&error))?.revision),
        }))
    }
}

impl Election {
    /// Gives the entry of `leader` another value, if it is still there.
    async fn proclaim_as(&self, leader: &pb::LeaderKey, value: Bytes) -> Result<Revision, Status> {
        let put = PutRequest {
            key: leader.key.clone(),
            value,
            lease: leader.lease,
            ..PutRequest::default()
        };
        checked(validate::put(&put, &self.0.limits))?;
        let txn = Txn {
            compares: vec![created(&leader.key, Revision(leader.rev))],
            success: vec![Op::Put(put.into())],
            failure: Vec::new(),
        };
        let answer = self.0.store.txn(txn).await.map_err(|error| told(&error))?;
        if answer.reply.succeeded {
            Ok(answer.revision)
        } else {
            Err(Status::unknown(NOT_LEADER))
        }
    }
}

/// Follows who leads, and with which value.
struct Observer {
    queue: Queue,
    /// The leader as seen last, and the changes of his key since then.
    leader: Option<Watching>,
}

impl Observer {
    /// Waits for the next leader, or the next value of the present one.
    async fn next(&mut self) -> Result<(Revision, KeyValue), Status> {
        loop {
            if let Some(leader) = &mut self.leader {
                if let Some(kv) = next_put(leader).await {
                    return Ok((kv.mod_revision, kv));
                }
                self.leader = None;
            }
            let found = self.queue.first().await?;
            let (revision, kv) = match found.reply {
                Some(kv) => (found.revision, kv),
                None => match self.first_to_come(found.revision).await? {
                    Some(kv) => (kv.mod_revision, kv),
                    None => continue,
                },
            };
            let changes = Watch::of(KeyRange::One(kv.key.clone()), Some(revision.next()));
            let watching = self.queue.context.store.watch(changes).await;
            self.leader = Some(watching.map_err(|error| told(&error))?);
            return Ok((revision, kv));
        }
    }

    /// Whoever comes first where nobody was at this revision; nothing if that has to be looked at again.
    async fn first_to_come(&mut self, nobody: Revision) -> Result<Option<KeyValue>, Status> {
        let all = KeyRange::prefix(self.queue.prefix.clone());
        let watch = Watch {
            deletes: false,
            ..Watch::of(all, Some(nobody.next()))
        };
        let opened = self.queue.context.store.watch(watch).await;
        Ok(next_put(&mut opened.map_err(|error| told(&error))?).await)
    }
}

/// The next value of what is watched; nothing when it was deleted, or the watch is over.
async fn next_put(watching: &mut Watching) -> Option<KeyValue> {
    while let Some(item) = watching.items.next().await {
        match item {
            WatchItem::Events(batch) => {
                return match batch.events.into_iter().next()?.change {
                    Change::Put(kv) => Some(kv),
                    Change::Delete { .. } => None,
                };
            }
            WatchItem::End(_) => return None,
            WatchItem::Progress(_) | WatchItem::Epoch(_) => {}
        }
    }
    None
}

fn response(context: &Context, revision: Revision, leader: KeyValue) -> pb::LeaderResponse {
    pb::LeaderResponse {
        header: context.header(revision),
        kv: Some(leader.into()),
    }
}

fn missing_leader() -> Status {
    Status::unknown("\"leader\" field must be provided")
}
