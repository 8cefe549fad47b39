//! What waits for the writer, and how it is put together to a batch.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;

use super::backend::Prefetch;
use super::work::{Claims, Job, Request, want};
use crate::types::Reserved;

/// Requests in one batch, at most: beyond it the commit's share of the time is small already.
const BATCH_REQUESTS: usize = 256;

/// Bytes of keys and values that a batch writes, at most. One request alone may be larger.
const BATCH_BYTES: usize = 4 << 20;

/// Requests in a batch, at most, when so many wait and so many were just answered.
///
/// Whoever was answered is about to ask again. Half of both waits while the other half is being
/// committed; would all that wait be taken, nearly all clients would be in one batch, and the next one
/// would be committed for the few that were late.
fn share(waiting: usize, answered: usize) -> usize {
    (waiting + answered).div_ceil(2).min(BATCH_REQUESTS)
}

/// Tells the writer that enough waits for it.
pub(super) struct Enough {
    /// So many jobs are.
    jobs: AtomicUsize,
    wait: Notify,
}

impl Enough {
    pub(super) fn new() -> Self {
        Self {
            jobs: AtomicUsize::new(usize::MAX),
            wait: Notify::new(),
        }
    }

    /// To be told whenever a job was put into the queue: how many are in it.
    pub(super) fn waiting(&self, jobs: usize) {
        if jobs >= self.jobs.load(Ordering::Relaxed) {
            self.jobs.store(usize::MAX, Ordering::Relaxed);
            self.wait.notify_one();
        }
    }

    /// Returns when so many jobs wait. A job that comes while it begins to wait may be overlooked until the
    /// next one comes.
    async fn until(&self, jobs: usize, queue: &Receiver<Job>) {
        while queue.len() < jobs {
            self.jobs.store(jobs, Ordering::Relaxed);
            if queue.len() < jobs {
                self.wait.notified().await;
            }
        }
    }
}

/// The batch that is being put together.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) requests: Vec<Request>,
    /// Of keys and values.
    bytes: usize,
    /// What it needs, if it was begun: then nothing more may be in it.
    begun: Option<Arc<Prefetch>>,
    /// What came and cannot be in it, for the next one.
    pub(super) held: Option<Job>,
}

impl Gathered {
    /// Takes a request, unless nobody waits for it any more.
    pub(super) fn push(&mut self, request: Request) {
        if !request.is_wanted() {
            return;
        }
        self.bytes += request.work.size();
        self.requests.push(request);
    }

    /// Takes as much as a batch may hold of what waits, behind one of so many requests.
    fn add(&mut self, queue: &mut Receiver<Job>, last: usize) {
        let most = share(self.requests.len() + queue.len(), last);
        self.requests.reserve(most);
        while self.takes_more(most) {
            match queue.try_recv() {
                Ok(Job::Request(request))
                    if self.requests.is_empty() || !request.work.is_solo() =>
                {
                    self.push(request);
                }
                Ok(job) => self.held = Some(job),
                Err(_) => break,
            }
        }
    }

    fn takes_more(&self, most: usize) -> bool {
        let solo = |request: &Request| request.work.is_solo();
        self.held.is_none()
            && self.requests.len() < most
            && self.bytes < BATCH_BYTES
            && !self.requests.first().is_some_and(solo)
    }

    /// What was put together, to be carried out behind a batch of so many requests; with what it needs, if
    /// it was begun.
    pub(super) fn take(
        &mut self,
        queue: &mut Receiver<Job>,
        last: usize,
    ) -> (Vec<Request>, Option<Arc<Prefetch>>) {
        let begun = self.begun.take();
        if begun.is_none() {
            self.add(queue, last);
        }
        self.bytes = 0;
        (std::mem::take(&mut self.requests), begun)
    }

    /// Puts the next batch together once as much waits as is being committed, which is `last`: those who
    /// were answered before have all asked again then.
    pub(super) async fn ahead(
        &mut self,
        queue: &mut Receiver<Job>,
        enough: &Enough,
        last: usize,
        reserved: &Reserved,
    ) -> Arc<Prefetch> {
        if self.held.is_none() {
            enough.until(last, queue).await;
            self.add(queue, last);
        }
        if self.requests.is_empty() {
            return pending().await;
        }
        let want = Arc::new(want(&self.requests, reserved, Claims::BySpan));
        self.begun = Some(want.clone());
        want
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes of batches for clients who each ask again as soon as they are answered, while the next batch
    /// is being committed.
    fn batches(clients: usize, first: usize) -> Vec<usize> {
        let (mut waiting, mut asking) = (clients - first, first);
        (0..8)
            .map(|_| {
                let batch = share(waiting, asking).min(waiting);
                waiting = waiting - batch + asking;
                asking = batch;
                batch
            })
            .collect()
    }

    #[test]
    fn clients_come_to_be_in_two_equal_batches() {
        assert_eq!(batches(128, 8), [64; 8]);
        assert_eq!(batches(128, 120)[1..], [64; 7]);
        assert_eq!(batches(3, 1), [2, 1, 2, 1, 2, 1, 2, 1]);
        assert_eq!(batches(1000, 0), [256; 8]);
        assert_eq!(share(1, 0), 1);
        assert_eq!(share(1, 1), 1);
    }
}
