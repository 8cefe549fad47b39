//! What others change in an etcd over its v2 API. Segue writes nothing there, so all changes are.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};

use super::http::Waited;
use super::node::{Child, parse_event};
use super::tree::Tree;
use crate::store::foreign::{ForeignBatch, ForeignChange, ForeignChanges};
use crate::store::{Result, StoreError};
use crate::types::{Change, Event, Reserved, Revision};

/// The changes behind `after`. The API knows the last thousand.
pub(super) fn changes(tree: Arc<Tree>, reserved: Reserved, after: Revision) -> ForeignChanges {
    let state = Some((tree, reserved, after));
    let changes = stream::unfold(state, |state| async {
        let (tree, reserved, after) = state?;
        match next(&tree, &reserved, after).await {
            Ok(batch) => {
                let through = batch.through;
                Some((Ok(batch), Some((tree, reserved, through))))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    changes.boxed()
}

async fn next(tree: &Tree, reserved: &Reserved, after: Revision) -> Result<ForeignBatch> {
    let nothing = |through: Revision, missed| ForeignBatch {
        changes: Vec::new(),
        missed,
        through,
        mark: None,
    };
    match tree.http().wait(after.next()).await? {
        Waited::Nothing { through } => Ok(nothing(through.max(after), false)),
        Waited::Forgotten { through } => Ok(nothing(through.max(after), true)),
        Waited::Event(body) => {
            let (change, index) = read(&body).map_err(|error| {
                StoreError::Broken(format!(
                    "etcd v2 told a change that cannot be read: {error}"
                ))
            })?;
            let shown = |change: &ForeignChange| !reserved.contains(change.key());
            Ok(ForeignBatch {
                changes: change.into_iter().filter(shown).collect(),
                ..nothing(index.max(after.next()), false)
            })
        }
    }
}

/// The change that an answer to a wait tells, if it is one of keys, and its index.
fn read(body: &[u8]) -> serde_json::Result<(Option<ForeignChange>, Revision)> {
    let event = parse_event(body)?;
    let gone = matches!(&*event.action, "delete" | "compareAndDelete");
    let change = match event.child {
        // What has a time to live has moved with it, and the new store alone decides about it.
        _ if event.action == "expire" => None,
        Child::Pair { kv, .. } => Some(ForeignChange::Key(Event {
            change: if gone {
                Change::Delete {
                    key: kv.key,
                    revision: event.index,
                }
            } else {
                Change::Put(kv)
            },
            prev: match event.before {
                Some(Child::Pair { kv, .. }) => Some(kv),
                _ => None,
            },
        })),
        Child::Dir { prefix, .. } => gone.then_some(ForeignChange::Below(prefix)),
        Child::Reject { key, reason } => Some(ForeignChange::Unreadable(key, reason)),
    };
    Ok((change, event.index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_understood() {
        let told = |action: &str, node: &str, prev: &str| {
            let body = format!(r#"{{"action":"{action}","node":{{{node}}}{prev}}}"#);
            read(body.as_bytes()).unwrap()
        };
        let pair = r#""key":"/a","value":"1","modifiedIndex":9,"createdIndex":7"#;
        let gone = r#""key":"/a","modifiedIndex":9,"createdIndex":7"#;
        let dir = r#""key":"/d","dir":true,"modifiedIndex":9,"createdIndex":7"#;
        let prev = r#","prevNode":{"key":"/a","value":"0","modifiedIndex":8,"createdIndex":7}"#;
        for (action, node, kind) in [
            ("set", pair, "put"),
            ("create", pair, "put"),
            ("update", pair, "put"),
            ("compareAndSwap", pair, "put"),
            ("delete", gone, "delete"),
            ("compareAndDelete", gone, "delete"),
            ("expire", gone, ""),
            ("set", dir, ""),
            ("create", dir, ""),
            ("expire", dir, ""),
            ("delete", dir, "below /d/"),
            (
                "set",
                r#""key":"/a","value":"\ufffd","modifiedIndex":9"#,
                "unreadable",
            ),
        ] {
            let (change, index) = told(action, node, prev);
            let actual = match change {
                None => String::new(),
                Some(ForeignChange::Below(prefix)) => {
                    format!("below {}", String::from_utf8_lossy(&prefix))
                }
                Some(ForeignChange::Unreadable(..)) => "unreadable".into(),
                Some(ForeignChange::Key(event)) => {
                    assert_eq!(event.revision(), Revision(9));
                    assert_eq!(event.prev.as_ref().unwrap().value, "0");
                    match event.change {
                        Change::Put(_) => "put".into(),
                        Change::Delete { .. } => "delete".into(),
                    }
                }
            };
            assert_eq!((&*actual, index), (kind, Revision(9)), "{action} {node}");
        }
    }
}
