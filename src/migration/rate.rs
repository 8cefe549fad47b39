//! A brake for the backfill: so many keys and so many bytes in a second.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// The brake. All shards share one.
#[derive(Debug, Default)]
pub struct Brake {
    keys: Mutex<Meter>,
    bytes: Mutex<Meter>,
}

/// When the next amount may pass. What went through is paid for afterwards, so that an amount
/// larger than a second's worth passes too.
#[derive(Debug, Default)]
struct Meter {
    free_at: Option<Instant>,
}

impl Meter {
    /// Until when to wait before `amount` passes at `per_second`.
    fn book(&mut self, now: Instant, amount: u64, per_second: Option<u64>) -> Instant {
        let Some(per_second) = per_second.filter(|rate| *rate > 0) else {
            self.free_at = None;
            return now;
        };
        let at = self.free_at.map_or(now, |at| at.max(now));
        // In whole nanoseconds: 10^9 × amount fits u128 for any amount.
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4));
        self.free_at = at.checked_add(cost);
        at
    }
}

impl Brake {
    /// Waits until `keys` and `bytes` may pass under these limits.
    pub async fn pass(&self, amount: (u64, u64), limits: (Option<u64>, Option<u64>)) {
        let now = Instant::now();
        let keys = self.keys.lock().await.book(now, amount.0, limits.0);
        let bytes = self.bytes.lock().await.book(now, amount.1, limits.1);
        let at = keys.max(bytes);
        if at > now {
            tokio::time::sleep_until(at).await;
        }
    }

    /// Forgets what has passed: the limits are others now.
    pub async fn reset(&self) {
        *self.keys.lock().await = Meter::default();
        *self.bytes.lock().await = Meter::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_passed_is_paid_for_by_what_comes_next() {
        let begin = Instant::now();
        for (rate, amount, times, seconds) in [
            (None, 100, 10, 0),
            (Some(0), 100, 10, 0),
            (Some(100), 100, 1, 0),
            (Some(100), 100, 10, 9),
            (Some(50), 1000, 3, 40),
            (Some(u64::MAX), u64::MAX, 3, 2),
        ] {
            let mut meter = Meter::default();
            let last = (0..times).map(|_| meter.book(begin, amount, rate)).last();
            let waited = last.unwrap().duration_since(begin);
            assert_eq!(waited.as_secs(), seconds, "{rate:?} {amount}");
        }
    }

    #[test]
    fn a_rest_is_not_saved_up() {
        let begin = Instant::now();
        let mut meter = Meter::default();
        meter.book(begin, 100, Some(100));
        let later = begin + Duration::from_mins(1);
        assert_eq!(meter.book(later, 100, Some(100)), later);
        assert_eq!(
            meter.book(later, 1, Some(100)),
            later + Duration::from_secs(1)
        );
    }

    #[tokio::test]
    async fn without_limits_nothing_waits() {
        let brake = Brake::default();
        let begin = Instant::now();
        for _ in 0..1000 {
            brake.pass((u64::MAX, u64::MAX), (None, None)).await;
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
