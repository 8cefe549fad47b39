//! What others change in an etcd that is an old store.
//!
//! Whatever Segue writes there, the mirror included, goes with a key of its own in the same
//! transaction, and so in the same revision: every revision without one is somebody else's.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};

use super::names::Names;
use super::numbers::{Claimed, Numbers};
use super::tail::Upstream;
use super::view::View;
use crate::proto::mvccpb::{self, event::EventType};
use crate::store::foreign::{ForeignBatch, ForeignChange, ForeignChanges};
use crate::store::{RequestError, Result, StoreError};
use crate::types::{Change, Event, Revision};

/// The changes behind `after`.
pub(super) async fn changes(
    view: Arc<View>,
    numbers: Numbers,
    after: Revision,
) -> Result<ForeignChanges> {
    let upstream = Upstream::open(&view, numbers.etcd(after.next())).await;
    let upstream = match upstream {
        Err(error @ StoreError::Request(RequestError::Compacted(_))) => Err(error),
        upstream => Ok(upstream?),
    };
    let changes = stream::unfold(Some((upstream, view, numbers)), |state| async {
        let (upstream, view, numbers) = state?;
        let (mut upstream, told) = match upstream {
            Ok(mut upstream) => {
                let told = upstream.events(&view).await;
                (Some(upstream), told)
            }
            Err(error) => (None, Err(error)),
        };
        let batch = match told {
            Ok((events, through)) => Ok(ForeignBatch {
                changes: foreign(&view.names, &numbers, &events),
                missed: false,
                through: numbers.visible(through),
                mark: None,
            }),
            Err(StoreError::Request(RequestError::Compacted(oldest))) => {
                upstream = None;
                // The view is the plain one, whose revisions are etcd's.
                Ok(ForeignBatch {
                    changes: Vec::new(),
                    missed: true,
                    through: numbers.visible(oldest.0 - 1),
                    mark: None,
                })
            }
            Err(error) => {
                upstream = None;
                Err(error)
            }
        };
        let state = upstream.map(|upstream| (Ok(upstream), view, numbers));
        Some((batch, state))
    });
    Ok(changes.boxed())
}

/// Those of `events`, all that some revisions have, that are not Segue's.
fn foreign(names: &Names, numbers: &Numbers, events: &[mvccpb::Event]) -> Vec<ForeignChange> {
    let revision = |event: &mvccpb::Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
    let mut changes = Vec::new();
    for of_revision in events.chunk_by(|a, b| revision(a) == revision(b)) {
        let key = |event: &mvccpb::Event| event.kv.as_ref().map(|kv| kv.key.clone());
        if of_revision
            .iter()
            .filter_map(key)
            .any(|key| names.is_own(&key))
        {
            continue;
        }
        for event in of_revision {
            // A key with a lease has moved with it: here it goes when the lease runs out, and what
            // has become of it the new store alone decides.
            let leased = event.prev_kv.as_ref().is_some_and(|prev| prev.lease != 0);
            let expired = event.r#type() == EventType::Delete && leased;
            let reserved = key(event).is_none_or(|key| names.reserved().contains(&key));
            if expired || reserved {
                continue;
            }
            let mut event = Event::from(event.clone());
            match &mut event.change {
                Change::Put(kv) => numbers.translate(kv, Claimed::Here),
                Change::Delete { revision, .. } => *revision = numbers.visible(revision.0),
            }
            if let Some(prev) = &mut event.prev {
                numbers.translate(prev, Claimed::Here);
            }
            changes.push(ForeignChange::Key(event));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Reserved;

    fn event(
        key: &'static str,
        revision: i64,
        delete: bool,
        lease_before: Option<i64>,
    ) -> mvccpb::Event {
        let kv = |lease| mvccpb::KeyValue {
            key: key.into(),
            mod_revision: revision,
            create_revision: 1,
            version: 1,
            lease,
            ..mvccpb::KeyValue::default()
        };
        let kind = if delete {
            EventType::Delete
        } else {
            EventType::Put
        };
        mvccpb::Event {
            r#type: kind.into(),
            kv: Some(kv(0)),
            prev_kv: lease_before.map(kv),
        }
    }

    #[test]
    fn a_revision_with_a_key_of_our_own_is_ours_and_what_expires_is_nobodys() {
        let names = Names::new(&Reserved::default());
        let events = vec![
            event("a", 5, false, None),
            event("b", 6, false, Some(0)),
            event("segue/_/record/mirror", 6, false, None),
            event("c", 7, true, Some(77)),
            event("d", 7, true, Some(0)),
            event("e", 8, false, Some(77)),
            event("segue/switch", 9, false, None),
        ];
        let changes = foreign(&names, &Numbers::default(), &events);
        let keys: Vec<_> = changes.iter().map(ForeignChange::key).collect();
        assert_eq!(keys, ["a", "d", "e"]);
    }
}
