//! Waiting for a condition with a deadline, in place of sleeping.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a condition is waited for before the test fails: far above what a busy machine needs,
/// since it costs nothing where all is well.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// Between two looks at the condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Calls `look` until it answers `Ok`, and panics with its last complaint after [`DEADLINE`].
pub async fn eventually<T, E: Debug>(what: &str, look: impl AsyncFnMut() -> Result<T, E>) -> T {
    match within(DEADLINE, look).await {
        Ok(value) => value,
        Err(complaint) => panic!("{what}: not within {DEADLINE:?}, still: {complaint:?}"),
    }
}

/// Calls `look` until it answers `Ok`, and gives its last complaint back after `deadline`.
pub async fn within<T, E>(
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let start = Instant::now();
    loop {
        match look().await {
            Err(_) if start.elapsed() < deadline => tokio::time::sleep(INTERVAL).await,
            outcome => return outcome,
        }
    }
}
