//! What one pod may take of the agent: so many connections at a time, and so many connections and requests in a
//! second. Whoever makes them faster is slowed down, not failed: with few connections at a time the wait is short.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metaproxy_common::rate::RateLimit;

use crate::rate_limiter::RateLimiter;

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
    pub head_timeout: Duration,
    /// For a connection to say nothing between requests.
    pub idle: Duration,
}

/// Connections that a pod may make at once before its rate in the kernel counts: half of the accept queue that all pods
/// share.
const KERNEL_BURST: u32 = 2048;

impl Limits {
    /// The rate above which a pod's connections are refused in the kernel: twice the one above which they are slowed, so
    /// that a pod is slowed first.
    pub fn kernel_connection_rate(&self) -> RateLimit {
        let rate = self.connection_rate.saturating_mul(2);
        // At high rates the burst alone would be less than the time for which a connection may be preempted.
        RateLimit::new(rate, KERNEL_BURST.max(rate / 10))
    }
}

/// Whoever has not been heard of for so long starts anew.
const CLIENT_MEMORY: Duration = Duration::from_secs(10);

/// Each one's share: each pod's, or each address's.
#[derive(Debug)]
pub struct ClientLimits<K> {
    limits: Limits,
    table: Mutex<Table<K>>,
}

#[derive(Debug)]
struct Table<K> {
    shares: HashMap<K, Arc<Share>>,
    looked: Instant,
}

/// What one has taken.
#[derive(Debug)]
struct Share {
    open: AtomicUsize,
    connections: RateLimiter,
    requests: RateLimiter,
    last: Mutex<Instant>,
}

/// One connection of a share, until it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Share>);

impl<K: Eq + Hash + Clone> ClientLimits<K> {
    /// With these limits for each.
    pub fn new(limits: Limits) -> Self {
        let (shares, looked) = (HashMap::new(), Instant::now());
        Self {
            limits,
            table: Mutex::new(Table { shares, looked }),
        }
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// `None` where it has as many connections as it may.
    pub fn acquire(&self, key: &K) -> Option<Permit> {
        let share = self.share(key);
        // Compared and counted in one step: two at once must not both be the last.
        let counted = share
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < self.limits.connections).then_some(open + 1)
            });
        counted.is_ok().then(|| Permit(share))
    }

    fn share(&self, key: &K) -> Arc<Share> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(table.looked) > CLIENT_MEMORY {
            table.looked = now;
            table
                .shares
                .retain(|_, share| share.is_open() || now.duration_since(share.last()) < CLIENT_MEMORY);
        }
        if let Some(share) = table.shares.get(key) {
            *share.last.lock().unwrap_or_else(PoisonError::into_inner) = now;
            return Arc::clone(share);
        }
        let share = Arc::new(Share {
            open: AtomicUsize::new(0),
            connections: RateLimiter::per_second(self.limits.connection_rate),
            requests: RateLimiter::per_second(self.limits.request_rate),
            last: Mutex::new(now),
        });
        table.shares.insert(key.clone(), Arc::clone(&share));
        share
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

impl Permit {
    /// How long this connection has to wait before anything is done about it.
    pub fn wait_for_connection(&self) -> Option<Duration> {
        self.0.connections.reserve(Instant::now())
    }

    /// How long a request has to wait before it is answered.
    pub fn wait_for_request(&self, now: Instant) -> Option<Duration> {
        self.0.requests.reserve(now)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
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
            head_timeout: Duration::from_secs(1),
            idle: Duration::from_secs(1),
        }
    }

    #[test]
    fn each_has_so_many_connections_and_one_that_ends_makes_room() {
        let shares = ClientLimits::new(limits());
        let first = shares.acquire(&"a");
        let _second = shares.acquire(&"a");
        assert!(first.is_some() && shares.acquire(&"a").is_none());
        assert!(shares.acquire(&"b").is_some(), "another has its own");
        drop(first);
        assert!(shares.acquire(&"a").is_some());
    }

    #[test]
    fn a_pods_pace_outlives_its_connections() {
        let shares = ClientLimits::new(limits());
        let waits = (0..15).map(|_| shares.acquire(&"a").unwrap().wait_for_connection());
        assert!(waits.flatten().count() >= 5);
        assert!(shares.acquire(&"b").unwrap().wait_for_connection().is_none());
    }
}
