//! From the pairs of a range to the reply: count, filters, order, limit, content.

use bytes::Bytes;

use crate::types::{Content, Direction, KeyValue, Range, RangeReply, SortTarget};

/// Collects the pairs of a range into the reply to it: count, filters, order, limit, content.
pub struct Gather<'a> {
    request: &'a Range,
    kvs: Vec<KeyValue>,
    count: usize,
    /// Pairs behind this many cannot become part of the reply.
    enough: usize,
}

impl<'a> Gather<'a> {
    /// Begins a reply to `request`.
    #[must_use]
    pub fn new(request: &'a Range) -> Self {
        let enough = match request.limit {
            0 => usize::MAX,
            limit if request.limit_can_be_pushed_down() => limit.saturating_add(1),
            _ => usize::MAX,
        };
        Self {
            request,
            kvs: Vec::new(),
            count: 0,
            enough,
        }
    }

    /// Takes the next pair of the range; all of them are to be shown, in byte order.
    pub fn see(&mut self, kv: &KeyValue) {
        self.count += 1;
        if self.kvs.len() < self.enough
            && self.request.content != Content::CountOnly
            && self.request.filter.admits(kv)
        {
            self.kvs.push(kv.clone());
        }
    }

    /// The reply.
    #[must_use]
    pub fn reply(self) -> RangeReply {
        finish(self.request, self.kvs, self.count)
    }
}

/// Makes the reply to `request` from the pairs of its range in byte order (where
/// [`Range::limit_can_be_pushed_down`], one more than the limit is enough) and their full count.
#[must_use]
pub fn finish(request: &Range, mut kvs: Vec<KeyValue>, count: usize) -> RangeReply {
    if request.content == Content::CountOnly {
        return RangeReply {
            count,
            ..RangeReply::default()
        };
    }
    kvs.retain(|kv| request.filter.admits(kv));
    if request.limit > 0 && request.limit_can_be_pushed_down() {
        kvs.truncate(request.limit.saturating_add(1));
    }
    sort(&mut kvs, request.sort, request.direction);
    let more = request.limit > 0 && kvs.len() > request.limit;
    if more {
        kvs.truncate(request.limit);
    }
    if request.content == Content::KeysOnly {
        for kv in &mut kvs {
            kv.value = Bytes::new();
        }
    }
    RangeReply { kvs, count, more }
}

/// Sorts pairs that come in byte order; equals stay in it, in both directions, as in etcd.
fn sort(kvs: &mut [KeyValue], target: SortTarget, direction: Direction) {
    let ascending = direction != Direction::Descending;
    if target == SortTarget::Key {
        if !ascending {
            kvs.reverse();
        }
        return;
    }
    kvs.sort_by(|a, b| {
        let ordering = match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if ascending {
            ordering
        } else {
            ordering.reverse()
        }
    });
}
