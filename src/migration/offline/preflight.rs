//! What has to be known before anything is written.

use std::fmt;
use std::sync::Arc;

use super::{CopyError, NAMED, TIMING, listed};
use crate::migration::joining::{OpenError, is_being_emptied};
use crate::migration::ledger::Ledger;
use crate::migration::phase::{FORMAT, Phase, State};
use crate::migration::records::{MEMBERS, Member, STATE, readable};
use crate::migration::switch::KEY;
use crate::store::{Guard, NewStore, OldStore, PageSize, Result, StoreError};
use crate::types::{Content, KeyRange, Range, Reserved};
use tokio::time::Instant;

/// Pairs of the old store that are read to see whether that can be done.
const PAGE: usize = 1000;
/// What Segue keeps in an etcd is below this, under the reserved prefix.
const OWN: &str = "_/";

/// What the new store holds.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing.
    Empty,
    /// A part of a copy from the same old store.
    Unfinished(State),
    /// Something else.
    Other(Contents),
}

/// What would be lost if the new store were emptied.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Keys of clients.
    pub keys: u64,
    /// The migration that the store belongs to, and whether it came from another old store.
    pub migration: Option<(State, bool)>,
    /// Somebody was emptying the store, and this is what is left of it.
    pub rest: bool,
}

impl Found {
    /// What emptying the store would lose.
    pub async fn contents(&self, new: &Arc<dyn NewStore>) -> Result<Option<Contents>> {
        let migration = match self {
            Self::Empty => return Ok(None),
            Self::Other(contents) => return Ok(Some(contents.clone())),
            Self::Unfinished(state) => Some((state.clone(), false)),
        };
        let keys = keys(new).await?;
        Ok(Some(Contents {
            keys,
            migration,
            rest: false,
        }))
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keys {
            0 => f.write_str("no keys")?,
            1 => f.write_str("1 key")?,
            keys => write!(f, "{keys} keys")?,
        }
        if self.rest {
            return f.write_str(" of a store that an earlier --force did not finish emptying");
        }
        let Some((state, foreign)) = &self.migration else {
            return match self.keys {
                0 => f.write_str(", but records or keys of Segue's own"),
                _ => f.write_str(
                    " of an application, which has written them there or was given them by a copy or \
                     migration that is complete",
                ),
            };
        };
        let whence = if *foreign {
            "another old store"
        } else {
            "this old store"
        };
        match (state.phase, state.offline) {
            (Phase::Settled, true) => write!(f, " of a finished copy from {whence}"),
            (Phase::Settled, false) => write!(f, " of a settled migration from {whence}"),
            (_, true) => write!(f, " of an unfinished copy from {whence}"),
            (phase, false) => write!(
                f,
                " of a live migration from {whence}, which is in the {phase} phase"
            ),
        }?;
        match state.phase {
            // Whoever has used the store since then has changed it at will.
            Phase::Settled => f.write_str(", and whatever was written there since"),
            _ => f.write_str(", and the records of it"),
        }
    }
}

async fn keys(new: &Arc<dyn NewStore>) -> Result<u64> {
    let count = Range {
        content: Content::CountOnly,
        ..Range::of(KeyRange::all())
    };
    let answer = new.guarded(Guard::None).range(count).await?;
    Ok(answer.reply.count as u64)
}

/// What the new store holds, as seen from `old`.
pub(super) async fn inspect(
    old: &Arc<dyn OldStore>,
    new: &Arc<dyn NewStore>,
    ledger: &Ledger,
) -> Result<Found, CopyError> {
    let identity = old.identity().await?;
    if identity == new.identity().await? {
        return Err(OpenError::Same.into());
    }
    if new.is_empty().await? {
        return Ok(Found::Empty);
    }
    if is_being_emptied(new).await? {
        return Ok(Found::Other(Contents {
            keys: keys(new).await?,
            migration: None,
            rest: true,
        }));
    }
    let state = ledger.get::<State>(STATE).await?.map(|entry| entry.value);
    let Some(state) = state else {
        let keys = keys(new).await?;
        return Ok(Found::Other(Contents {
            keys,
            migration: None,
            rest: false,
        }));
    };
    if state.format != FORMAT {
        return Err(OpenError::Format(state.format).into());
    }
    let ours = state.offline && state.old == identity;
    if ours {
        return Ok(Found::Unfinished(state));
    }
    let foreign = state.old != identity;
    Ok(Found::Other(Contents {
        keys: keys(new).await?,
        migration: Some((state, foreign)),
        rest: false,
    }))
}

/// Reads one page of the old store with its values, its leases, and what is under the reserved prefix; see
/// [`super::Offline::probe`].
pub(super) async fn probe(
    old: &Arc<dyn OldStore>,
    reserved: &Reserved,
    have_to: bool,
) -> Result<bool, CopyError> {
    let unreadable = |error: StoreError| {
        CopyError::Failed(format!(
            "the old store cannot be read: {error}. Nothing was written, and nothing was deleted"
        ))
    };
    let page = old
        .scan(KeyRange::all(), PageSize::pairs(PAGE), Content::Full)
        .await;
    let page = page.map_err(unreadable)?;
    old.leases().await.map_err(unreadable)?;
    let (count, named) = hidden(old, reserved).await.map_err(unreadable)?;
    if count > 0 {
        return Err(CopyError::Refused(format!(
            "{count} keys of the old store begin with the prefix that is reserved for Segue's own, and would not \
             be copied:{}Say --reserved-prefix with one that no key begins with",
            listed(&named, usize::try_from(count).unwrap_or(usize::MAX))
        )));
    }
    if have_to && !page.rejects.is_empty() {
        let named = page.rejects.iter().take(NAMED);
        let named = named.map(|(key, why)| format!("{}: {why}", readable(key)));
        return Err(CopyError::Failed(format!(
            "the old store has keys that cannot be copied, at least these:{}Delete or change them there, and say \
             the same again; nothing was deleted",
            listed(&named.collect::<Vec<_>>(), page.rejects.len())
        )));
    }
    Ok(page.last_key().is_none())
}

/// How many keys are under the reserved prefix that are not Segue's own, and the first of them.
async fn hidden(old: &Arc<dyn OldStore>, reserved: &Reserved) -> Result<(u64, Vec<String>)> {
    let own = Reserved::new(reserved.key(OWN));
    let switch = reserved.key(KEY);
    let (mut count, mut named) = (0, Vec::new());
    let mut rest = Some(reserved.range().clone());
    while let Some(keys) = rest.take() {
        let page = old
            .scan_reserved(keys.clone(), PageSize::pairs(PAGE))
            .await?;
        rest = page.rest(&keys)?;
        let pairs = page.kvs.iter().map(|kv| &kv.key);
        let all = pairs.chain(page.rejects.iter().map(|(key, _)| key));
        for key in all.filter(|key| **key != switch && !own.contains(key)) {
            count += 1;
            if named.len() < NAMED {
                named.push(readable(key));
            }
        }
    }
    Ok((count, named))
}

/// Refuses if somebody else works on the new store. One that was killed is told by its beat, which
/// stands still; that takes a while to see, and `waiting` is called with its name.
pub(super) async fn nobody_works(
    ledger: &Ledger,
    waiting: &(dyn Fn(&str) + Sync),
) -> Result<(), CopyError> {
    let first = ledger.list::<Member>(MEMBERS).await?;
    let Some((_, member)) = first.first() else {
        return Ok(());
    };
    waiting(&member.value.name);
    let deadline = Instant::now() + TIMING.lapse;
    while Instant::now() < deadline {
        tokio::time::sleep(TIMING.look).await;
        let present = ledger.list::<Member>(MEMBERS).await?;
        if present.is_empty() {
            return Ok(());
        }
        let beats = present.iter().find(|(id, now)| {
            !first
                .iter()
                .any(|(other, was)| other == id && was.value == now.value)
        });
        if let Some((_, member)) = beats {
            return Err(CopyError::Refused(format!(
                "somebody else works on the new store at this moment: {}. Wait until it has ended, or stop it",
                member.value.name
            )));
        }
    }
    for (id, member) in first {
        ledger
            .remove(&format!("{MEMBERS}{id}"), member.version)
            .await?;
    }
    Ok(())
}
