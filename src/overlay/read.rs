//! Reads through the overlay: the old store first, then the new one in one snapshot (fact 6).
//!
//! The order is what makes the answer exactly the view at the snapshot. A key that is unclaimed in
//! the snapshot was unclaimed when the old store was read, and unclaimed keys do not change there.
//! The other way round, a key could be claimed, changed and mirrored between the two reads, and the
//! answer would mix two moments.
//!
//! Keys that are only counted are not read: the old store says how many there are, and those of them that
//! are claimed are looked up. The mirror may have changed one of these in between, which is counted with
//! what was there before, so that only holds while the old store's state stays the same.

use bytes::Bytes;

use super::{Overlay, merge};
use crate::store::{Claim, OldState, OldStore, PageSize, Read, Result, eval, exactly, miscounted};
use crate::types::{Answer, Content, KeyRange, KeyValue, Range, RangeReply, SortTarget};

/// Pairs that are asked of the old store at once with their values, and without.
const PAGE_FULL: usize = 1_000;
const PAGE_KEYS: usize = 10_000;
/// Claims that are looked up in the old store at once, and in all: more take longer than the keys.
const LOOKUPS: usize = 64;
const LOOKUPS_MAX: usize = 2_000;
/// Parts of a range that are read as copied. Each, and each gap between two, takes up to three of the 128
/// operations that etcd takes in one transaction.
const COPIED_MAX: usize = 20;
/// How often the old store may change while keys are counted.
const COUNTS_MAX: usize = 4;

/// What the old store holds in one gap.
#[derive(Default)]
struct OldGap {
    /// The first pairs, with as much content as the request needs.
    pairs: Vec<KeyValue>,
    /// The keys behind them, of which only the number matters.
    rest: Rest,
}

/// Keys of the old store that matter by their number.
enum Rest {
    /// One by one.
    Keys(Vec<Bytes>),
    /// So many in a range.
    Count(KeyRange, usize),
}

impl Default for Rest {
    fn default() -> Self {
        Self::Keys(Vec::new())
    }
}

impl Rest {
    fn is_empty(&self) -> bool {
        match self {
            Self::Keys(keys) => keys.is_empty(),
            Self::Count(_, count) => *count == 0,
        }
    }
}

/// What came of a read.
enum Outcome {
    /// The answer.
    Done(Answer<RangeReply>),
    /// More of the first pairs are needed to reach the limit.
    TooFew,
    /// It could not be counted without reading the keys: the old store has changed, or too much is claimed.
    Uncounted {
        /// Another try may succeed.
        again: bool,
    },
}

impl Overlay {
    /// Reads keys. Reserved ones are the new store's alone, and hidden by it.
    ///
    /// Never stale ones: a server of the new store that lags behind may lack what was copied long since.
    pub(super) async fn read(&self, request: Range) -> Result<Answer<RangeReply>> {
        let request = Range {
            serializable: false,
            ..request
        };
        if let KeyRange::One(key) = &request.keys {
            let key = key.clone();
            return self.read_one(key, request).await;
        }
        // A piece is a request of its own to the new store, which would show reserved keys to one
        // that lies within them.
        let visible = self.reserved.visible(&request.keys);
        let pieces = self.pieces(&visible);
        if pieces.iter().all(|(_, copied)| *copied) {
            self.counters.read_new();
            return self.new.range(request).await;
        }
        self.counters.read_old();
        // Most requests are answered at the first try: more is needed only where claims shadow
        // so many of the old pairs that the limit is not reached.
        let mut wanted = match request.content {
            Content::CountOnly => 0,
            // One more than the limit tells whether there is more.
            _ if request.limit > 0 && request.limit_can_be_pushed_down() => request.limit + 1,
            _ => usize::MAX,
        };
        let mut counts_left = COUNTS_MAX;
        loop {
            let state = match counts_left {
                0 => None,
                _ if wanted == usize::MAX => None,
                _ => self.old.state().await?,
            };
            match self.read_pieces(&request, &pieces, wanted, state).await? {
                Outcome::Done(answer) => return Ok(answer),
                Outcome::TooFew => wanted = wanted.saturating_mul(4),
                Outcome::Uncounted { again: true } => counts_left -= 1,
                Outcome::Uncounted { again: false } => counts_left = 0,
            }
        }
    }

    /// The pieces of `parts`, each with whether it is copied.
    fn pieces(&self, parts: &[KeyRange]) -> Vec<(KeyRange, bool)> {
        let copied = self.copied.load();
        let mut left = COPIED_MAX;
        let mut pieces = Vec::new();
        for part in parts {
            let some = copied.cut_at_most(part, left);
            left -= some.iter().filter(|(_, copied)| *copied).count();
            pieces.extend(some);
        }
        pieces
    }

    async fn read_one(&self, key: Bytes, request: Range) -> Result<Answer<RangeReply>> {
        if self.decided_by_new(&key) {
            self.counters.read_new();
            return self.new.range(request).await;
        }
        self.counters.read_old();
        let old = self.old.get(vec![key.clone()]).await?.pop().flatten();
        let reads = vec![Read::Claims {
            keys: request.keys.clone(),
            values: 1,
        }];
        let answer = self.new.snapshot(request.at, reads).await?;
        let [claims] = exactly(answer.reply)?;
        let claims = claims.into_claims()?;
        if !claims.is_empty() {
            self.known.insert(&key);
        }
        let kvs = merge::view(Vec::from_iter(old), claims);
        let count = kvs.len();
        Ok(Answer {
            revision: answer.revision,
            reply: eval::finish(&request, kvs, count),
        })
    }

    /// Answers from `pieces` of the range (each with whether it is copied), with the first `wanted`
    /// pairs of each store. Keys behind them are counted without being read if the old store's `state` is
    /// known.
    async fn read_pieces(
        &self,
        request: &Range,
        pieces: &[(KeyRange, bool)],
        wanted: usize,
        state: Option<OldState>,
    ) -> Result<Outcome> {
        let mut budget = wanted;
        let mut gaps = Vec::new();
        for (gap, _) in pieces.iter().filter(|(_, copied)| !copied) {
            gaps.push(
                self.scan_gap(
                    gap.clone(),
                    &mut budget,
                    needed_content(request),
                    state.is_some(),
                )
                .await?,
            );
        }
        let reads = pieces.iter().map(|(keys, copied)| {
            if *copied {
                let limit = if wanted == usize::MAX { 0 } else { wanted };
                let content = if wanted == 0 {
                    Content::CountOnly
                } else {
                    needed_content(request)
                };
                Read::Range(Range {
                    limit,
                    content,
                    ..Range::of(keys.clone())
                })
            } else {
                let values = if needed_content(request) == Content::Full {
                    wanted
                } else {
                    0
                };
                Read::Claims {
                    keys: keys.clone(),
                    values,
                }
            }
        });
        let answer = self.new.snapshot(request.at, reads.collect()).await?;

        let mut gaps = gaps.into_iter();
        let mut kvs: Vec<KeyValue> = Vec::new();
        let mut count = 0;
        let mut unsure = Vec::new();
        // Behind the first place where pairs were left out, no pair may be answered.
        let mut complete = true;
        if answer.reply.len() != pieces.len() {
            return Err(miscounted(pieces.len(), answer.reply.len()));
        }
        for ((_, copied), reply) in pieces.iter().zip(answer.reply) {
            if *copied {
                let reply = reply.into_range()?;
                count += reply.count;
                if complete {
                    complete = reply.kvs.len() == reply.count;
                    kvs.extend(reply.kvs);
                }
                continue;
            }
            let claims = reply.into_claims()?;
            let OldGap { pairs, rest } = gaps.next().unwrap_or_default();
            count += match &rest {
                Rest::Keys(rest) => count_view(&pairs, rest, &claims),
                Rest::Count(behind, left) => {
                    let begin = claims.partition_point(|claim| !behind.contains(claim.key()));
                    let (within, claims) = claims.split_at(begin);
                    if claims.len() > LOOKUPS_MAX || claims.len() > left / 2 {
                        return Ok(Outcome::Uncounted { again: false });
                    }
                    unsure.extend(claims.iter().map(|claim| claim.key().clone()));
                    let live = claims.iter().filter(|claim| claim.live().is_some());
                    count_view(&pairs, &[], within) + left + live.count()
                }
            };
            if complete {
                complete = rest.is_empty();
                let last = pairs.last().map(|kv| kv.key.clone());
                kvs.extend(merge::view(pairs, claims).into_iter().take_while(|kv| {
                    complete || last.as_ref().is_some_and(|last| kv.key <= *last)
                }));
            }
        }
        if !complete && wanted > 0 && (request.limit == 0 || kvs.len() <= request.limit) {
            return Ok(Outcome::TooFew);
        }
        if !unsure.is_empty() {
            count -= held(&*self.old, &unsure).await?.min(count);
            if self.old.state().await? != state {
                return Ok(Outcome::Uncounted { again: true });
            }
        }
        Ok(Outcome::Done(Answer {
            revision: answer.revision,
            reply: eval::finish(request, kvs, count),
        }))
    }

    /// Reads what the old store holds in `gap`: pairs while the budget lasts, then keys, or only how many.
    async fn scan_gap(
        &self,
        gap: KeyRange,
        budget: &mut usize,
        content: Content,
        counted: bool,
    ) -> Result<OldGap> {
        let (mut pairs, mut rest) = (Vec::new(), Vec::new());
        let mut left = Some(gap);
        let mut number = None;
        while let Some(keys) = left {
            if *budget == 0 && counted {
                let number = match number {
                    Some(number) => number,
                    None => self.old.count(keys.clone()).await?,
                };
                let rest = Rest::Count(keys, number);
                return Ok(OldGap { pairs, rest });
            }
            let (limit, content) = if *budget > 0 {
                ((*budget).min(PAGE_FULL), content)
            } else {
                (PAGE_KEYS, Content::KeysOnly)
            };
            let page = self
                .old
                .scan(keys.clone(), PageSize::pairs(limit), content)
                .await?;
            left = page.rest(&keys)?;
            number = page.left.exactly();
            if *budget > 0 {
                *budget = budget.saturating_sub(page.kvs.len());
                pairs.extend(page.kvs);
            } else {
                rest.extend(page.kvs.into_iter().map(|kv| kv.key));
            }
        }
        let rest = Rest::Keys(rest);
        Ok(OldGap { pairs, rest })
    }
}

/// How many of `keys` the old store holds.
async fn held(old: &dyn OldStore, keys: &[Bytes]) -> Result<usize> {
    let mut held = 0;
    for some in keys.chunks(LOOKUPS) {
        held += old.get(some.to_vec()).await?.iter().flatten().count();
    }
    Ok(held)
}

/// How much of each pair has to be read. Sorting by value needs values that the answer leaves out.
fn needed_content(request: &Range) -> Content {
    if request.content == Content::Full || request.sort == SortTarget::Value {
        Content::Full
    } else {
        Content::KeysOnly
    }
}

/// Keys in the view: those that are live in the new store, and the old ones that are unclaimed.
fn count_view(pairs: &[KeyValue], rest: &[Bytes], claims: &[Claim]) -> usize {
    let live = claims.iter().filter(|claim| claim.live().is_some()).count();
    let shadowed = claims
        .iter()
        .map(Claim::key)
        .filter(|key| {
            pairs.binary_search_by(|kv| kv.key.cmp(key)).is_ok() || rest.binary_search(key).is_ok()
        })
        .count();
    live + pairs.len() + rest.len() - shadowed
}
