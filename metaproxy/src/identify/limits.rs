//! Limits of one client: how many connections it has open at a time, and how many connections and requests it makes in a
//! second. A client above its rate is slowed down and not failed: its few connections make the wait short.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metaproxy_common::rate::RateLimit;

use crate::rate_limiter::RateLimiter;

/// The limits of one client. No ordinary client comes near the defaults.
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
/// usage.
const KERNEL_CONNECTION_BURST: u32 = 2048;

impl Limits {
    /// The rate above which a pod's connections are refused in the kernel: twice the one above which they are slowed, so
    /// that a pod is slowed first.
    pub fn kernel_connection_rate(&self) -> RateLimit {
        let rate = self.connection_rate.saturating_mul(2);
        // At high rates the burst alone would be less than the time for which a connection may be preempted.
        RateLimit::new(rate, KERNEL_CONNECTION_BURST.max(rate / 10))
    }
}

/// How long a client without a connection is remembered.
const CLIENT_MEMORY: Duration = Duration::from_secs(10);

/// Holds clients to the limits. `K` is what identifies a client: a pod's UID, or an address.
#[derive(Debug)]
pub struct ClientLimits<K> {
    limits: Limits,
    table: Mutex<Table<K>>,
    slowed: Arc<SlowedCounters>,
}

/// Connections and requests that had to wait for a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slowed {
    /// Connections.
    pub connections: u64,
    /// Requests.
    pub requests: u64,
}

#[derive(Debug, Default)]
struct SlowedCounters {
    connections: AtomicU64,
    requests: AtomicU64,
}

#[derive(Debug)]
struct Table<K> {
    usages: HashMap<K, Arc<Usage>>,
    pruned: Instant,
}

/// What one client uses of its limits.
#[derive(Debug)]
struct Usage {
    open: AtomicUsize,
    connections: RateLimiter,
    requests: RateLimiter,
    last: Mutex<Instant>,
    slowed: Arc<SlowedCounters>,
}

/// The right to one connection, given back when it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Usage>);

impl<K: Eq + Hash + Clone> ClientLimits<K> {
    /// Holds each client to these limits.
    pub fn new(limits: Limits) -> Self {
        let (usages, pruned) = (HashMap::new(), Instant::now());
        Self {
            limits,
            table: Mutex::new(Table { usages, pruned }),
            slowed: Arc::default(),
        }
    }

    /// Returns the limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns how many connections and requests had to wait so far.
    pub fn slowed(&self) -> Slowed {
        Slowed {
            connections: self.slowed.connections.load(Ordering::Relaxed),
            requests: self.slowed.requests.load(Ordering::Relaxed),
        }
    }

    /// Returns a permit for one more connection of a client; `None` if it has as many as it may.
    pub fn acquire(&self, key: &K) -> Option<Permit> {
        let usage = self.usage(key);
        // Compared and counted in one step: two at once must not both be the last.
        let counted = usage
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < self.limits.connections).then_some(open + 1)
            });
        counted.is_ok().then(|| Permit(usage))
    }

    fn usage(&self, key: &K) -> Arc<Usage> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(table.pruned) > CLIENT_MEMORY {
            table.pruned = now;
            table
                .usages
                .retain(|_, usage| usage.is_open() || now.duration_since(usage.last()) < CLIENT_MEMORY);
        }
        if let Some(usage) = table.usages.get(key) {
            *usage.last.lock().unwrap_or_else(PoisonError::into_inner) = now;
            return Arc::clone(usage);
        }
        let usage = Arc::new(Usage {
            open: AtomicUsize::new(0),
            connections: RateLimiter::per_second(self.limits.connection_rate),
            requests: RateLimiter::per_second(self.limits.request_rate),
            last: Mutex::new(now),
            slowed: Arc::clone(&self.slowed),
        });
        table.usages.insert(key.clone(), Arc::clone(&usage));
        usage
    }
}

impl Usage {
    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Waits for this connection's turn by its client's connection rate.
    pub async fn wait_for_connection(&self) {
        if let Some(wait) = self.0.connections.reserve(Instant::now()) {
            self.0.slowed.connections.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
        }
    }

    /// Returns how long a request must wait for its client's request rate.
    pub fn wait_for_request(&self, now: Instant) -> Option<Duration> {
        let wait = self.0.requests.reserve(now);
        if wait.is_some() {
            self.0.slowed.requests.fetch_add(1, Ordering::Relaxed);
        }
        wait
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
        let usages = ClientLimits::new(limits());
        let first = usages.acquire(&"a");
        let _second = usages.acquire(&"a");
        assert!(first.is_some() && usages.acquire(&"a").is_none());
        assert!(usages.acquire(&"b").is_some(), "another has its own");
        drop(first);
        assert!(usages.acquire(&"a").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_of_a_client_outlives_its_connections() {
        let limits = ClientLimits::new(limits());
        for _ in 0..15 {
            limits.acquire(&"a").unwrap().wait_for_connection().await;
        }
        let slowed = limits.slowed().connections;
        assert!(slowed >= 5, "{slowed}");
        limits.acquire(&"b").unwrap().wait_for_connection().await;
        assert_eq!(limits.slowed().connections, slowed, "another has its own");
    }
}
