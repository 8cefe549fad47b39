//! How many requests were answered, and how fast.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// The part of the show that a request was sent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Period {
    /// On the old store alone.
    Before,
    /// While the keys move.
    During,
    /// When the new store has taken over.
    After,
}

impl Period {
    /// All, in their order.
    pub(super) const ALL: [Self; 3] = [Self::Before, Self::During, Self::After];
}

/// Whether a request changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only reads.
    Read,
    /// It writes, deletes, or keeps a lease alive.
    Write,
}

/// Latencies in one period.
#[derive(Clone, Debug)]
struct Latencies {
    reads_us: Histogram<u64>,
    writes_us: Histogram<u64>,
    /// The slowest read and the slowest write, to the last digit: histograms round them up.
    slowest: [Duration; 2],
}

impl Default for Latencies {
    fn default() -> Self {
        // Two digits are as much as a demonstration can mean; the range grows as needed.
        let empty = || Histogram::new(2).unwrap_or_else(|_| unreachable!("two digits are allowed"));
        Self {
            reads_us: empty(),
            writes_us: empty(),
            slowest: [Duration::ZERO; 2],
        }
    }
}

/// Failed requests and slow ones, of all clients.
pub(super) struct Meter {
    readings: Mutex<Readings>,
}

/// What a meter shows.
#[derive(Clone)]
pub(super) struct Readings {
    period: Period,
    latencies: [Latencies; 3],
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed, were not answered in time, or ended a watch or a lease.
    pub failed: u64,
    /// The first few of them.
    pub failures: Vec<String>,
    /// The longest that any client waited for an answer since the migration began.
    pub stall: Duration,
}

/// Latency percentiles of some requests, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Percentiles {
    /// How many requests.
    pub operations: u64,
    /// Half of them were faster.
    pub p50_ms: f64,
    /// Nine in ten were faster.
    pub p90_ms: f64,
    /// All but one in a hundred were faster.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Meter {
    /// How many failures are kept with their reasons.
    const FAILURES: usize = 5;

    /// Nothing measured yet.
    pub(super) fn new() -> Self {
        Self {
            readings: Mutex::new(Readings {
                period: Period::Before,
                latencies: Default::default(),
                answered: 0,
                failed: 0,
                failures: Vec::new(),
                stall: Duration::ZERO,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Readings> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new period begins.
    pub(super) fn begin(&self, period: Period) {
        self.lock().period = period;
    }

    /// The period that it is.
    pub(super) fn period(&self) -> Period {
        self.lock().period
    }

    /// A request of `period` that was sent at `sent` has been answered just now.
    pub(super) fn answered(&self, kind: Kind, period: Period, sent: Instant) {
        let took = sent.elapsed();
        let mut readings = self.lock();
        readings.answered += 1;
        readings.waited(period, took);
        let latencies = &mut readings.latencies[period as usize];
        let slowest = &mut latencies.slowest[kind as usize];
        *slowest = took.max(*slowest);
        let histogram = match kind {
            Kind::Read => &mut latencies.reads_us,
            Kind::Write => &mut latencies.writes_us,
        };
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // It grows as needed, and cannot fail for anything that a clock says.
        let _ = histogram.record(us);
    }

    /// A request of `period` that was sent at `sent` has failed.
    pub(super) fn failed(&self, why: String, period: Period, sent: Instant) {
        let mut readings = self.lock();
        readings.failed += 1;
        readings.waited(period, sent.elapsed());
        if readings.failures.len() < Self::FAILURES {
            readings.failures.push(why);
        }
    }

    /// What it shows now.
    pub(super) fn read(&self) -> Readings {
        self.lock().clone()
    }

    /// Requests answered so far.
    pub(super) fn count(&self) -> u64 {
        self.lock().answered
    }
}

impl Readings {
    fn waited(&mut self, period: Period, took: Duration) {
        if period != Period::Before {
            self.stall = self.stall.max(took);
        }
    }

    /// Requests answered in `period`.
    pub(super) fn operations(&self, period: Period) -> u64 {
        let latencies = &self.latencies[period as usize];
        latencies.reads_us.len() + latencies.writes_us.len()
    }

    /// The latencies of `period`, of all requests or of one kind; nothing if there were none.
    pub(super) fn percentiles(&self, period: Period, kind: Option<Kind>) -> Option<Percentiles> {
        let latencies = &self.latencies[period as usize];
        let us = match kind {
            Some(Kind::Read) => latencies.reads_us.clone(),
            Some(Kind::Write) => latencies.writes_us.clone(),
            None => {
                let mut all = latencies.reads_us.clone();
                all.add(&latencies.writes_us)
                    .unwrap_or_else(|_| unreachable!("both have two digits and can grow"));
                all
            }
        };
        let slowest = match kind {
            Some(kind) => latencies.slowest[kind as usize],
            None => latencies.slowest[0].max(latencies.slowest[1]),
        };
        let ms = |percent: f64| to_ms(us.value_at_percentile(percent));
        (!us.is_empty()).then(|| Percentiles {
            operations: us.len(),
            p50_ms: ms(50.0),
            p90_ms: ms(90.0),
            p99_ms: ms(99.0),
            max_ms: millis(slowest),
        })
    }
}

fn to_ms(us: u64) -> f64 {
    millis(Duration::from_micros(us))
}

/// A duration in milliseconds, to the microsecond: more is in no clock that can be relied on.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_is_the_same_wherever_it_is_told() {
        let meter = Meter::new();
        meter.begin(Period::During);
        // More than two digits.
        for ms in [1_234, 1_237] {
            let sent = Instant::now().checked_sub(Duration::from_millis(ms));
            meter.answered(Kind::Read, Period::During, sent.unwrap());
        }
        let readings = meter.read();
        let all = readings.percentiles(Period::During, None).unwrap();
        assert!((all.max_ms - millis(readings.stall)).abs() < f64::EPSILON);
    }

    #[test]
    fn requests_are_told_apart_by_period_and_kind() {
        let meter = Meter::new();
        let ago = |ms| {
            Instant::now()
                .checked_sub(Duration::from_millis(ms))
                .unwrap()
        };
        meter.answered(Kind::Read, Period::Before, ago(900));
        meter.begin(Period::During);
        assert_eq!(meter.period(), Period::During);
        meter.answered(Kind::Write, Period::During, ago(300));
        meter.answered(Kind::Read, Period::During, ago(100));
        meter.failed("no answer".into(), Period::During, ago(500));
        let readings = meter.read();
        assert_eq!((readings.answered, readings.failed), (3, 1));
        assert_eq!(
            readings.stall.as_millis() / 100,
            5,
            "the old store's waits do not count"
        );
        assert_eq!(readings.operations(Period::During), 2);
        let all = readings.percentiles(Period::During, None).unwrap();
        let writes = readings.percentiles(Period::During, Some(Kind::Write));
        assert_eq!(Some(all.max_ms), writes.map(|writes| writes.max_ms));
        let writes = readings.percentiles(Period::During, Some(Kind::Write));
        let p50_ms = writes.unwrap().p50_ms;
        assert!((290.0..400.0).contains(&p50_ms), "{p50_ms}");
        assert_eq!(readings.percentiles(Period::After, None), None);
    }
}
