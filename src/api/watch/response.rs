//! Responses of a watch: several revisions in one where they are small, one revision in several
//! where it is large and the client can put it together.

use std::collections::VecDeque;

use prost::Message;

use crate::api::Context;
use crate::proto::{etcdserverpb as pb, mvccpb};
use crate::types::{Change, Event, EventBatch, Revision};

/// Bytes from which on a response takes no further revision. Clients accept 4 MiB and more; a
/// single put can have 1.5 MiB, with its previous value twice that.
const MERGED_BYTES: usize = 256 * 1024;

/// Collects events into responses.
pub(super) struct Responses<'a> {
    context: &'a Context,
    watch_id: i64,
    /// The size from which on responses are split, if the client accepts that.
    fragment: Option<usize>,
    prev_kv: bool,
    events: Vec<mvccpb::Event>,
    bytes: usize,
    revision: Revision,
}

impl<'a> Responses<'a> {
    pub(super) fn new(
        context: &'a Context,
        watch_id: i64,
        fragment: Option<usize>,
        prev_kv: bool,
    ) -> Self {
        Self {
            context,
            watch_id,
            fragment,
            prev_kv,
            events: Vec::new(),
            bytes: 0,
            revision: Revision(0),
        }
    }

    /// Adds all events of one revision, which stay together.
    pub(super) fn add(&mut self, batch: EventBatch, outbox: &mut VecDeque<pb::WatchResponse>) {
        self.revision = batch.revision;
        self.events.reserve(batch.events.len());
        for mut event in batch.events {
            // As in etcd, what creates a key has no pair before it, also where the key was there before the
            // transaction and one of its operations removed it.
            if !self.prev_kv || creates(&event) {
                event.prev = None;
            }
            let event = mvccpb::Event::from(event);
            self.bytes += event.encoded_len();
            self.events.push(event);
        }
        if self.bytes >= MERGED_BYTES {
            self.flush(outbox);
        }
    }

    /// Sends what was collected.
    pub(super) fn flush(&mut self, outbox: &mut VecDeque<pb::WatchResponse>) {
        if self.events.is_empty() {
            return;
        }
        let events = std::mem::take(&mut self.events);
        let bytes = std::mem::take(&mut self.bytes);
        let count = u64::try_from(events.len()).unwrap_or(u64::MAX);
        self.context.metrics.watch_events.inc_by(count);
        let response = pb::WatchResponse {
            header: self.context.header(self.revision),
            watch_id: self.watch_id,
            events,
            ..pb::WatchResponse::default()
        };
        match self.fragment {
            Some(limit) if bytes >= limit => split(response, limit, outbox),
            _ => outbox.push_back(response),
        }
    }
}

fn creates(event: &Event) -> bool {
    matches!(&event.change, Change::Put(kv) if kv.create_revision == kv.mod_revision)
}

/// Splits a response into fragments below `limit` bytes, each with at least one event. All but the
/// last say that there is more.
fn split(mut whole: pb::WatchResponse, limit: usize, outbox: &mut VecDeque<pb::WatchResponse>) {
    let all = std::mem::take(&mut whole.events);
    let empty = pb::WatchResponse {
        fragment: true,
        ..whole
    };
    let (mut events, mut bytes) = (Vec::new(), 0);
    for event in all {
        let more = event.encoded_len();
        if !events.is_empty() && bytes + more >= limit {
            outbox.push_back(pb::WatchResponse {
                events: std::mem::take(&mut events),
                ..empty.clone()
            });
            bytes = 0;
        }
        bytes += more;
        events.push(event);
    }
    outbox.push_back(pb::WatchResponse {
        events,
        fragment: false,
        ..empty
    });
}

/// The end of a watch.
pub(super) fn canceled(
    context: &Context,
    watch_id: i64,
    revision: Revision,
    reason: &str,
) -> pb::WatchResponse {
    pb::WatchResponse {
        header: context.header(revision),
        watch_id,
        canceled: true,
        cancel_reason: reason.to_owned(),
        ..pb::WatchResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_response_is_split_and_says_so() {
        let event = |size: usize| mvccpb::Event {
            kv: Some(mvccpb::KeyValue {
                key: "k".into(),
                value: vec![0; size].into(),
                ..mvccpb::KeyValue::default()
            }),
            ..mvccpb::Event::default()
        };
        let whole = pb::WatchResponse {
            watch_id: 7,
            events: vec![event(40), event(40), event(400), event(10)],
            ..pb::WatchResponse::default()
        };
        let mut outbox = VecDeque::new();
        split(whole.clone(), 120, &mut outbox);
        let sizes: Vec<_> = outbox.iter().map(|part| part.events.len()).collect();
        assert_eq!(sizes, [2, 1, 1]);
        let more: Vec<_> = outbox.iter().map(|part| part.fragment).collect();
        assert_eq!(more, [true, true, false]);
        assert!(outbox.iter().all(|part| part.watch_id == 7));
        let events: Vec<_> = outbox.into_iter().flat_map(|part| part.events).collect();
        assert_eq!(events, whole.events);
    }
}
