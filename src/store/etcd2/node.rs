//! What the v2 API says about nodes, and what it means.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::types::{KeyValue, LeaseId, Revision};

/// Numbers of leases made from `createdIndex`: this plus the index. Positive, unique as the index
/// is (a change of v2 creates one key), far from what clients choose, and easy to tell by eye.
const LEASE_TAG: i64 = 0x5e60_0000_0000_0000;

/// In JSON, what a byte was that is not UTF-8. A replacement character that was in the text all
/// along is not escaped.
const MANGLED: &str = "ufffd";

/// Something that a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Child {
    /// A file.
    Pair {
        /// As a pair of ours.
        kv: KeyValue,
        /// What is left of its time to live, if it has one.
        ttl_s: Option<i64>,
    },
    /// A directory.
    Dir {
        /// What all keys below it begin with.
        prefix: Bytes,
        /// What is left of its time to live, or of one above it.
        ttl_s: Option<i64>,
    },
    /// A node that cannot be a pair of ours.
    Reject {
        /// Its key, as far as it can be told.
        key: Bytes,
        /// Why.
        reason: String,
    },
}

impl Child {
    /// What it is ordered by. A directory stands where its keys do: `/a!` comes before `/a/b`, and
    /// both come before `/a0`, whatever order the directories have among themselves.
    pub(super) fn key(&self) -> &Bytes {
        match self {
            Self::Pair { kv, .. } => &kv.key,
            Self::Dir { prefix, .. } => prefix,
            Self::Reject { key, .. } => key,
        }
    }

    /// Whether it is a pair.
    pub(super) fn is_pair(&self) -> bool {
        matches!(self, Self::Pair { .. })
    }

    /// About what it takes up in memory.
    pub(super) fn weight(&self) -> usize {
        // Beside the bytes: the allocation of each and the entry itself.
        let bytes = match self {
            Self::Pair { kv, .. } => kv.key.len() + kv.value.len(),
            Self::Dir { prefix, .. } => prefix.len(),
            Self::Reject { key, reason } => key.len() + reason.len(),
        };
        bytes + size_of::<Self>() + 64
    }
}

/// An answer of the API to a read.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    node: Node<'a>,
}

/// A node as the API writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node<'a> {
    /// Missing from the root.
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    /// Missing from directories.
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(default)]
    dir: bool,
    ttl: Option<i64>,
    #[serde(default)]
    modified_index: i64,
    #[serde(default)]
    created_index: i64,
    #[serde(borrow, default)]
    nodes: Vec<Node<'a>>,
}

/// Reads an answer to a request for one node. `dir_ttl_s` is the time to live that a directory
/// above it has.
pub(super) fn parse_node(body: &[u8], dir_ttl_s: Option<i64>) -> serde_json::Result<Child> {
    let answer: Answer<'_> = serde_json::from_slice(body)?;
    child(&answer.node, dir_ttl_s)
}

/// Reads an answer to a request for a directory: its children in the byte order of the keys in
/// and below them. A file is a directory without children.
pub(super) fn parse_directory(
    body: &[u8],
    dir_ttl_s: Option<i64>,
) -> serde_json::Result<Vec<Child>> {
    let answer: Answer<'_> = serde_json::from_slice(body)?;
    let ttl_s = shorter(answer.node.ttl.filter(|_| answer.node.dir), dir_ttl_s);
    let mut children = answer
        .node
        .nodes
        .iter()
        .map(|node| child(node, ttl_s))
        .collect::<serde_json::Result<Vec<_>>>()?;
    children.sort_unstable_by(|a, b| a.key().cmp(b.key()));
    Ok(children)
}

/// A change, as an answer to a wait tells it.
pub(super) struct Told {
    /// What was done, in the API's words.
    pub(super) action: String,
    /// The cluster's index of it.
    pub(super) index: Revision,
    /// What it was done to.
    pub(super) child: Child,
    /// The same before, if it was there.
    pub(super) before: Option<Child>,
}

/// Reads an answer to a wait.
pub(super) fn parse_event(body: &[u8]) -> serde_json::Result<Told> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer<'a> {
        action: String,
        #[serde(borrow)]
        node: Node<'a>,
        #[serde(borrow)]
        prev_node: Option<Node<'a>>,
    }
    let answer: Answer<'_> = serde_json::from_slice(body)?;
    let before = answer.prev_node.map(|node| child(&node, None));
    Ok(Told {
        action: answer.action,
        index: Revision(answer.node.modified_index),
        child: child(&answer.node, None)?,
        before: before.transpose()?,
    })
}

fn child(node: &Node<'_>, dir_ttl_s: Option<i64>) -> serde_json::Result<Child> {
    let ttl_s = shorter(node.ttl, dir_ttl_s);
    let (key, key_is_mangled) = match node.key {
        Some(raw) => text(raw)?,
        None => (String::new(), false),
    };
    if node.dir {
        let prefix = Bytes::from(key + "/");
        return Ok(if key_is_mangled {
            let reason = "the directory's name is not UTF-8, so that the v2 API cannot be asked for \
                          what is in it; rename it";
            Child::Reject {
                key: prefix,
                reason: reason.into(),
            }
        } else {
            Child::Dir { prefix, ttl_s }
        });
    }
    let (value, value_is_mangled) = match node.value {
        Some(raw) => text(raw)?,
        None => (String::new(), false),
    };
    let key = Bytes::from(key);
    for (mangled, what) in [(key_is_mangled, "key"), (value_is_mangled, "value")] {
        if mangled {
            let reason = format!(
                "the {what} is not UTF-8, and the v2 API answers in JSON, which cannot hold it; \
                 write it anew through the proxy, or delete it"
            );
            return Ok(Child::Reject { key, reason });
        }
    }
    let kv = KeyValue {
        key,
        create_revision: Revision(node.created_index),
        mod_revision: Revision(node.modified_index),
        version: 1,
        value: value.into(),
        lease: ttl_s.map_or(LeaseId::NONE, |_| lease_of(node.created_index)),
    };
    Ok(Child::Pair { kv, ttl_s })
}

/// The lease of a key that was created at this index and expires.
pub(super) fn lease_of(created_index: i64) -> LeaseId {
    LeaseId(LEASE_TAG + created_index)
}

fn shorter(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    // A key on its last second says 0 or 1; a lease has at least one.
    a.into_iter().chain(b).min().map(|ttl_s| ttl_s.max(1))
}

/// The text of a JSON string, and whether it is not what it was in the store.
fn text(raw: &RawValue) -> serde_json::Result<(String, bool)> {
    let text = serde_json::from_str(raw.get())?;
    Ok((text, has_mangled_byte(raw.get())))
}

fn has_mangled_byte(json: &str) -> bool {
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at + 1..];
        if escape.starts_with(MANGLED) {
            return true;
        }
        // Behind the escaped character, which may be a backslash itself.
        let next = escape.chars().next().map_or(0, char::len_utf8);
        rest = &escape[next..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(nodes: &str) -> Vec<Child> {
        let body = format!(r#"{{"action":"get","node":{{"dir":true,"nodes":[{nodes}]}}}}"#);
        parse_directory(body.as_bytes(), None).unwrap()
    }

    #[test]
    fn children_are_in_the_order_of_the_keys_below_them() {
        let children = directory(
            r#"{"key":"/a","dir":true},{"key":"/a!","value":""},{"key":"/a-b","value":""},
               {"key":"/a0","value":""},{"key":"/a!x","dir":true},{"key":"/a.","dir":true}"#,
        );
        let keys: Vec<_> = children.iter().map(|c| &c.key()[..]).collect();
        assert_eq!(
            keys,
            [&b"/a!"[..], b"/a!x/", b"/a-b", b"/a./", b"/a/", b"/a0"]
        );
        assert!(keys.is_sorted());
    }

    #[test]
    fn bytes_that_json_cannot_hold_are_rejected() {
        for (value, rejected) in [
            (r#""plain""#, false),
            (r#""\ufffd""#, true),
            (r#""a\\\ufffd""#, true),
            (r#""\\ufffd""#, false),
            (r#""\n\\\\ufffd""#, false),
            ("\"\u{fffd}\"", false),
        ] {
            let children = directory(&format!(r#"{{"key":"/a","value":{value}}}"#));
            let is_reject = matches!(children[0], Child::Reject { .. });
            assert_eq!(is_reject, rejected, "{value}");
        }
        let named = directory(r#"{"key":"/\ufffd","value":"x"},{"key":"/\ufffdd","dir":true}"#);
        assert!(named.iter().all(|c| matches!(c, Child::Reject { .. })));
    }

    #[test]
    fn a_key_expires_with_the_first_of_its_directories() {
        let body = br#"{"node":{"key":"/d","dir":true,"ttl":40,"nodes":[
            {"key":"/d/a","value":"1","ttl":9,"createdIndex":7,"modifiedIndex":8},
            {"key":"/d/b","value":"2","createdIndex":9,"modifiedIndex":9},
            {"key":"/d/c","dir":true,"ttl":50}]}}"#;
        for (above, expected) in [(None, [9, 40, 40]), (Some(5), [5, 5, 5])] {
            let ttls: Vec<_> = parse_directory(body, above)
                .unwrap()
                .into_iter()
                .map(|child| match child {
                    Child::Pair { ttl_s, kv } => {
                        assert_eq!(kv.lease, lease_of(kv.create_revision.0));
                        ttl_s.unwrap()
                    }
                    Child::Dir { ttl_s, .. } => ttl_s.unwrap(),
                    Child::Reject { .. } => unreachable!(),
                })
                .collect();
            assert_eq!(ttls, expected);
        }
        assert!(lease_of(1).0 > 0);
    }
}
