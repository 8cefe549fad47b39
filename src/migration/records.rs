//! What the migration keeps in the new store, record by record. All of it is JSON, so that an
//! operator can read it with the store's own tools.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::phase::Phase;
use crate::types::{Epoch, KeyRange};

/// The [`super::phase::State`].
pub const STATE: &str = "state";
/// Prefix of the [`Member`]s.
pub const MEMBERS: &str = "members/";
/// Prefix of the [`Shard`]s.
pub const SHARDS: &str = "backfill/shard/";
/// The [`Survey`].
pub const SURVEY: &str = "backfill/survey";
/// The [`Owner`].
pub const OWNER: &str = "backfill/owner";
/// The [`Control`].
pub const CONTROL: &str = "backfill/control";
/// Prefix of the [`Reject`]s.
pub const REJECTS: &str = "rejects/";
/// The latest [`super::verify::Report`].
pub const VERIFY: &str = "verify";
/// The [`crate::store::mark::Mark`] of the old store at the beginning of an offline copy.
pub const MARK: &str = "copy/mark";
/// The [`Switch`].
pub const SWITCH: &str = "switch";

/// A proxy of this migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What it is called.
    pub name: String,
    /// The client URL that is told to clients.
    pub client_url: String,
    /// The address of its admin API.
    pub admin: String,
    /// The epoch whose predecessors it has no work of any more.
    pub acknowledged: Epoch,
    /// Grows while it lives.
    pub beat: u64,
    /// What keeps the mirror from going on, if it runs here and something does.
    #[serde(default)]
    pub mirror_trouble: Option<String>,
    /// What the latest transition that it is through with has cost its requests.
    #[serde(default)]
    pub stall: Stall,
}

/// What a transition has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// The epoch that it led to.
    pub epoch: Epoch,
    /// The longest that a request has waited, in milliseconds; 0 if none had to.
    pub ms: u64,
}

/// Who runs the backfill, and whatever else one member does for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The member's id.
    pub member: String,
}

/// How the backfill is to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Copy nothing for now.
    pub paused: bool,
    /// Most keys per second.
    pub rate_keys: Option<u64>,
    /// Most bytes per second.
    pub rate_bytes: Option<u64>,
}

/// How far the old store has been divided into shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// Keys that the old store had when the survey began; an estimate in some stores.
    pub expected: u64,
    /// Keys seen so far.
    pub seen: u64,
    /// Shards made so far.
    pub shards: u64,
    /// First key that is in no shard yet.
    #[serde(with = "hex")]
    pub next: Bytes,
    /// Every key is in a shard.
    pub done: bool,
}

/// A part of the old store that is copied from its start to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// First key.
    #[serde(with = "hex")]
    pub start: Bytes,
    /// First key that is no longer in it; nothing is the end of all keys.
    #[serde(with = "hex::option")]
    pub end: Option<Bytes>,
    /// The frontier: everything below it was copied up or rejected.
    #[serde(with = "hex")]
    pub frontier: Bytes,
    /// Everything was.
    pub done: bool,
    /// Keys that the survey saw in it.
    pub surveyed: u64,
    /// Keys that the backfill copied.
    pub copied: u64,
    /// Bytes of all pairs that it has been past, keys and values.
    pub bytes: u64,
    /// Keys that were claimed before the backfill came to them.
    pub claimed: u64,
    /// Keys that were rejected.
    pub rejected: u64,
}

impl Shard {
    /// What is left to copy.
    #[must_use]
    pub fn rest(&self) -> KeyRange {
        KeyRange::span(self.frontier.clone(), self.end.clone())
    }

    /// What was copied.
    #[must_use]
    pub fn copied_span(&self) -> KeyRange {
        let end = if self.done {
            self.end.clone()
        } else {
            Some(self.frontier.clone())
        };
        KeyRange::span(self.start.clone(), end)
    }

    /// Keys that the backfill has been past.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.copied + self.claimed + self.rejected
    }

    /// Keys that it has yet to come to, as far as the survey knows.
    #[must_use]
    pub fn left(&self) -> u64 {
        if self.done {
            0
        } else {
            self.surveyed.saturating_sub(self.passed())
        }
    }
}

/// A key that the new store cannot take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The key.
    #[serde(with = "hex")]
    pub key: Bytes,
    /// Why.
    pub reason: String,
}

impl Reject {
    /// The name of the record. Long keys are shortened, with a checksum for what is left out: names
    /// have a limit in every store, and what is rejected is often a key that is too long.
    #[must_use]
    pub fn record(key: &[u8]) -> String {
        const MOST: usize = 100;
        let head = hex::encode(&key[..key.len().min(MOST)]);
        if key.len() <= MOST {
            format!("{REJECTS}{head}")
        } else {
            format!("{REJECTS}{head}-{:08x}-{}", crc32fast::hash(key), key.len())
        }
    }
}

/// What became of the latest request to switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// The store's own revision of the switch key's value.
    pub revision: i64,
    /// Its value.
    pub value: String,
    /// The phase that it asks for, if it was understood.
    pub to: Option<Phase>,
    /// Wait until it is safe.
    pub when_ready: bool,
    /// What became of it.
    pub outcome: Outcome,
    /// Why.
    pub reason: String,
}

impl Switch {
    /// The same request, refused.
    #[must_use]
    pub fn refused(self, why: &str) -> Self {
        Self {
            outcome: Outcome::Refused,
            reason: why.into(),
            ..self
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing was asked.
    #[default]
    None,
    /// It was not safe, and is forgotten.
    Refused,
    /// It is not safe yet, and is done as soon as it is.
    Waiting,
    /// It was done.
    Done,
}

/// Bytes as text, for JSON.
pub mod hex {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Two lower-case digits for each byte.
    #[must_use]
    pub fn encode(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        bytes
            .iter()
            .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
    }

    /// The bytes, if the text is what [`encode`] makes.
    #[must_use]
    pub fn decode(text: &str) -> Option<Bytes> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        if !text.len().is_multiple_of(2) {
            return None;
        }
        text.as_bytes()
            .chunks_exact(2)
            .map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok())
            .collect::<Option<Vec<u8>>>()
            .map(Bytes::from)
    }

    /// For serde.
    #[allow(missing_docs, reason = "serde prescribes it")]
    pub fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&encode(bytes))
    }

    /// For serde.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        decode(&text).ok_or_else(|| D::Error::custom("these are not hexadecimal digits"))
    }

    /// The same for what may be missing.
    pub mod option {
        use super::{Bytes, Deserialize, Deserializer, Serializer, decode, encode};
        use serde::de::Error;

        /// For serde.
        pub fn serialize<S: Serializer>(bytes: &Option<Bytes>, to: S) -> Result<S::Ok, S::Error> {
            match bytes {
                Some(bytes) => to.serialize_some(&encode(bytes)),
                None => to.serialize_none(),
            }
        }

        /// For serde.
        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Bytes>, D::Error> {
            Option::<String>::deserialize(from)?
                .map(|text| decode(&text).ok_or_else(|| D::Error::custom("not hexadecimal digits")))
                .transpose()
        }
    }
}

/// A key as people can read it: what is no printable ASCII is escaped.
#[must_use]
pub fn readable(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_survive_json_with_any_bytes() {
        let shard = Shard {
            start: Bytes::from_static(&[0, 255]),
            end: Some(Bytes::from_static(b"z")),
            frontier: Bytes::from_static(&[0, 255, 1]),
            surveyed: 9,
            copied: 3,
            ..Shard::default()
        };
        let json = serde_json::to_string(&shard).unwrap();
        assert_eq!(serde_json::from_str::<Shard>(&json).unwrap(), shard);
        assert_eq!(shard.left(), 6);
        let open = Shard::default();
        let json = serde_json::to_string(&open).unwrap();
        assert_eq!(serde_json::from_str::<Shard>(&json).unwrap(), open);
    }

    #[test]
    fn only_what_was_passed_counts_as_copied() {
        let key = |text: &'static str| Bytes::from_static(text.as_bytes());
        let shard = Shard {
            start: key("a"),
            end: Some(key("z")),
            frontier: key("c"),
            ..Shard::default()
        };
        assert_eq!(shard.copied_span(), KeyRange::span("a", Some(key("c"))));
        assert_eq!(shard.rest(), KeyRange::span("c", Some(key("z"))));
        let done = Shard {
            done: true,
            ..shard
        };
        assert_eq!(done.copied_span(), KeyRange::span("a", Some(key("z"))));
    }

    #[test]
    fn long_keys_have_short_record_names_of_their_own() {
        let (a, b) = ([b'x'; 5000], [b'x'; 5001]);
        assert!(Reject::record(&a).len() < 250);
        assert_ne!(Reject::record(&a), Reject::record(&b));
        assert_eq!(Reject::record(b"a/"), "rejects/612f");
    }
}
