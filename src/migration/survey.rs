//! Divides the old store into shards by walking over its keys, without values, well ahead of the
//! copying. No guess about how keys are distributed can be wrong then, and in the end the number of
//! keys is known exactly.

use std::sync::Arc;

use tokio::sync::Notify;

use super::ledger::{Entry, Ledger, write};
use super::reach::Reach;
use super::records::{SHARDS, SURVEY, Shard, Survey};
use crate::store::{OldStore, RecordTxn, Result, StoreError};
use crate::types::Content;

/// Keys in the first shards. Later ones grow with the store, so that there are never many.
const STRIDE: u64 = 4096;
/// A shard has at most this part of what was seen before it.
const PART: u64 = 16;
/// Keys per page.
const PAGE: usize = 10_000;

/// Goes on with the survey until every key is in a shard. `found` is notified of each.
pub async fn survey(ledger: &Ledger, old: &dyn OldStore, found: &Arc<Notify>) -> Result<()> {
    // Every migration begins with one, so without it this one is over.
    let read = async || ledger.get(SURVEY).await?.ok_or(StoreError::StaleEpoch);
    let mut entry: Entry<Survey> = read().await?;
    let mut reach = Reach::from(entry.value.next.clone());
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
        if ledger.write(txn).await? {
            entry.value = next;
            entry.version += 1;
            found.notify_one();
        } else {
            entry = read().await?;
            reach = Reach::from(entry.value.next.clone());
        }
    }
    Ok(())
}

/// The next shard; `reach` and `survey` are moved behind it.
async fn stride(old: &dyn OldStore, reach: &mut Reach, survey: &mut Survey) -> Result<Shard> {
    let wanted = STRIDE.max(survey.seen / PART);
    let start = survey.next.clone();
    let mut surveyed = 0;
    while surveyed < wanted && !survey.done {
        let limit = usize::try_from(wanted - surveyed).unwrap_or(PAGE).min(PAGE);
        let page = old.scan(reach.range(), limit, Content::KeysOnly).await?;
        surveyed += (page.kvs.len() + page.rejects.len()) as u64;
        survey.done = !reach.go_on(&page, page.stop()?);
    }
    if !survey.done {
        survey.next = reach.next().clone();
    }
    survey.seen += surveyed;
    Ok(Shard {
        frontier: start.clone(),
        start,
        end: (!survey.done).then(|| survey.next.clone()),
        surveyed,
        ..Shard::default()
    })
}
