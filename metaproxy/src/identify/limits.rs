//! Limits of one client: how many connections it has open at a time, and how many connections and requests it makes in a
//! second. A client above a limit waits and does not fail, as long as few of its connections wait.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metaproxy_common::rate::RateLimit;
use tokio::sync::{Semaphore, SemaphorePermit};

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
/// share.
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

/// How long a connection above a limit waits for another one of its client to end, from when it was accepted.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client without a connection is remembered.
const CLIENT_MEMORY: Duration = Duration::from_secs(10);

/// Holds clients to the limits. `K` is what identifies a client: a pod's UID, or an address.
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

/// What one client uses of its limits.
#[derive(Debug)]
struct Usage {
    /// The permits for connections that the client does not use.
    free: Semaphore,
    /// The places in the queue for a permit that the client does not use.
    queue: Semaphore,
    connections: RateLimiter,
    requests: RateLimiter,
    last: Mutex<Instant>,
    slowed_requests: Arc<AtomicU64>,
}

/// The right to one connection, given back when it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Usage>);

/// A connection that was counted: it has its permit, or a place in the queue for one.
#[derive(Debug)]
pub enum Admission {
    /// The connection has its permit.
    Granted(Permit),
    /// The client has as many connections as it may, so this one waits.
    Queued(Queued),
}

/// A place in the queue of one client's connections, given back when it is dropped.
#[derive(Debug)]
pub struct Queued(Arc<Usage>);

impl<K: Eq + Hash + Clone> ClientLimits<K> {
    /// Holds each client to these limits.
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

    /// Returns how many requests had to wait for their client's rate so far.
    pub fn slowed_requests(&self) -> u64 {
        self.slowed_requests.load(Ordering::Relaxed)
    }

    /// Counts one more connection of a client. `None` if the client has as many connections as it may, and as many more
    /// wait already.
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

/// Takes a permit if there is one. It must be added again.
fn take(semaphore: &Semaphore) -> bool {
    semaphore.try_acquire().map(SemaphorePermit::forget).is_ok()
}

/// An entry of the table is shared with each of the client's connections.
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

    /// Returns the permit, after a wait if the connection is queued. `None` if none of the client's connections ends
    /// before the deadline.
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
        // A semaphore ends only if it is closed, which this one never is.
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
    /// Waits for this connection's turn by its client's connection rate. Returns whether it had to wait.
    pub async fn wait_for_connection(&self) -> bool {
        let wait = self.0.connections.reserve(Instant::now());
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
        wait.is_some()
    }

    /// Returns how long a request must wait for its client's request rate.
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
    fn each_client_has_its_own_number_of_connections_and_one_that_ends_frees_its_permit() {
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
    async fn connections_above_the_limit_wait_their_turn_and_only_as_many_as_the_limit() {
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
    async fn a_connection_that_waited_too_long_is_given_up_and_frees_its_place() {
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
    async fn the_rate_of_a_client_outlives_its_connections() {
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
