//! Pairs and events.

use crate::proto::mvccpb as pb;
use crate::types::{Change, Event, KeyValue, LeaseId, Revision};

impl From<pb::KeyValue> for KeyValue {
    fn from(kv: pb::KeyValue) -> Self {
        Self {
            key: kv.key,
            create_revision: Revision(kv.create_revision),
            mod_revision: Revision(kv.mod_revision),
            version: kv.version,
            value: kv.value,
            lease: LeaseId(kv.lease),
        }
    }
}

impl From<KeyValue> for pb::KeyValue {
    fn from(kv: KeyValue) -> Self {
        Self {
            key: kv.key,
            create_revision: kv.create_revision.0,
            mod_revision: kv.mod_revision.0,
            version: kv.version,
            value: kv.value,
            lease: kv.lease.0,
        }
    }
}

impl From<pb::Event> for Event {
    fn from(event: pb::Event) -> Self {
        let delete = event.r#type() == pb::event::EventType::Delete;
        let kv = event.kv.unwrap_or_default();
        Self {
            change: if delete {
                Change::Delete {
                    key: kv.key,
                    revision: Revision(kv.mod_revision),
                }
            } else {
                Change::Put(kv.into())
            },
            prev: event.prev_kv.map(KeyValue::from),
        }
    }
}

impl From<Event> for pb::Event {
    fn from(event: Event) -> Self {
        let (kind, kv) = match event.change {
            Change::Put(kv) => (pb::event::EventType::Put, kv.into()),
            Change::Delete { key, revision } => (
                pb::event::EventType::Delete,
                pb::KeyValue {
                    key,
                    mod_revision: revision.0,
                    ..pb::KeyValue::default()
                },
            ),
        };
        Self {
            r#type: kind.into(),
            kv: Some(kv),
            prev_kv: event.prev.map(pb::KeyValue::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_written_back() {
        let kv = |version| KeyValue {
            key: "k".into(),
            create_revision: Revision(4),
            mod_revision: Revision(7),
            version,
            value: "v".into(),
            lease: LeaseId(9),
        };
        for event in [
            Event {
                change: Change::Put(kv(2)),
                prev: Some(kv(1)),
            },
            Event {
                change: Change::Delete {
                    key: "k".into(),
                    revision: Revision(8),
                },
                prev: None,
            },
        ] {
            assert_eq!(Event::from(pb::Event::from(event.clone())), event);
        }
    }
}
