//! sock_ops of the agent's own sockets: verifies the caller's option, notes the result in the accepted socket's
//! storage, and writes into the SYN-ACK that the listener has answered.
//!
//! Userspace marks listeners before they listen, and the kernel copies the mark to each connection.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_LISTEN_CB,
    BPF_SOCK_OPS_WRITE_HDR_OPT_CB,
};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use metaproxy_common::handshake::{
    CALLER_OPTION_LEN, Connection, LISTENER_OPTION_LEN, Proof, claimed_cgroup, listener_option,
    verify_caller, window,
};
use metaproxy_common::layout::{ArrivalState, Counter};

use crate::maps::{KEY, LISTENERS, arrival, count};
use crate::sockops::{self, Loaded};

#[inline(always)]
pub fn on_event(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        on_established(ctx);
    } else if op == BPF_SOCK_OPS_HDR_OPT_LEN_CB {
        if is_request(ctx) {
            let _ = sockops::reserve(ctx, LISTENER_OPTION_LEN);
        }
    } else if op == BPF_SOCK_OPS_WRITE_HDR_OPT_CB {
        if is_request(ctx) {
            on_answer(ctx);
        }
    } else if op == BPF_SOCK_OPS_TCP_LISTEN_CB {
        on_listen(ctx);
    }
}

#[inline(always)]
fn on_listen(ctx: &SockOpsContext) {
    let Some(listener) = arrival(ctx) else { return };
    listener.keeps_flag = u32::from(sockops::writes_options(ctx));
    if sockops::write_options(ctx) {
        listener.state = ArrivalState::LISTENING;
    }
}

/// Reports whether the event is about a request for a connection to a listener of this agent. Such a request has no
/// socket yet.
#[inline(always)]
fn is_request(ctx: &SockOpsContext) -> bool {
    !sockops::has_socket(ctx) && LISTENERS.get_ptr(sockops::local(ctx)).is_some()
}

/// Writes the listener's option into a SYN-ACK. Its header already has both sequence numbers (`tcp_make_synack`,
/// net/ipv4/tcp_output.c).
#[inline(always)]
fn on_answer(ctx: &SockOpsContext) {
    let Some(key) = KEY.get(0) else { return };
    let Some((listener_isn, acknowledged)) = sockops::sequence_numbers(ctx) else {
        return;
    };
    let connection = Connection {
        client: sockops::remote(ctx),
        listener: sockops::local(ctx),
        client_isn: acknowledged.wrapping_sub(1),
        listener_isn,
    };
    let _ = sockops::store(ctx, &listener_option(key, &connection));
}

/// Verifies the caller when the handshake is complete. The agent cannot see the socket before this has run, because the
/// socket is locked until then, and `accept()` locks it before it returns it (`inet_accept`, net/ipv4/af_inet.c).
#[inline(always)]
fn on_established(ctx: &SockOpsContext) {
    let Some(arrival) = arrival(ctx) else { return };
    if arrival.keeps_flag == 0 {
        sockops::stop_writing_options(ctx);
    }
    let mut option = [0; CALLER_OPTION_LEN];
    let proof = match sockops::load(ctx, &mut option) {
        Loaded::Missing => {
            arrival.state = ArrivalState::NO_OPTION;
            count(Counter::NoOption);
            return;
        }
        Loaded::Other => Proof::NONE,
        Loaded::Found => {
            arrival.cgroup_id = claimed_cgroup(&option);
            let Some(key) = KEY.get(0) else { return };
            let connection = Connection {
                client: sockops::remote(ctx),
                listener: sockops::local(ctx),
                client_isn: sockops::rcv_nxt(ctx).wrapping_sub(1),
                listener_isn: sockops::snd_nxt(ctx).wrapping_sub(1),
            };
            // SAFETY: takes no pointer.
            let now = window(unsafe { bpf_ktime_get_ns() });
            verify_caller(key, &connection, &option, now)
        }
    };
    arrival.state = ArrivalState::of(proof);
    if proof == Proof::CALLER {
        count(Counter::Proven);
    } else if proof == Proof::CALLER_BEHIND_NAT {
        count(Counter::ProvenBehindNat);
    } else {
        count(Counter::BadTag);
    }
}
