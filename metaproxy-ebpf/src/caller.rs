//! sock_ops of pods' sockets: writes the caller's option into the packets of a stamped socket, from the handshake's ACK
//! until the listener has acknowledged data.
//!
//! Every packet carries it, because any may be the one that completes the handshake at the listener: a listener drops
//! the ACK while its accept queue is full.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_WRITE_HDR_OPT_CB,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use metaproxy_common::handshake::{
    CALLER_OPTION_LEN, Connection, LISTENER_OPTION_LEN, caller_option, is_answered_by_listener, window,
};
use metaproxy_common::layout::{ClientState, HandshakeFailure, Stamp};
use metaproxy_common::siphash::Key;

use crate::maps::{KEY, count_failure, stamp};
use crate::sockops::{self, Loaded};

#[inline(always)]
pub fn on_event(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        on_connect(ctx);
    } else if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        on_established(ctx);
    } else if op == BPF_SOCK_OPS_HDR_OPT_LEN_CB {
        on_option_length(ctx);
    } else if op == BPF_SOCK_OPS_WRITE_HDR_OPT_CB {
        on_option_write(ctx);
    }
}

/// Handles a SYN that is about to leave. The option must not be shown to another peer than the listener: the socket may
/// be stamped from an earlier `connect()`, or a program after this one may have sent it elsewhere, as socket load
/// balancers do for host ports and external addresses.
#[inline(always)]
fn on_connect(ctx: &SockOpsContext) {
    let Some(stamp) = stamp(ctx) else { return };
    if sockops::remote(ctx).same(&stamp.listener) {
        stamp.state = ClientState::CONNECTING;
        return;
    }
    if stamp.state == ClientState::CALLED {
        count_failure(stamp.origin.cgroup_id, HandshakeFailure::AnsweredElsewhere);
    }
    stamp.state = ClientState::NONE;
}

/// Handles a SYN-ACK that has arrived; the ACK is about to leave (`tcp_rcv_synsent_state_process`,
/// net/ipv4/tcp_input.c).
#[inline(always)]
fn on_established(ctx: &SockOpsContext) {
    let Some(stamp) = stamp(ctx) else { return };
    if stamp.state != ClientState::CONNECTING {
        return;
    }
    let Some(key) = KEY.get(0) else { return };
    // Only the SYN is acknowledged at this point, because listeners do not answer fast open.
    stamp.client_isn = sockops::snd_una(ctx).wrapping_sub(1);
    stamp.listener_isn = sockops::rcv_nxt(ctx).wrapping_sub(1);
    if !is_answered(ctx, key, stamp) {
        // The option must not be shown to a program that has taken the listener's place.
        stamp.state = ClientState::NONE;
        count_failure(stamp.origin.cgroup_id, HandshakeFailure::AnsweredElsewhere);
        return;
    }
    stamp.state = ClientState::ESTABLISHED;
    if !sockops::write_options(ctx) {
        fail(stamp, HandshakeFailure::NotWritten);
    }
}

#[inline(always)]
fn is_answered(ctx: &SockOpsContext, key: &Key, stamp: &Stamp) -> bool {
    let mut option = [0; LISTENER_OPTION_LEN];
    match sockops::load(ctx, &mut option) {
        Loaded::Found => is_answered_by_listener(key, &connection(ctx, stamp), &option),
        Loaded::Missing | Loaded::Other => false,
    }
}

/// Reserves room in a packet that is being laid out. The kernel also calls this without a packet, to compute the size
/// of the largest segment.
#[inline(always)]
fn on_option_length(ctx: &SockOpsContext) {
    let Some(stamp) = stamp(ctx) else { return };
    if stamp.state != ClientState::ESTABLISHED {
        return;
    }
    if sockops::snd_una(ctx).wrapping_sub(stamp.client_isn) > 1 {
        stamp.state = ClientState::DELIVERED;
    } else if !sockops::reserve(ctx, CALLER_OPTION_LEN) {
        fail(stamp, HandshakeFailure::NoRoom);
    }
}

#[inline(always)]
fn on_option_write(ctx: &SockOpsContext) {
    let Some(stamp) = stamp(ctx) else { return };
    if stamp.state != ClientState::ESTABLISHED {
        return;
    }
    let Some(key) = KEY.get(0) else { return };
    // SAFETY: takes no pointer.
    let now = window(unsafe { bpf_ktime_get_ns() });
    let option = caller_option(key, &connection(ctx, stamp), stamp.origin.cgroup_id, now);
    if !sockops::store(ctx, &option) {
        fail(stamp, HandshakeFailure::NotWritten);
    }
}

#[inline(always)]
fn connection(ctx: &SockOpsContext, stamp: &Stamp) -> Connection {
    Connection {
        client: sockops::local(ctx),
        listener: sockops::remote(ctx),
        client_isn: stamp.client_isn,
        listener_isn: stamp.listener_isn,
    }
}

/// Counts a failure once for each connection, because every packet of it may fail.
#[inline(always)]
fn fail(stamp: &mut Stamp, kind: HandshakeFailure) {
    if stamp.is_failure_counted == 0 {
        stamp.is_failure_counted = 1;
        count_failure(stamp.origin.cgroup_id, kind);
    }
}
