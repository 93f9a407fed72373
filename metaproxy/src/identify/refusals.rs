//! Counts connections that were refused or did not reach the agent, by kind and pod, and reports them in the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfMap, MapData};
use metaproxy_common::layout::{FailureKey, HandshakeFailure};
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::cgroups::{CurrentPods, NotAPod, current};
use crate::pods::{Known, PodUid, Pods};
use crate::telemetry::log_limiter::LogLimiter;

/// How often the failures that the kernel has counted are read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two log lines about the same kind and pod.
const REPEAT_INTERVAL: Duration = Duration::from_secs(600);

/// The reasons why a connection was refused, or did not reach the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalKind {
    /// It carried no option.
    NoOption,
    /// Its option does not prove the caller.
    BadTag,
    /// Its option proves the pod, but its address is not known to be the pod's.
    ForeignAddress,
    /// Its caller is proven, but is not a pod.
    NotAPod,
    /// The caller's cgroup id has more than 40 bits.
    IdTooLarge,
    /// Its packets had no room for the option.
    NoRoom,
    /// The kernel or another program prevented that the option was written.
    NotWritten,
    /// The pod connects faster than it may.
    TooFast,
    /// A program other than the listener answered it.
    AnsweredElsewhere,
    /// The agent could not look up the caller.
    Internal,
}

impl RefusalKind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::NoOption,
        Self::BadTag,
        Self::ForeignAddress,
        Self::NotAPod,
        Self::IdTooLarge,
        Self::NoRoom,
        Self::NotWritten,
        Self::TooFast,
        Self::AnsweredElsewhere,
        Self::Internal,
    ];

    /// Returns the kind's name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoOption => "no_option",
            Self::BadTag => "bad_tag",
            Self::ForeignAddress => "foreign_address",
            Self::NotAPod => "not_a_pod",
            Self::IdTooLarge => HandshakeFailure::IdTooLarge.label(),
            Self::NoRoom => HandshakeFailure::NoRoom.label(),
            Self::NotWritten => HandshakeFailure::NotWritten.label(),
            Self::TooFast => HandshakeFailure::TooFast.label(),
            Self::AnsweredElsewhere => HandshakeFailure::AnsweredElsewhere.label(),
            Self::Internal => "internal",
        }
    }

    /// Returns what the kind means, and what operators can do about it.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::NoOption => {
                "the connection carried no caller: a process outside the pods' cgroup dials the listener, or a device or rule on \
                 the way removes TCP options (TCPOPTSTRIP, SYNPROXY)"
            }
            Self::BadTag => {
                "the caller that the connection carried is not proven: a relay or a second agent's connection, or an attempt at \
                 forging one"
            }
            Self::ForeignAddress => {
                "NAT outside the pod changed the connection's address: a rule of this node, or of a proxy, catches the way to \
                 the listener. `metaproxy doctor` shows the listener's address; exclude it from that rule"
            }
            Self::NotAPod => "the caller belongs to no pod, or its cgroup is gone",
            Self::IdTooLarge => {
                "the node has made so many cgroups that their ids have more than 40 bits; it must be booted again"
            }
            Self::NoRoom => {
                "the connection's packets have no room for 24 bytes of TCP options: TCP-MD5 or TCP-AO, or another program's \
                 options"
            }
            Self::NotWritten => {
                "the kernel did not let the program write the caller's option: another sock_ops program at the pods' cgroup \
                 uses the same option or clears its flags. `metaproxy doctor` names the programs there"
            }
            Self::TooFast => {
                "the pod connects to the metadata service more than twice as fast as --max-connection-rate-per-pod allows; what comes \
                 faster is refused in the kernel, so that other pods do not wait behind it"
            }
            Self::AnsweredElsewhere => {
                "another program than the agent answered the connection: a hostPort, an externalIP or a NAT rule of this node \
                 claims the listener's port, a socket load balancer (Cilium) translates it, or the pod has the listener's \
                 address in a network namespace of its own"
            }
            Self::Internal => "the agent could not look up the caller",
        }
    }

    fn of(failure: HandshakeFailure) -> Self {
        match failure {
            HandshakeFailure::IdTooLarge => Self::IdTooLarge,
            HandshakeFailure::NoRoom => Self::NoRoom,
            HandshakeFailure::NotWritten => Self::NotWritten,
            HandshakeFailure::TooFast => Self::TooFast,
            HandshakeFailure::AnsweredElsewhere => Self::AnsweredElsewhere,
        }
    }
}

/// The number of refused connections of one pod, or of unknown callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalCount {
    /// The kind.
    pub kind: RefusalKind,
    /// The namespace and the name of the pod; empty if no pod is known.
    pub pod: (String, String),
    /// The number of connections since the agent's start.
    pub count: u64,
}

/// Counts refused connections. It is cheap to clone.
#[derive(Clone, Debug)]
pub struct Refusals {
    pods: Pods,
    counts: Arc<Mutex<BTreeMap<CountKey, Entry>>>,
    answered_elsewhere: Arc<Notify>,
    lines: LogLimiter,
}

type CountKey = (RefusalKind, Option<PodUid>);

#[derive(Debug, Default)]
struct Entry {
    pod: (String, String),
    count: u64,
    reported: u64,
    reported_at: Option<Instant>,
}

impl Refusals {
    /// Makes counters that take the names of pods from `pods`.
    pub fn new(pods: Pods) -> Self {
        Self {
            pods,
            // Each kind exists from the start, so that Prometheus can compute its rate from the first connection on.
            counts: Arc::new(Mutex::new(
                RefusalKind::ALL
                    .map(|kind| ((kind, None), Entry::default()))
                    .into(),
            )),
            answered_elsewhere: Arc::default(),
            lines: LogLimiter::new(|more| {
                warn!("{more} more pods had connections that were not served; the metrics name each");
            }),
        }
    }

    /// Counts refused connections. It also logs them, unless it has logged the same kind and pod a short time ago.
    pub fn note(&self, kind: RefusalKind, pod: Option<&PodUid>, count: u64) {
        if kind == RefusalKind::AnsweredElsewhere {
            self.answered_elsewhere.notify_one();
        }
        let inventory = self.pods.borrow();
        let name = pod.and_then(|uid| match inventory.by_uid(uid) {
            Some(Known::Pod(pod)) => Some((pod.namespace.clone(), pod.name.clone())),
            Some(Known::Ambiguous(_)) | None => None,
        });
        // Pods that are not in the inventory are counted together, because the number of their UIDs has no limit.
        let pod = name.is_some().then(|| pod.cloned()).flatten();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() > 2 * inventory.len() + RefusalKind::ALL.len() {
            counts.retain(|(_, pod), _| pod.as_ref().is_none_or(|uid| inventory.by_uid(uid).is_some()));
        }
        drop(inventory);
        let entry = counts.entry((kind, pod)).or_default();
        entry.pod = name.unwrap_or_default();
        entry.count += count;
        if let Some(new) = entry.report(Instant::now()) {
            let (namespace, pod) = entry.pod.clone();
            drop(counts);
            if self.lines.may_log() {
                report(kind, &namespace, &pod, new);
            }
        }
    }

    /// Waits until a program other than the listener has answered a connection. NAT in the pod itself may have led
    /// the connection there, so this proves nothing about the node.
    pub async fn answered_elsewhere(&self) {
        self.answered_elsewhere.notified().await;
    }

    /// Returns all counts, by kind and pod.
    pub fn counts(&self) -> Vec<RefusalCount> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |((kind, _), entry): (&CountKey, &Entry)| RefusalCount {
            kind: *kind,
            pod: entry.pod.clone(),
            count: entry.count,
        };
        counts.iter().map(count).collect()
    }
}

impl Entry {
    /// Returns the number of connections to report, if a report is due.
    fn report(&mut self, now: Instant) -> Option<u64> {
        let is_due = self
            .reported_at
            .is_none_or(|reported| now.duration_since(reported) >= REPEAT_INTERVAL);
        if !is_due {
            return None;
        }
        let new = self.count - self.reported;
        self.reported = self.count;
        self.reported_at = Some(now);
        Some(new)
    }
}

fn report(kind: RefusalKind, namespace: &str, pod: &str, connections: u64) {
    let (label, why) = (kind.label(), kind.explanation());
    if pod.is_empty() {
        warn!(
            kind = label,
            connections, "connections to the listener were refused: {why}"
        );
    } else {
        warn!(
            kind = label,
            connections,
            "connections of pod {namespace}/{pod} to the metadata service were not served: {why}"
        );
    }
}

/// Reads the failures that the programs on the client's side have counted, until the task is aborted.
pub async fn follow_failures(
    failures: BpfMap<MapData, FailureKey, u64>,
    cgroup: CurrentPods,
    refusals: Refusals,
) {
    let mut reader = FailureReader {
        failures,
        cgroup,
        refusals,
        seen: HashMap::new(),
    };
    let mut look = tokio::time::interval(POLL_INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        reader.read();
    }
}

struct FailureReader {
    failures: BpfMap<MapData, FailureKey, u64>,
    cgroup: CurrentPods,
    refusals: Refusals,
    seen: HashMap<FailureKey, u64>,
}

impl FailureReader {
    fn read(&mut self) {
        let found: Vec<(FailureKey, u64)> = self.failures.iter().filter_map(Result::ok).collect();
        for (key, count) in found {
            let seen = self.seen.insert(key, count).unwrap_or_default();
            let Some(kind) = HandshakeFailure::ALL.get(key.kind as usize) else {
                continue;
            };
            let pod = current(&self.cgroup).map(|pods| pods.pod_of(key.cgroup_id));
            if count > seen {
                let uid = pod.as_ref().and_then(|pod| pod.as_ref().ok());
                self.refusals.note(RefusalKind::of(*kind), uid, count - seen);
            }
            // An id is not used twice, so no program will count under it again.
            if matches!(pod, Some(Err(NotAPod::Gone(_)))) {
                self.seen.remove(&key);
                if let Err(error) = self.failures.remove(&key) {
                    debug!("cannot remove the failures of cgroup {}: {error}", key.cgroup_id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
