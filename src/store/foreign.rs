//! What others than Segue change in the old store while a migration is under way.

use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::Result;
use crate::types::{Event, Revision};

/// Changes that come, in order. Ends, or fails, when the store can no longer tell; asking again from
/// behind the last batch that was taken goes on. Whoever asks for the next batch has taken the one
/// before.
pub type ForeignChanges = BoxStream<'static, Result<ForeignBatch>>;

/// How far changes were seen. A store that is asked where it was told from goes on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bookmark {
    /// [`ForeignBatch::through`] of the last batch.
    pub through: Revision,
    /// Its [`ForeignBatch::mark`].
    pub mark: Option<u64>,
}

/// Some changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignBatch {
    /// The changes; may be none.
    pub changes: Vec<ForeignChange>,
    /// There were others before them, which the store no longer knows.
    pub missed: bool,
    /// Nothing up to this revision comes any more.
    pub through: Revision,
    /// What the store held after these changes, in short, where its revisions do not say so.
    pub mark: Option<u64>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeignChange {
    /// Of one key. What expired by itself is none.
    Key(Event),
    /// Of every key that begins with this: they are gone.
    Below(Bytes),
    /// Of a key that cannot be one of ours, or whose value cannot; and why.
    Unreadable(Bytes, String),
}

impl ForeignChange {
    /// The key, or what the keys begin with.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Key(event) => event.key(),
            Self::Below(key) | Self::Unreadable(key, _) => key,
        }
    }
}
