//! Limits the rate of a pod's connections to the listener: a pure decision that the kernel's programs make.
//!
//! All pods share the listener's accept queue, and each connection that waits in it delays those behind it. So
//! connections that one pod makes faster than any client would are refused at `connect()`, before they take a place
//! in the queue.

/// A limit on the rate of events, by the generic cell rate algorithm (ITU-T I.371). Times are in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The time between two events at the sustained rate; 0 for no limit.
    pub interval_ns: u64,
    /// The time by which an event may be earlier than at the sustained rate: the burst times the interval.
    pub tolerance_ns: u64,
}

/// The decision about one event. It is a plain struct for the reason given at
/// [`TargetMatch`](crate::target::TargetMatch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateDecision {
    /// Whether the event is within the limit.
    pub is_allowed: bool,
    /// The time at which the next event is due at the sustained rate. The next decision needs it.
    pub due_ns: u64,
}

impl RateLimit {
    /// No limit.
    pub const NONE: Self = Self {
        interval_ns: 0,
        tolerance_ns: 0,
    };

    /// Makes a limit of `per_second` events a second, of which `burst` may come at once.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        let per_second = if per_second == 0 { 1 } else { per_second as u64 };
        let interval_ns = 1_000_000_000 / per_second;
        Self {
            interval_ns,
            tolerance_ns: interval_ns * burst as u64,
        }
    }

    /// Decides about an event at `now_ns`, after one that left `due_ns` (0 for the first).
    #[inline(always)]
    pub const fn decide(&self, due_ns: u64, now_ns: u64) -> RateDecision {
        let due = if due_ns > now_ns { due_ns } else { now_ns };
        let is_allowed = due - now_ns <= self.tolerance_ns;
        RateDecision {
            is_allowed,
            due_ns: if is_allowed { due + self.interval_ns } else { due },
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn after_a_burst_one_event_passes_in_each_interval() {
        let limit = RateLimit::new(10, 3);
        let mut due = 0;
        let mut ask = |now| {
            let decision = limit.decide(due, now);
            due = decision.due_ns;
            decision.is_allowed
        };
        let at_once: std::vec::Vec<bool> = (0..6).map(|_| ask(SECOND)).collect();
        assert_eq!(at_once, [true, true, true, true, false, false]);
        assert!(!ask(SECOND + SECOND / 20), "half of an interval later");
        assert!(ask(SECOND + SECOND / 10), "an interval later");
        assert!(!ask(SECOND + SECOND / 10));
        assert!(ask(10 * SECOND), "and anew after a pause");
    }

    proptest! {
        #[test]
        fn no_more_events_than_the_rate_and_the_burst_pass(
            per_second in 1..10_000_u32, burst in 0..1_000_u32, steps in prop::collection::vec(0..2_000_000_u64, 1..500),
        ) {
            let limit = RateLimit::new(per_second, burst);
            let (mut now, mut due, mut passed) = (SECOND, 0, 0_u64);
            for step in steps {
                now += step;
                let decision = limit.decide(due, now);
                due = decision.due_ns;
                passed += u64::from(decision.is_allowed);
            }
            let most = (now - SECOND) / limit.interval_ns + u64::from(burst) + 1;
            prop_assert!(passed <= most, "{passed} of {most}");
        }

        #[test]
        fn events_at_the_sustained_rate_always_pass(per_second in 1..10_000_u32, count in 1..500_u32) {
            let limit = RateLimit::new(per_second, 0);
            let mut due = 0;
            for event in 0..u64::from(count) {
                let decision = limit.decide(due, SECOND + event * limit.interval_ns);
                prop_assert!(decision.is_allowed);
                due = decision.due_ns;
            }
        }
    }
}
