//! The store's clock.

use std::time::{Duration, Instant, SystemTime};

/// Milliseconds since 1970 as they were when the store was opened, going on evenly from there: the
/// system's clock may be set meanwhile, and no lease must end early for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    opened: Instant,
    opened_after_1970: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            opened: Instant::now(),
            opened_after_1970: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        }
    }

    pub(super) fn now_ms(self) -> i64 {
        let now = self.opened_after_1970 + self.opened.elapsed();
        i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
    }
}
