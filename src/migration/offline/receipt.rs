//! What a copy came to, for people and scripts.

use serde::{Deserialize, Serialize};

/// What `segue copy --json` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Where from, without secrets.
    pub old: String,
    /// Where to, without secrets.
    pub new: String,
    /// The copy's random name.
    pub migration: String,
    /// Keys that the new store holds.
    pub keys: u64,
    /// Bytes of keys and values that were copied.
    pub bytes: u64,
    /// Leases that were copied.
    pub leases: u64,
    /// The old store's last revision.
    pub base: i64,
    /// The new store's revision, from which it goes on.
    pub revision: i64,
    /// Keys of the old store that were compared with the new one's.
    pub compared: u64,
    /// Those that are the same in both. With [`Self::expired`] that is all of them.
    pub equal: u64,
    /// Keys whose leases have run out in one of the stores meanwhile.
    pub expired: u64,
    /// Keys that `--force` has deleted from the new store.
    pub deleted: u64,
    /// It went on with what an earlier run had begun.
    pub resumed: bool,
    /// When the copy was begun, by the first run, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it ended, likewise.
    pub finished_ms: u64,
    /// What should be looked at once more, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// How long this run took, in milliseconds.
    pub took_ms: u64,
}
