//! What one pod may take of the agent: so many connections at a time, and so many connections and requests in a
//! second. Whoever makes them faster is slowed down, not failed: with few connections at a time the wait is short.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, MonotonicClock};
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::pods::PodUid;

/// What one pod may take. All of it has defaults that no ordinary client comes near.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at a time.
    pub connections: usize,
    /// Connections per second.
    pub connection_rate: u32,
    /// Requests per second.
    pub request_rate: u32,
    /// Longest head of a request, in bytes.
    pub head: usize,
    /// For the head of a request, from its first byte.
    pub head_time: Duration,
    /// For a connection to say nothing between requests.
    pub idle: Duration,
}

/// A pod that has not been heard of for so long starts anew.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// For so long after a refusal, connections of the same address are closed unseen.
const SHUT: Duration = Duration::from_millis(50);

/// Each pod's share.
#[derive(Debug)]
pub struct PerPod {
    limits: Limits,
    pods: Mutex<Pods>,
    shut: Mutex<HashMap<IpAddr, Instant>>,
}

#[derive(Debug)]
struct Pods {
    shares: HashMap<PodUid, Arc<Share>>,
    looked: Instant,
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock>;

/// What one pod has taken.
#[derive(Debug)]
struct Share {
    open: AtomicUsize,
    connections: Limiter,
    requests: Limiter,
    last: Mutex<Instant>,
}

/// One of a pod's connections, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Share>);

impl PerPod {
    /// With these limits.
    pub fn new(limits: Limits) -> Self {
        let (shares, looked) = (HashMap::new(), Instant::now());
        Self {
            limits,
            pods: Mutex::new(Pods { shares, looked }),
            shut: Mutex::default(),
        }
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// `None` where the pod has as many connections as it may.
    pub fn take(&self, uid: &PodUid) -> Option<Place> {
        let share = self.share(uid);
        // Compared and counted in one step: two at once must not both be the last.
        let counted = share
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < self.limits.connections).then_some(open + 1)
            });
        counted.is_ok().then(|| Place(share))
    }

    fn share(&self, uid: &PodUid) -> Arc<Share> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(pods.looked) > FORGOTTEN {
            pods.looked = now;
            pods.shares
                .retain(|_, share| share.is_open() || now.duration_since(share.last()) < FORGOTTEN);
        }
        if let Some(share) = pods.shares.get(uid) {
            *share.last.lock().unwrap_or_else(PoisonError::into_inner) = now;
            return Arc::clone(share);
        }
        let share = Arc::new(Share {
            open: AtomicUsize::new(0),
            connections: limiter(self.limits.connection_rate),
            requests: limiter(self.limits.request_rate),
            last: Mutex::new(now),
        });
        pods.shares.insert(uid.clone(), Arc::clone(&share));
        share
    }

    /// Connections from this address are closed unseen for a moment: to find out each time anew whose they are is what
    /// a pod with too many of them would keep the agent busy with.
    pub fn shut_out(&self, address: IpAddr) {
        let mut shut = self.shut.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        shut.retain(|_, since| now.duration_since(*since) < SHUT);
        shut.insert(address, now);
    }

    /// Whether connections from this address are closed unseen at the moment.
    pub fn is_shut_out(&self, address: IpAddr) -> bool {
        let shut = self.shut.lock().unwrap_or_else(PoisonError::into_inner);
        shut.get(&address).is_some_and(|since| since.elapsed() < SHUT)
    }
}

impl Share {
    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// How long this connection has to wait before its first request is read.
    pub fn wait_for_connection(&self) -> Option<Duration> {
        wait(&self.0.connections)
    }

    /// How long a request has to wait before it is answered.
    pub fn wait_for_request(&self) -> Option<Duration> {
        wait(&self.0.requests)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A tenth of a second's worth may come at once.
fn limiter(per_second: u32) -> Limiter {
    let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(per_second / 10));
    RateLimiter::direct_with_clock(quota, MonotonicClock)
}

fn wait(limiter: &Limiter) -> Option<Duration> {
    let not_until = limiter.check().err()?;
    Some(not_until.wait_time_from(MonotonicClock.now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            connections: 2,
            connection_rate: 50,
            request_rate: 10,
            head: 8192,
            head_time: Duration::from_secs(1),
            idle: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_pod_has_so_many_connections_and_each_that_ends_makes_room() {
        let per_pod = PerPod::new(limits());
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = per_pod.take(&a);
        let _second = per_pod.take(&a);
        assert!(first.is_some() && per_pod.take(&a).is_none());
        assert!(per_pod.take(&b).is_some(), "another pod has its own");
        drop(first);
        assert!(per_pod.take(&a).is_some());
    }

    #[test]
    fn what_comes_too_fast_waits_over_reconnects_too() {
        let per_pod = PerPod::new(limits());
        let uid = "a".parse().unwrap();
        let waits: Vec<_> = (0..8)
            .map(|_| per_pod.take(&uid).unwrap().wait_for_connection())
            .collect();
        assert!(waits[..5].iter().all(Option::is_none), "a tenth of 50: {waits:?}");
        let waited = waits[5..].iter().flatten().count();
        assert!(waited >= 2, "{waits:?}");
        assert!(
            waits
                .iter()
                .flatten()
                .all(|wait| *wait <= Duration::from_millis(80)),
            "{waits:?}"
        );
        assert!(per_pod.take(&uid).unwrap().wait_for_request().is_none());
    }

    #[test]
    fn an_address_is_shut_out_for_a_moment() {
        let per_pod = PerPod::new(limits());
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        per_pod.shut_out(a);
        assert!(per_pod.is_shut_out(a) && !per_pod.is_shut_out(b));
        std::thread::sleep(SHUT);
        assert!(!per_pod.is_shut_out(a));
    }
}
