//! Enforces the limits of one client: how many connections it has open at a time, and how many connections and
//! requests it makes per second. A client above a limit waits. Its connections fail only if too many of them wait.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metaproxy_common::rate::RateLimit;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::rate_limiter::RateLimiter;

/// The limits of one client. The defaults are far above the use of an ordinary client.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at a time.
    pub connections: usize,
    /// Connections per second.
    pub connection_rate: u32,
    /// Requests per second.
    pub request_rate: u32,
    /// Maximum size of a request's head, in bytes.
    pub head: usize,
    /// Timeout for the head of a request, counted from its first byte.
    pub head_timeout: Duration,
    /// Timeout for an idle connection between two requests.
    pub idle: Duration,
}

/// Maximum number of connections that a pod may make at once before its rate limit in the kernel applies. It is half
/// of the accept queue that all pods share.
const KERNEL_CONNECTION_BURST: u32 = 2048;

impl Limits {
    /// Returns the rate above which the kernel refuses a pod's connections. It is twice the rate above which
    /// connections are slowed, so that a pod is slowed first.
    pub fn kernel_connection_rate(&self) -> RateLimit {
        let rate = self.connection_rate.saturating_mul(2);
        // At high rates, the constant burst alone would cover less time than a connection may be preempted for.
        RateLimit::new(rate, KERNEL_CONNECTION_BURST.max(rate / 10))
    }
}

/// How long a connection above the limit waits for another connection of its client to end, counted from when it was
/// accepted.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client without a connection is remembered.
const CLIENT_MEMORY: Duration = Duration::from_secs(10);

/// The limiter of all clients. `K` identifies a client: a pod's UID or an address.
#[derive(Debug)]
pub struct ClientLimits<K> {
    limits: Limits,
    table: Mutex<Table<K>>,
    slowed_requests: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Table<K> {
    usages: HashMap<K, Arc<Usage>>,
    pruned: Instant,
}

/// The usage of one client: how much of its limits is free.
#[derive(Debug)]
struct Usage {
    /// The free permits for connections of the client.
    free: Semaphore,
    /// The free places in the client's queue for a permit.
    queue: Semaphore,
    connections: RateLimiter,
    requests: RateLimiter,
    last: Mutex<Instant>,
    slowed_requests: Arc<AtomicU64>,
}

/// The permit for one connection. Dropping it returns the permit to the client.
#[derive(Debug)]
pub struct Permit(Arc<Usage>);

/// The admission of a counted connection, which has either its permit or a place in the queue for one.
#[derive(Debug)]
pub enum Admission {
    /// The connection has its permit.
    Granted(Permit),
    /// The client has as many connections as its limit allows, so this one waits.
    Queued(Queued),
}

/// A place in the queue of one client's connections. Dropping it frees the place.
#[derive(Debug)]
pub struct Queued(Arc<Usage>);

impl<K: Eq + Hash + Clone> ClientLimits<K> {
    /// Makes a limiter that enforces these limits for each client.
    pub fn new(limits: Limits) -> Self {
        let (usages, pruned) = (HashMap::new(), Instant::now());
        Self {
            limits,
            table: Mutex::new(Table { usages, pruned }),
            slowed_requests: Arc::default(),
        }
    }

    /// Returns the limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns how many requests have waited so far because of their client's rate.
    pub fn slowed_requests(&self) -> u64 {
        self.slowed_requests.load(Ordering::Relaxed)
    }

    /// Counts one more connection of a client. Returns `None` if the client has as many connections as its limit
    /// allows, and as many more already wait.
    pub fn admit(&self, key: &K) -> Option<Admission> {
        let usage = self.usage(key);
        if take(&usage.free) {
            return Some(Admission::Granted(Permit(usage)));
        }
        take(&usage.queue).then(|| Admission::Queued(Queued(usage)))
    }

    fn usage(&self, key: &K) -> Arc<Usage> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(table.pruned) > CLIENT_MEMORY {
            table.pruned = now;
            table
                .usages
                .retain(|_, usage| is_in_use(usage) || now.duration_since(usage.last()) < CLIENT_MEMORY);
        }
        if let Some(usage) = table.usages.get(key) {
            *usage.last.lock().unwrap_or_else(PoisonError::into_inner) = now;
            return Arc::clone(usage);
        }
        let usage = Arc::new(Usage {
            free: Semaphore::new(self.limits.connections),
            queue: Semaphore::new(self.limits.connections),
            connections: RateLimiter::per_second(self.limits.connection_rate),
            requests: RateLimiter::per_second(self.limits.request_rate),
            last: Mutex::new(now),
            slowed_requests: Arc::clone(&self.slowed_requests),
        });
        table.usages.insert(key.clone(), Arc::clone(&usage));
        usage
    }
}

/// Takes a permit if one is free. The caller must add it again later.
fn take(semaphore: &Semaphore) -> bool {
    semaphore.try_acquire().map(SemaphorePermit::forget).is_ok()
}

/// Returns whether a client has connections. Each of them shares the client's entry of the table.
fn is_in_use(usage: &Arc<Usage>) -> bool {
    Arc::strong_count(usage) > 1
}

impl Usage {
    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// Returns whether the connection has to wait for its permit.
    pub fn is_queued(&self) -> bool {
        matches!(self, Self::Queued(_))
    }

    /// Returns the permit, after a wait if the connection is queued. Returns `None` if none of the client's
    /// connections ends before the deadline.
    pub async fn permit(self, deadline: tokio::time::Instant) -> Option<Permit> {
        match self {
            Self::Granted(permit) => Some(permit),
            Self::Queued(queued) => queued.permit(deadline).await,
        }
    }
}

impl Queued {
    async fn permit(self, deadline: tokio::time::Instant) -> Option<Permit> {
        let freed = tokio::time::timeout_at(deadline, self.0.free.acquire()).await;
        // `acquire` fails only if the semaphore is closed, and this one is never closed.
        freed.ok()?.ok()?.forget();
        Some(Permit(Arc::clone(&self.0)))
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queue.add_permits(1);
    }
}

impl Permit {
    /// Waits until the connection rate of the client allows this connection. Returns whether it had to wait.
    pub async fn wait_for_connection(&self) -> bool {
        let wait = self.0.connections.reserve(Instant::now());
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
        wait.is_some()
    }

    /// Returns how long a request must wait until the request rate of its client allows it.
    pub fn wait_for_request(&self, now: Instant) -> Option<Duration> {
        let wait = self.0.requests.reserve(now);
        if wait.is_some() {
            self.0.slowed_requests.fetch_add(1, Ordering::Relaxed);
        }
        wait
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.free.add_permits(1);
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

    fn granted(limits: &ClientLimits<&str>, client: &'static str) -> Option<Permit> {
        match limits.admit(&client)? {
            Admission::Granted(permit) => Some(permit),
            Admission::Queued(_) => None,
        }
    }

    #[test]
    fn the_connection_limit_applies_per_client_and_a_closed_connection_frees_its_permit() {
        let limits = ClientLimits::new(limits());
        let first = granted(&limits, "a");
        let _second = granted(&limits, "a");
        assert!(first.is_some() && granted(&limits, "a").is_none());
        assert!(granted(&limits, "b").is_some(), "another has its own");
        drop(first);
        assert!(granted(&limits, "a").is_some());
    }

    fn deadline() -> tokio::time::Instant {
        tokio::time::Instant::now() + ADMISSION_TIMEOUT
    }

    #[tokio::test(start_paused = true)]
    async fn connections_above_the_limit_wait_in_order_in_a_queue_as_long_as_the_limit() {
        let limits = ClientLimits::new(limits());
        let (first, second) = (granted(&limits, "a"), granted(&limits, "a"));
        let mut queued = Vec::new();
        for _ in 0..2 {
            let admission = limits.admit(&"a").unwrap();
            assert!(admission.is_queued());
            queued.push(tokio::spawn(admission.permit(deadline())));
            tokio::task::yield_now().await;
        }
        assert!(limits.admit(&"a").is_none(), "the queue is full");
        drop(first);
        let third = queued.remove(0).await.unwrap();
        assert!(
            third.is_some() && !queued[0].is_finished(),
            "one has ended, so one has its turn"
        );
        drop(second);
        assert!(
            granted(&limits, "a").is_none(),
            "a later one does not overtake the one that waits"
        );
        assert!(queued.remove(0).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_waits_too_long_is_refused_and_frees_its_place() {
        let limits = ClientLimits::new(limits());
        let held = [granted(&limits, "a"), granted(&limits, "a")];
        for _ in 0..5 {
            let began = tokio::time::Instant::now();
            assert!(limits.admit(&"a").unwrap().permit(deadline()).await.is_none());
            assert_eq!(began.elapsed(), ADMISSION_TIMEOUT);
        }
        drop(held);
        let both = [granted(&limits, "a"), granted(&limits, "a")];
        assert!(both.iter().all(Option::is_some), "no permit is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_rate_of_a_client_applies_across_its_connections() {
        let limits = ClientLimits::new(limits());
        let mut waited = 0;
        for _ in 0..15 {
            waited += usize::from(granted(&limits, "a").unwrap().wait_for_connection().await);
        }
        assert!(waited >= 5, "{waited}");
        assert!(
            !granted(&limits, "b").unwrap().wait_for_connection().await,
            "another has its own"
        );
    }
}
