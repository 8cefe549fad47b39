//! Background tasks: each has a name and an owner that cancels it and waits for it, but not forever.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug_span, error, warn};

/// The tasks of one owner. Clones are the same owner.
#[derive(Clone, Default)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    tracker: TaskTracker,
    cancel: CancellationToken,
    /// Names of the tasks that run, by the order in which they were started.
    running: Mutex<BTreeMap<u64, String>>,
    started: AtomicU64,
    /// Cancelled when a vital task has panicked, behind its name.
    astray: CancellationToken,
    lost: OnceLock<String>,
}

impl Tasks {
    /// No tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` in the background under `name`. It is expected to end soon after
    /// [`Self::cancelled`].
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        spawn_owned(self.own(name, task))
    }

    /// The same for a task that nothing goes on without; see [`Self::astray`].
    pub fn spawn_vital(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        spawn_owned(self.own_vital(name, task))
    }

    /// `task`, to be run by somebody else, as one of these.
    fn own<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        let name = name.into();
        let span = debug_span!("task", name);
        let running = Running::enter(&self.inner, name);
        let task = async move {
            let _running = running;
            task.await
        };
        self.inner.tracker.track_future(task).instrument(span)
    }

    /// A vital `task`, to be run by somebody else, on a thread of its own perhaps, as one of these.
    pub fn own_vital(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let name = name.into();
        let owner = Arc::clone(&self.inner);
        let task = AssertUnwindSafe(task).catch_unwind();
        self.own(name.clone(), async move {
            if task.await.is_err() {
                error!(task = name, "a task has ended by a fault of its own");
                owner.lost.get_or_init(|| name);
                owner.astray.cancel();
            }
        })
    }

    /// Resolves with the name of a vital task when one has panicked. Of what it has left behind nothing may be
    /// used any more but to end.
    pub async fn astray(&self) -> String {
        self.inner.astray.cancelled().await;
        self.inner.lost.get().cloned().unwrap_or_default()
    }

    /// Resolves when the tasks are to end.
    pub async fn cancelled(&self) {
        self.inner.cancel.cancelled().await;
    }

    /// The token that is cancelled when the tasks are to end.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.inner.cancel
    }

    /// Tells the tasks to end, without waiting.
    pub fn cancel(&self) {
        self.inner.cancel.cancel();
    }

    /// The names of the tasks that run, in the order in which they were started.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        let running = self.inner.running.lock();
        let running = running.unwrap_or_else(PoisonError::into_inner);
        running.values().cloned().collect()
    }

    /// Tells the tasks to end and waits until they have, at most for `deadline`. Names those that
    /// have not in the log and in the answer.
    pub async fn shut_down(&self, deadline: Duration) -> Vec<String> {
        self.cancel();
        self.inner.tracker.close();
        let done = self.inner.tracker.wait();
        if tokio::time::timeout(deadline, done).await.is_ok() {
            return Vec::new();
        }
        let blocking = self.running();
        warn!(?deadline, tasks = ?blocking, "these tasks did not end in time and are left behind");
        blocking
    }
}

/// Runs `task` in the background for an owner that holds on to the handle, or to what the task
/// reads from, and so ends it. Everything else belongs to a [`Tasks`].
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that others are sent to"
)]
pub fn spawn_owned<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(task)
}

/// The same from where something is dropped, for what ends by itself soon. That may be outside of any
/// runtime, when the program ends: then nothing is done.
pub fn spawn_from_drop(task: impl Future<Output = ()> + Send + 'static) {
    if Handle::try_current().is_ok() {
        spawn_owned(task);
    }
}

/// A task's entry in the list of those that run, gone when the task has ended, was aborted or
/// panicked.
struct Running {
    owner: Arc<Inner>,
    number: u64,
}

impl Running {
    fn enter(owner: &Arc<Inner>, name: String) -> Self {
        let number = owner.started.fetch_add(1, Ordering::Relaxed);
        let running = owner.running.lock();
        let mut running = running.unwrap_or_else(PoisonError::into_inner);
        running.insert(number, name);
        Self {
            owner: owner.clone(),
            number,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let running = self.owner.running.lock();
        let mut running = running.unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn shutting_down_waits_for_tasks_that_end() {
        let tasks = Tasks::new();
        let owner = tasks.clone();
        let task = tasks.spawn("polite", async move {
            owner.cancelled().await;
            tokio::task::yield_now().await;
            7
        });
        assert_eq!(tasks.running(), ["polite"]);
        assert_eq!(tasks.shut_down(LONG).await, Vec::<String>::new());
        assert_eq!(task.await.unwrap(), 7);
        assert_eq!(tasks.running(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn shutting_down_names_who_blocks() {
        let tasks = Tasks::new();
        let owner = tasks.clone();
        tasks.spawn("polite", async move { owner.cancelled().await });
        let stubborn = tasks.spawn("stubborn", std::future::pending::<()>());
        assert_eq!(tasks.shut_down(SOON).await, ["stubborn"]);
        stubborn.abort();
        assert_eq!(tasks.shut_down(LONG).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_task_that_panicked_blocks_nobody() {
        let tasks = Tasks::new();
        let task = tasks.spawn("unlucky", async { panic!("on purpose") });
        assert!(task.await.is_err());
        assert_eq!(tasks.shut_down(LONG).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn it_is_told_if_a_vital_task_panicked_and_not_if_it_has_ended() {
        let tasks = Tasks::new();
        tasks.spawn_vital("happy", async {}).await.unwrap();
        assert!(tasks.astray().now_or_never().is_none());
        tasks.spawn_vital("unlucky", async { panic!("on purpose") });
        assert_eq!(tasks.astray().await, "unlucky");
        assert_eq!(tasks.shut_down(LONG).await, Vec::<String>::new());
    }
}
