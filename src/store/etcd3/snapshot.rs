//! Several reads in one snapshot, claims among them.

use std::collections::HashSet;

use bytes::Bytes;

use super::late;
use super::names::nothing;
use super::numbers::Claimed;
use super::session::Session;
use super::txn::{finish_range, range_parts};
use super::view::{header_revision, range_op, range_request, range_response};
use crate::proto::etcdserverpb as pb;
use crate::store::{Claim, Read, ReadReply, RequestError, Result};
use crate::types::{Answer, Content, KeyRange, KeyValue, Range, RangeReply, Revision};

/// What was made of one read.
enum Shape {
    Range {
        parts: usize,
        rest: Option<Range>,
    },
    Claims {
        keys: KeyRange,
        /// How many pairs are to have their values.
        values: usize,
        /// Reads of live keys, with values.
        full: usize,
        /// Reads of live keys, without.
        bare: usize,
        /// Reads of claim records.
        claims: usize,
    },
}

impl Session {
    /// Reads everything in one transaction of etcd's.
    pub(super) async fn snapshot(
        &self,
        at: Option<Revision>,
        reads: Vec<Read>,
    ) -> Result<Answer<Vec<ReadReply>>> {
        let mut ops = Vec::with_capacity(reads.len());
        let mut shapes = Vec::with_capacity(reads.len());
        for read in reads {
            shapes.push(match read {
                Read::Range(range) => {
                    let (parts, rest) = range_parts(&self.view, Range { at, ..range })?;
                    let shape = Shape::Range {
                        parts: parts.len(),
                        rest,
                    };
                    ops.extend(parts.into_iter().map(range_op));
                    shape
                }
                Read::Claims { keys, values } => self.read_claims(keys, values, at, &mut ops)?,
            });
        }
        let response = self.run(ops, false).await?;
        let etcd_revision = header_revision(response.header.as_ref());
        let mut ranges = response.responses.into_iter().filter_map(range_response);
        let mut replies = Vec::with_capacity(shapes.len());
        for shape in shapes {
            replies.push(match shape {
                Shape::Range { parts, rest } => {
                    let mut reply = join(ranges.by_ref().take(parts));
                    self.view.translate(reply.kvs.iter_mut().collect()).await?;
                    if let Some(asked) = rest {
                        finish_range(&self.view, &asked, &mut reply).await?;
                    }
                    ReadReply::Range(reply)
                }
                Shape::Claims {
                    keys,
                    values,
                    full,
                    bare,
                    claims,
                } => {
                    let mut full = join(ranges.by_ref().take(full)).kvs;
                    // Each part brought as many.
                    full.truncate(values);
                    let bare = join(ranges.by_ref().take(bare)).kvs;
                    let records = ranges.by_ref().take(claims).flat_map(|range| range.kvs);
                    let records: Vec<_> = records.collect();
                    let live = add_bare(full, bare);
                    ReadReply::Claims(self.claims_reply(&keys, values, at, live, &records).await?)
                }
            });
        }
        Ok(Answer {
            revision: self.view.numbers.visible(etcd_revision),
            reply: replies,
        })
    }

    fn read_claims(
        &self,
        keys: KeyRange,
        values: usize,
        at: Option<Revision>,
        ops: &mut Vec<pb::RequestOp>,
    ) -> Result<Shape> {
        let view = &*self.view;
        // One key comes with its value or without: asking for both would only cost more.
        let values = match &keys {
            KeyRange::One(_) if values > 0 => usize::MAX,
            _ => values,
        };
        let etcd_at = match at {
            Some(at) if at < view.numbers.base => {
                return Err(RequestError::Compacted(view.numbers.base).into());
            }
            Some(at) => view.numbers.etcd(at),
            None => 0,
        };
        let parts = view.names.visible(&keys);
        let live = |part: &KeyRange, content, limit| {
            let mut request = pb::RangeRequest::from(Range {
                limit,
                content,
                ..Range::of(part.clone())
            });
            request.revision = etcd_at;
            range_op(request)
        };
        let shape = Shape::Claims {
            full: if values == 0 { 0 } else { parts.len() },
            bare: if values == usize::MAX { 0 } else { parts.len() },
            claims: parts.len(),
            values,
            keys,
        };
        if values > 0 {
            let limit = if values == usize::MAX { 0 } else { values };
            ops.extend(parts.iter().map(|part| live(part, Content::Full, limit)));
        }
        if values < usize::MAX {
            ops.extend(parts.iter().map(|part| live(part, Content::KeysOnly, 0)));
        }
        ops.extend(parts.iter().map(|part| {
            let records = if part.is_empty() {
                nothing()
            } else {
                view.names.claims_of(part)
            };
            range_op(range_request(&records))
        }));
        Ok(shape)
    }

    /// Puts live keys and claim records together.
    async fn claims_reply(
        &self,
        keys: &KeyRange,
        values: usize,
        at: Option<Revision>,
        mut live: Vec<KeyValue>,
        records: &[crate::proto::mvccpb::KeyValue],
    ) -> Result<Vec<Claim>> {
        let view = &*self.view;
        let claims: Vec<(Bytes, Claimed)> = records
            .iter()
            .map(|record| view.read_claim(record))
            .collect::<Result<_>>()?;
        // Keys that were copied up and have not changed since.
        let mut copies = HashSet::new();
        if view.known.is_some() {
            let mut known = claims.iter().peekable();
            for kv in &mut live {
                while known.next_if(|(key, _)| *key < kv.key).is_some() {}
                let claim = known.peek().filter(|(key, _)| *key == kv.key);
                let claim = claim.map_or(Claimed::Here, |(_, claim)| *claim);
                if claim.is_of_copy(kv) {
                    copies.insert(kv.key.clone());
                }
                view.numbers.translate(kv, claim);
            }
        }
        if let Some(at) = at {
            let late = late::copied_after(view, keys, view.numbers.etcd(at)).await?;
            if !late.is_empty() {
                copies.extend(late.iter().map(|kv| kv.key.clone()));
                live.extend(late);
                live.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                // Those in front push others back, and all of them came with their values.
                for kv in live.iter_mut().skip(values) {
                    kv.value = Bytes::new();
                }
            }
        }
        let live_claim = |kv: KeyValue| {
            if copies.contains(&kv.key) {
                Claim::Copied(kv)
            } else {
                Claim::Live(kv)
            }
        };
        let mut reply = Vec::with_capacity(claims.len().max(live.len()));
        let mut live = live.into_iter().peekable();
        for (key, _) in claims {
            while let Some(kv) = live.next_if(|kv| kv.key < key) {
                reply.push(live_claim(kv));
            }
            reply.push(match live.next_if(|kv| kv.key == key) {
                Some(kv) => live_claim(kv),
                None => Claim::Whiteout(key),
            });
        }
        reply.extend(live.map(live_claim));
        Ok(reply)
    }
}

fn join(ranges: impl Iterator<Item = pb::RangeResponse>) -> RangeReply {
    ranges
        .map(RangeReply::from)
        .reduce(|mut all, part| {
            all.kvs.extend(part.kvs);
            all.count += part.count;
            all
        })
        .unwrap_or_default()
}

/// The pairs that came with their values, and the others without.
fn add_bare(full: Vec<KeyValue>, bare: Vec<KeyValue>) -> Vec<KeyValue> {
    if full.is_empty() {
        return bare;
    }
    if bare.is_empty() {
        return full;
    }
    let mut full = full.into_iter().peekable();
    bare.into_iter()
        .map(|kv| full.next_if(|it| it.key == kv.key).unwrap_or(kv))
        .collect()
}
