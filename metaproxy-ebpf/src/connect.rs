//! connect4 and connect6: sends a pod's connection to a metadata address to a listener, and stamps its socket with the
//! caller.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_ktime_get_ns,
};
use aya_ebpf::programs::SockAddrContext;
use metaproxy_common::address::{Address, Endpoint};
use metaproxy_common::handshake::MAX_CGROUP_ID;
use metaproxy_common::layout::{ClientState, Config, Counter, Destination, HandshakeFailure, Origin, Stamp};
use metaproxy_common::verdict::{
    CallerContext, ConnectAction, ConnectingSocket, DialledClass, DialledKind, Family, classify, decide,
};

use crate::maps::{
    CONFIG, DESTINATIONS, HOST_PODS, OBSERVED, POD_FAMILIES, PODS, RATES, STAMPS, count, count_failure,
};
use crate::{sockaddr, socket};

/// The deepest cgroup level at which pods are looked for.
const MAX_LEVEL: i32 = 16;

#[inline(always)]
pub fn on_connect(ctx: &SockAddrContext, family: Family) {
    let Some(config) = CONFIG.get(0) else { return };
    let to = sockaddr::read(ctx, family);
    let class = classify(config, &to);
    if class.kind == DialledKind::Other || !sockaddr::is_stream(ctx) {
        return;
    }
    // SAFETY: the helpers take the context that the kernel gave, or nothing.
    let origin = unsafe {
        Origin {
            cgroup_id: bpf_get_current_cgroup_id(),
            netns_cookie: bpf_get_netns_cookie(ctx.as_ptr()),
        }
    };
    let context = caller_context(config, &origin);
    if config.observe != 0 {
        if class.kind == DialledKind::Metadata && (context.listed || !context.in_node_netns) {
            observe(&origin);
        }
        return;
    }
    let pod = pod_cgroup(&origin);
    if class.kind == DialledKind::Listener || context.listed || !context.in_node_netns {
        if !is_within_rate(config, &origin, pod) {
            refuse(ctx, family, &class.sentinel);
            return;
        }
    }
    let destination = destination(config, origin.netns_cookie);
    let from = connecting(ctx, family, config, pod, &class, &destination);
    let verdict = decide(&class, &from, context, &destination);
    match verdict.action {
        ConnectAction::Pass => count(Counter::NodeLeftAlone),
        ConnectAction::Stamp => {
            if stamp(ctx, origin, class.asked, to) {
                count(Counter::Stamped);
            }
        }
        ConnectAction::Redirect => {
            if stamp(ctx, origin, class.asked, verdict.to) {
                sockaddr::write(ctx, family, &verdict.to);
                count(Counter::Redirected);
                log_redirect(ctx, &origin);
            } else {
                refuse(ctx, family, &class.sentinel);
            }
        }
        ConnectAction::Refuse => refuse(ctx, family, &verdict.to),
    }
}

/// Counts a connection of this cgroup. Two at the same time may count as one.
#[inline(always)]
fn observe(origin: &Origin) {
    count(Counter::Observed);
    if let Some(seen) = OBSERVED.get_ptr_mut(origin.cgroup_id) {
        // SAFETY: non-null, and map values outlive the program run.
        unsafe { *seen += 1 };
    } else {
        // If the map is full, the cgroup is noted after the agent has read and emptied it.
        let _ = OBSERVED.insert(origin.cgroup_id, 1_u64, 0);
    }
}

/// Reads the properties of the connecting socket, which belongs to the pod with this cgroup.
#[inline(always)]
fn connecting(
    ctx: &SockAddrContext,
    family: Family,
    config: &Config,
    pod: u64,
    class: &DialledClass,
    destination: &Destination,
) -> ConnectingSocket {
    let pod_family = match POD_FAMILIES.get_ptr(pod) {
        // SAFETY: non-null, and map values outlive the program run.
        Some(own) => unsafe { *own },
        None => config.pod_family,
    };
    let mut from = ConnectingSocket {
        family,
        source: match family {
            Family::V4 => Address::UNSPECIFIED,
            Family::V6 => socket::source(ctx),
        },
        is_v6only: false,
        pod_family: pod_family.family(),
    };
    if from.may_be_v6only(class, destination) {
        from.is_v6only = socket::is_v6only(ctx);
    }
    from
}

/// Reports whether the caller's pod may make one more connection to the listener now. Two at the same time may count as
/// one.
#[inline(always)]
fn is_within_rate(config: &Config, origin: &Origin, pod: u64) -> bool {
    if config.rate.interval_ns == 0 {
        return true;
    }
    // SAFETY: takes no pointer.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(due) = RATES.get_ptr_mut(pod) else {
        let _ = RATES.insert(pod, now, 0);
        return true;
    };
    // SAFETY: non-null, and map values outlive the program run.
    let decision = unsafe { config.rate.decide(*due, now) };
    // SAFETY: as above.
    unsafe { *due = decision.due_ns };
    if !decision.is_allowed {
        count_failure(origin.cgroup_id, HandshakeFailure::TooFast);
    }
    decision.is_allowed
}

/// Returns the cgroup of the caller's pod, which is the key of its rate and family: the one directly below the pods'
/// cgroup (Guaranteed) or below that of a QoS class. The cgroups of containers, and those that the pod itself makes,
/// are below it, so a pod has one key. For a caller that is in no pod, it returns the caller's own cgroup.
#[inline(always)]
fn pod_cgroup(origin: &Origin) -> u64 {
    let pods = match PODS.get(0) {
        Some(id) if *id != 0 => *id,
        _ => return origin.cgroup_id,
    };
    let mut level = 1;
    while level <= MAX_LEVEL {
        // SAFETY: takes no pointer.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            break;
        }
        if id == pods {
            // SAFETY: as above.
            let below = unsafe { bpf_get_current_ancestor_cgroup_id(level + 1) };
            let pod = if is_class(below) {
                // SAFETY: as above.
                unsafe { bpf_get_current_ancestor_cgroup_id(level + 2) }
            } else {
                below
            };
            return if pod == 0 { origin.cgroup_id } else { pod };
        }
        level += 1;
    }
    origin.cgroup_id
}

/// Reports whether this is the cgroup of a QoS class.
#[inline(always)]
fn is_class(id: u64) -> bool {
    let is = |index| matches!(PODS.get(index), Some(class) if *class == id);
    is(1) || is(2)
}

#[inline(always)]
fn refuse(ctx: &SockAddrContext, family: Family, sentinel: &Endpoint) {
    sockaddr::write(ctx, family, sentinel);
    count(Counter::Refused);
}

#[inline(always)]
fn caller_context(config: &Config, origin: &Origin) -> CallerContext {
    let in_node_netns = sockaddr::is_node_netns(origin.netns_cookie, config.node_netns);
    CallerContext {
        in_node_netns,
        listed: in_node_netns && is_listed(),
    }
}

/// Reports whether the task's cgroup, or one above it, is that of a listed pod. Levels are tried from the root, because
/// the level of a pod depends on its QoS class and on the depth of the pods' cgroup.
#[inline(always)]
fn is_listed() -> bool {
    let mut level = 1;
    while level <= MAX_LEVEL {
        // SAFETY: takes no pointer.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return false;
        }
        if HOST_PODS.get_ptr(id).is_some() {
            return true;
        }
        level += 1;
    }
    false
}

#[inline(always)]
fn destination(config: &Config, netns_cookie: u64) -> Destination {
    if config.override_count != 0 {
        if let Some(own) = DESTINATIONS.get_ptr(netns_cookie) {
            // SAFETY: non-null, and map values outlive the program run (RCU).
            return unsafe { *own };
        }
    }
    config.destination
}

/// Notes the caller and the listener on the socket. It returns false if the caller cannot be carried to the listener.
#[inline(always)]
fn stamp(ctx: &SockAddrContext, origin: Origin, asked: Endpoint, listener: Endpoint) -> bool {
    if origin.cgroup_id > MAX_CGROUP_ID {
        count_failure(origin.cgroup_id, HandshakeFailure::IdTooLarge);
        return false;
    }
    // SAFETY: the storage belongs to the context's socket, which lives as long as the context.
    let slot = unsafe { STAMPS.get_or_insert_ptr_mut(ctx, None) };
    if slot.is_null() {
        return false;
    }
    // SAFETY: the pointer is not null. The kernel calls this for unconnected sockets only, so no earlier connection
    // needs the stamp.
    unsafe {
        *slot = Stamp {
            origin,
            asked,
            listener,
            client_isn: 0,
            listener_isn: 0,
            state: ClientState::CALLED,
            is_failure_counted: 0,
        };
    }
    true
}

#[cfg(feature = "log")]
#[inline(always)]
fn log_redirect(ctx: &SockAddrContext, origin: &Origin) {
    aya_log_ebpf::info!(
        ctx,
        "redirected cgroup {} netns {}",
        origin.cgroup_id,
        origin.netns_cookie
    );
}

#[cfg(not(feature = "log"))]
#[inline(always)]
fn log_redirect(_ctx: &SockAddrContext, _origin: &Origin) {}
