//! From rows to pairs: pure.

use bytes::Bytes;

use super::shape::Shape;
use crate::types::hash::fnv1a;
use crate::types::{KeyValue, LeaseId, Revision};

/// Longest time to live that etcd grants, in seconds.
const TTL_MAX_S: i64 = 9_000_000_000;

/// A row as every statement answers it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// The key, its columns joined.
    pub(super) key: Option<Bytes>,
    /// The value; where only keys were asked for, an empty one in its place.
    pub(super) value: Option<Bytes>,
    /// The revision, or the number that was asked for.
    pub(super) revision: Option<i64>,
    /// Seconds until it expires, if that can be said; of a walk, seconds since 1970.
    pub(super) ttl_s: Option<i64>,
    /// It is to expire.
    pub(super) expires: bool,
}

impl Row {
    /// Bytes of its key, and of its value if that was asked for.
    pub(super) fn weight(&self) -> usize {
        let there = self.key.iter().chain(&self.value);
        there.map(Bytes::len).sum()
    }
}

/// What became of the rows of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// They are a pair.
    Pair(KeyValue),
    /// They are none, for this reason.
    Reject(Bytes, String),
}

impl Judged {
    pub(super) fn key(&self) -> &Bytes {
        match self {
            Self::Pair(kv) => &kv.key,
            Self::Reject(key, _) => key,
        }
    }
}

/// Leaves out the last key, of which there may be more rows behind the page; unless it is the only
/// one, and then two rows of it are enough to know.
pub(super) fn drop_last_key(rows: &mut Vec<Row>) {
    let Some(last) = rows.last().map(|row| row.key.clone()) else {
        return;
    };
    let whole = rows.partition_point(|row| row.key < last);
    if whole > 0 {
        rows.truncate(whole);
    }
}

/// Makes pairs or rejects of rows that are in the order of their keys.
pub(super) fn judge(
    shape: &Shape,
    rows: impl IntoIterator<Item = Row>,
    values: bool,
) -> impl Iterator<Item = Judged> {
    let has_revision = shape.revision.is_some();
    let key_bytes_max = shape.key_bytes_max;
    let mut rows = rows.into_iter().filter(|row| row.key.is_some()).peekable();
    std::iter::from_fn(move || {
        let row = rows.next()?;
        let key = row.key.clone()?;
        let mut same = 1;
        while rows
            .next_if(|next| next.key.as_ref() == Some(&key))
            .is_some()
        {
            same += 1;
        }
        if same > 1 {
            let why = "more than one row has this key";
            return Some(Judged::Reject(key, why.to_owned()));
        }
        if let Some(max) = key_bytes_max.filter(|max| key.len() > *max) {
            let why = format!("its key has {} bytes, more than {max} bytes", key.len());
            return Some(Judged::Reject(key, why));
        }
        Some(match pair(key.clone(), row, values, has_revision) {
            Ok(kv) => Judged::Pair(kv),
            Err(why) => Judged::Reject(key, why),
        })
    })
}

fn pair(key: Bytes, row: Row, values: bool, has_revision: bool) -> Result<KeyValue, String> {
    if row.value.is_none() {
        return Err("its value is NULL".to_owned());
    }
    let revision = match row.revision.map(Revision) {
        _ if !has_revision => Revision(1),
        Some(revision) if is_revision(revision) => revision,
        _ => {
            let max = Revision::BASE_MAX;
            return Err(format!("its revision is not a number from 1 to {max}"));
        }
    };
    let lease = match (row.expires, row.ttl_s) {
        (false, _) => LeaseId::NONE,
        (true, Some(ttl_s)) if ttl_s <= TTL_MAX_S => lease_of(&key),
        (true, _) => {
            let why = "the time at which it expires is none: write a timestamp, or seconds since 1970 \
                       (not milliseconds)";
            return Err(why.to_owned());
        }
    };
    Ok(KeyValue {
        value: row.value.filter(|_| values).unwrap_or_default(),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease,
        key,
    })
}

/// Whether a row may have this revision: one that a migration can go on behind.
fn is_revision(revision: Revision) -> bool {
    (Revision(1)..=Revision::BASE_MAX).contains(&revision)
}

/// The number of the lease of a key that expires: the same whenever it is asked for, and positive.
fn lease_of(key: &[u8]) -> LeaseId {
    let hash = hash([key]);
    LeaseId(i64::try_from(hash >> 1).unwrap_or(1).max(1))
}

/// The hash of some parts, one behind the other.
pub(super) fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    fnv1a(parts.into_iter().flatten())
}
