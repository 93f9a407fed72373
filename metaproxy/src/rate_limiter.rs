//! A rate limiter that uses the generic cell rate algorithm (ITU-T I.371). It gives a burst of turns at once, and
//! then one turn per interval.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A rate limiter that gives out turns. All times are nanoseconds since `began`. A `u64` can hold 584 years of them.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    interval: u64,
    burst: u64,
    began: Instant,
    /// The time at which all taken turns have elapsed.
    taken: AtomicU64,
}

impl RateLimiter {
    /// Makes a limiter that gives `burst` turns at once (1 or more), and then one turn per interval. `began` is the
    /// current time.
    pub fn new(interval: Duration, burst: u32, began: Instant) -> Self {
        let interval = nanoseconds(interval).max(1);
        Self {
            interval,
            burst: interval.saturating_mul(u64::from(burst.max(1))),
            began,
            taken: AtomicU64::new(0),
        }
    }

    /// Makes a limiter that gives this number of turns per second. A tenth of them may be taken at once.
    pub fn per_second(turns: u32) -> Self {
        let interval = Duration::from_nanos(1_000_000_000 / u64::from(turns.max(1)));
        Self::new(interval, turns / 10, Instant::now())
    }

    /// Takes the next turn, and returns how long the caller has to wait for it. Returns `None` if the caller need not
    /// wait. The wait grows with each call, so only a few callers may wait at a time.
    pub fn reserve(&self, now: Instant) -> Option<Duration> {
        let now = self.since_began(now);
        let given = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                Some(self.end(taken, now))
            });
        match self.wait(given.unwrap_or_else(|taken| taken), now) {
            0 => None,
            wait => Some(Duration::from_nanos(wait)),
        }
    }

    /// Takes a turn if one is available now.
    ///
    /// # Errors
    /// Returns the time until a turn is available. In this case no turn is taken.
    pub fn try_take(&self, now: Instant) -> Result<(), Duration> {
        let now = self.since_began(now);
        let free = |taken| (self.wait(taken, now) == 0).then(|| self.end(taken, now));
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free)
            .map(|_| ())
            .map_err(|taken| Duration::from_nanos(self.wait(taken, now)))
    }

    /// Returns whether all taken turns have elapsed. An idle limiter behaves like a new one.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.taken.load(Ordering::Relaxed) <= self.since_began(now)
    }

    /// Returns the time at which one more turn would have elapsed.
    fn end(&self, taken: u64, now: u64) -> u64 {
        taken.max(now).saturating_add(self.interval)
    }

    /// Returns the nanoseconds from now to the next turn that is not taken.
    fn wait(&self, taken: u64, now: u64) -> u64 {
        (self.end(taken, now) - now).saturating_sub(self.burst)
    }

    fn since_began(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.began))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_caller_above_the_rate_waits_for_its_turn() {
        let (limiter, now) = (RateLimiter::per_second(50), Instant::now());
        let waits: Vec<_> = (0..15).map(|_| limiter.reserve(now)).collect();
        let (at_once, later) = waits.split_at(5);
        assert!(at_once.iter().all(Option::is_none), "a tenth of 50: {waits:?}");
        for (turn, wait) in later.iter().enumerate() {
            // 50 turns per second are one turn per 20 ms.
            assert_eq!(*wait, Some(20 * MS * (turn as u32 + 1)));
        }
        assert_eq!(limiter.reserve(now + 1000 * MS), None, "it is over");
    }

    #[test]
    fn a_failed_attempt_takes_no_turn_and_does_not_delay_later_ones() {
        let now = Instant::now();
        let limiter = RateLimiter::new(100 * MS, 3, now);
        assert!((0..3).all(|_| limiter.try_take(now).is_ok()));
        for _ in 0..1000 {
            assert_eq!(limiter.try_take(now), Err(100 * MS));
        }
        assert_eq!(limiter.try_take(now + 99 * MS), Err(MS));
        assert_eq!(limiter.try_take(now + 100 * MS), Ok(()));
        assert_eq!(limiter.try_take(now + 100 * MS), Err(100 * MS));
    }

    #[test]
    fn a_limiter_is_idle_when_its_whole_burst_is_available_again() {
        let now = Instant::now();
        let limiter = RateLimiter::new(100 * MS, 3, now);
        assert!(limiter.is_idle(now));
        assert!((0..3).all(|_| limiter.try_take(now).is_ok()));
        assert!(!limiter.is_idle(now + 299 * MS));
        assert!(limiter.is_idle(now + 300 * MS));
    }
}
