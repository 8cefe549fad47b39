//! Divides the old store into shards by walking over its keys, without values, well ahead of the
//! copying. Where the store says how many keys a range holds, some of them are enough to know how the
//! next ones lie. No guess about that can do harm: what is divided is what was counted, and in the end
//! the number of keys is known exactly.

use std::sync::Arc;

use tokio::sync::Notify;

use super::ledger::{Entry, Ledger, write};
use super::reach::Reach;
use super::records::{SHARDS, SURVEY, Shard, Survey};
use crate::store::{Left, OldStore, PageSize, RecordTxn, Result, StoreError};
use crate::types::{Content, Epoch, Reserved};

/// Keys in the first shards. Later ones grow with the store, so that there are never many.
const STRIDE: u64 = 4096;
/// A shard has about this part of what was seen before it.
const PART: u64 = 16;
/// Keys per page, at most.
const PAGE: usize = 10_000;
/// Of so many keys one is looked at. The others are only counted, which takes a store less: an etcd reads a
/// value that nobody asked for all the same.
const COUNTED: u8 = 16;
/// Keys that tell how those behind them lie, at least.
const SAMPLE: usize = 256;

/// Goes on with the survey until every key but the reserved ones is in a shard, in this epoch. `found` is
/// notified of each.
pub async fn survey(
    ledger: &Ledger,
    epoch: Epoch,
    old: &dyn OldStore,
    reserved: &Reserved,
    found: &Arc<Notify>,
) -> Result<()> {
    // Every migration begins with one, so without it this one is over.
    let read = async || ledger.get(SURVEY).await?.ok_or(StoreError::StaleEpoch);
    let mut entry: Entry<Survey> = read().await?;
    let mut reach = behind(&entry.value, reserved);
    while !entry.value.done {
        let mut next = entry.value.clone();
        let shard = stride(old, &mut reach, &mut next).await?;
        let name = format!("{SHARDS}{:06}", entry.value.shards);
        next.shards += 1;
        let txn = RecordTxn {
            expect: vec![(SURVEY.to_owned(), entry.version)],
            writes: vec![write(SURVEY, &next), write(name, &shard)],
            ..RecordTxn::default()
        };
        if ledger.write_in(epoch, txn).await? {
            entry.value = next;
            entry.version += 1;
            found.notify_one();
        } else {
            entry = read().await?;
            reach = behind(&entry.value, reserved);
        }
    }
    Ok(())
}

/// The walk over what was not surveyed, if there is anything.
fn behind(survey: &Survey, reserved: &Reserved) -> Option<Reach> {
    Reach::over(survey.next.clone(), None, COUNTED, reserved)
}

/// The next shard; `walk` and `survey` are moved behind it.
async fn stride(
    old: &dyn OldStore,
    walk: &mut Option<Reach>,
    survey: &mut Survey,
) -> Result<Shard> {
    let wanted = usize::try_from(STRIDE.max(survey.seen / PART)).unwrap_or(usize::MAX);
    let start = survey.next.clone();
    let mut surveyed = 0;
    let mut counted = usize::from(COUNTED);
    survey.done |= walk.is_none();
    while let Some(reach) = walk
        && surveyed < wanted
    {
        let limit = ((wanted - surveyed) / counted).clamp(SAMPLE, PAGE);
        let size = PageSize::pairs(limit);
        let page = old.scan(reach.range(), size, Content::KeysOnly).await?;
        surveyed += page.kvs.len() + page.rejects.len();
        if page.left == Left::Untold {
            counted = 1;
        }
        // What is left of the range is taken as it is, unless the range was far too long.
        let left = page.left.exactly();
        let left = left.filter(|left| surveyed + left <= 2 * wanted);
        let stop = if left.is_some() { None } else { page.stop()? };
        surveyed += left.unwrap_or_default();
        if reach.go_on(&page, stop) {
            survey.next = reach.next().clone();
        } else {
            survey.done = true;
            *walk = None;
        }
    }
    survey.seen += surveyed as u64;
    Ok(Shard {
        frontier: start.clone(),
        start,
        end: (!survey.done).then(|| survey.next.clone()),
        surveyed: surveyed as u64,
        ..Shard::default()
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::memory::Memory;
    use crate::store::{AsOld, Store as _};
    use crate::types::{KeyRange, Put};

    /// Keys of two kinds, so that a guess from the one is wrong for the other.
    async fn filled(count: u64) -> AsOld {
        let store = Arc::new(Memory::new());
        for number in 0..count {
            let few = Put::new(format!("a{:03}", number * number % 1000), "");
            store.put(few).await.unwrap();
            let many = Put::new(format!("b/{number:020}"), "");
            store.put(many).await.unwrap();
        }
        AsOld::new(store, "a store".into())
    }

    #[tokio::test]
    async fn every_key_is_counted_in_one_shard_and_none_is_far_too_large() {
        let old = filled(40_000).await;
        let mut survey = Survey::default();
        let mut reach = behind(&survey, &Reserved::default());
        let mut end = Some(Bytes::new());
        let mut seen = 0;
        while !survey.done {
            let wanted = STRIDE.max(survey.seen / PART);
            let shard = stride(&old, &mut reach, &mut survey).await.unwrap();
            assert_eq!(Some(&shard.start), end.as_ref());
            let keys = KeyRange::span(shard.start, shard.end.clone());
            assert_eq!(old.count(keys).await.unwrap() as u64, shard.surveyed);
            assert!(shard.surveyed <= 2 * wanted, "{}", shard.surveyed);
            assert!(
                survey.done || shard.surveyed >= wanted,
                "{}",
                shard.surveyed
            );
            seen += shard.surveyed;
            end = shard.end;
        }
        assert_eq!(end, None);
        assert_eq!(seen, survey.seen);
        assert_eq!(seen, old.count(KeyRange::all()).await.unwrap() as u64);
    }
}
