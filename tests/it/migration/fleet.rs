//! Members of a migration in this process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use segue::migration::phase::Phase;
use segue::migration::records::Control;
use segue::migration::status::Status;
use segue::migration::{Controller, OpenError, Options, Timing};
use segue::store::memory::Memory;
use segue::store::{AsOld, Guard, NewStore, OldStore, Store};
use segue::tasks::Tasks;
use segue::types::{Grant, KeyRange, KeyValue, LeaseId, Put, Range, Reserved, Revision};

use crate::support::eventually;

/// Quick, so that tests are; the proportions are the real ones.
pub const TIMING: Timing = Timing {
    look: Duration::from_millis(20),
    lapse: Duration::from_millis(600),
    patience: Duration::from_secs(30),
    rollback: Duration::from_secs(10),
};

/// An old and a new store, and what tests do to them behind the proxy's back.
#[derive(Clone)]
pub struct Stores {
    /// The old store as its own clients see it.
    pub source: Arc<dyn Store>,
    pub old: Arc<dyn OldStore>,
    pub new: Arc<dyn NewStore>,
}

impl Stores {
    pub async fn in_memory() -> Self {
        Self::to(Arc::new(Memory::new())).await
    }

    /// From a store in memory that there is a way back to.
    pub async fn both_ways() -> Self {
        let source = Arc::new(Memory::new());
        Self {
            old: Arc::new(AsOld::of(source.clone()).await.unwrap()),
            source,
            new: Arc::new(Memory::new()),
        }
    }

    /// From memory to `new`.
    pub async fn to(new: Arc<dyn NewStore>) -> Self {
        let source = Arc::new(Memory::new());
        let identity = NewStore::identity(&*source).await.unwrap();
        Self {
            old: Arc::new(AsOld::new(source.clone(), identity)),
            source,
            new,
        }
    }

    /// Fills the old store with `count` keys.
    pub async fn fill(&self, count: usize) {
        for number in 0..count {
            put(&*self.source, &key(number), "old").await;
        }
    }

    pub async fn join(&self, name: &str) -> Result<Member, OpenError> {
        self.join_as(name, |_| {}).await
    }

    pub async fn join_as(
        &self,
        name: &str,
        change: impl FnOnce(&mut Options),
    ) -> Result<Member, OpenError> {
        let member = self.open(name, change).await?;
        member
            .tasks
            .spawn("migration", member.controller.clone().run());
        Ok(member)
    }

    /// A member that has joined, but does nothing.
    pub async fn open(
        &self,
        name: &str,
        change: impl FnOnce(&mut Options),
    ) -> Result<Member, OpenError> {
        let mut options = Options {
            start: Phase::Migration,
            id: name.into(),
            name: name.into(),
            client_url: format!("http://{name}:2379"),
            admin: String::new(),
            reserved: Reserved::default(),
            allow_nonempty: false,
            offline: false,
            mirror: true,
            replayed_bytes_max: None,
            parallel: 3,
            control: Control::default(),
            auto_verify: true,
            follow: false,
            timing: TIMING,
        };
        change(&mut options);
        let tasks = Tasks::new();
        let (old, new) = (self.old.clone(), self.new.clone());
        let controller = Controller::open(old, new, options, tasks.clone()).await?;
        Ok(Member { controller, tasks })
    }

    /// Everything in the new store as it is.
    pub async fn content(&self) -> Vec<KeyValue> {
        let plain = self.new.guarded(Guard::None);
        plain
            .range(Range::of(KeyRange::all()))
            .await
            .unwrap()
            .reply
            .kvs
    }

    pub async fn old_content(&self) -> Vec<KeyValue> {
        let range = self.source.range(Range::of(KeyRange::all()));
        range.await.unwrap().reply.kvs
    }
}

/// For a member that lets clients work on the old store first.
pub fn passthrough(options: &mut Options) {
    options.start = Phase::Passthrough;
}

/// A proxy without its listeners.
pub struct Member {
    pub controller: Arc<Controller>,
    pub tasks: Tasks,
}

impl Member {
    pub fn store(&self) -> Arc<dyn Store> {
        self.controller.router()
    }

    /// Stops it as SIGKILL would.
    pub async fn kill(&self) {
        self.controller.vanish();
        let left = self.tasks.shut_down(Duration::from_secs(10)).await;
        assert_eq!(left, Vec::<String>::new());
    }

    pub async fn status(&self) -> Status {
        self.controller.status().await
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        eventually(what, async || {
            let status = self.status().await;
            if holds(&status) {
                Ok(status)
            } else {
                Err(status)
            }
        })
        .await
    }

    pub async fn until_verified(&self) -> Status {
        self.until("verified", |status| {
            status.backfill_complete && status.verified
        })
        .await
    }

    pub async fn until_phase(&self, phase: Phase) -> Status {
        self.until("in the phase", |status| {
            let acknowledged = |member: &segue::migration::status::MemberStatus| {
                member.acknowledged == status.epoch
            };
            status.phase == phase.to_string()
                && status.stage == "open"
                && status.members.iter().all(acknowledged)
        })
        .await
    }
}

pub fn key(number: usize) -> String {
    format!("key/{number:06}")
}

pub async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let put = Put::new(Bytes::copy_from_slice(key.as_bytes()), value.to_owned());
    store.put(put).await.unwrap().revision
}

pub async fn put_leased(store: &dyn Store, key: &str, lease: i64) {
    let put = Put {
        lease: Some(LeaseId(lease)),
        ..Put::new(Bytes::copy_from_slice(key.as_bytes()), "leased")
    };
    store.put(put).await.unwrap();
}

pub async fn grant(store: &dyn Store, id: i64, ttl_s: i64) {
    let id = Some(LeaseId(id));
    store.grant(Grant { id, ttl_s }).await.unwrap();
}

pub async fn get(store: &dyn Store, key: &str) -> Option<KeyValue> {
    let range = Range::key(Bytes::copy_from_slice(key.as_bytes()));
    store.range(range).await.unwrap().reply.kvs.pop()
}
