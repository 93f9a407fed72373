//! sock_ops: files the caller of a stamped socket under its 4-tuple, and takes the entry back when the socket closes
//! without having been accepted.
//!
//! It is filed when the handshake is complete for the client, just before its last ACK leaves
//! (net/ipv4/tcp_input.c, `tcp_rcv_synsent_state_process`): before the listener can accept it, and only for a socket
//! that was answered, so that whoever merely claims another's address files nothing and fills nothing.
//!
//! A 4-tuple alone can still be claimed by two sockets (two network namespaces with one address). So the first claim
//! stands, a second marks the entry as conflicted, and only the socket that filed an entry takes it back: the agent
//! refuses what is conflicted and what is missing.

use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_TCP_CLOSE,
};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sk_storage_get};
use aya_ebpf::programs::SockOpsContext;
use metaproxy_common::address::{Address, Endpoint, Port};
use metaproxy_common::layout::{Config, Counter, Flow, FlowKey, Stamp};

use crate::maps::{CONFIG, FLOWS, STAMPS, count};

/// `AF_INET6` (include/linux/socket.h).
const AF_INET6: u32 = 10;

#[inline(always)]
pub fn on_event(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        on_established(ctx);
    } else if op == BPF_SOCK_OPS_STATE_CB && ctx.arg(1) == BPF_TCP_CLOSE {
        on_close(ctx);
    }
}

/// The listener has answered this socket; the listener's side waits for the ACK that is about to leave.
#[inline(always)]
fn on_established(ctx: &SockOpsContext) {
    let Some(config) = CONFIG.get(0) else { return };
    if !may_be_ours(config, remote_port(ctx)) {
        return;
    }
    let Some(stamp) = stamp(ctx) else { return };
    let flow = key(ctx);
    if flow.listener != stamp.listener {
        return;
    }
    // SAFETY: takes the context that the kernel gave.
    let owner = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let entry = Flow {
        caller: stamp.caller,
        owner,
        conflicted: 0,
    };
    if ctx
        .set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32)
        .is_err()
    {
        // Without word of the socket's end the entry would stay for ever.
        count(Counter::Unfiled);
    } else if FLOWS.insert(flow, entry, u64::from(BPF_NOEXIST)).is_ok() {
        stamp.flow = flow;
        stamp.filed = 1;
        count(Counter::Filed);
    } else if let Some(first) = FLOWS.get_ptr_mut(flow) {
        // SAFETY: non-null, and map values outlive the program run. Only ever set, so a race sets it twice.
        unsafe { (*first).conflicted = 1 };
        count(Counter::Conflicts);
    } else {
        count(Counter::Unfiled);
    }
}

#[inline(always)]
fn on_close(ctx: &SockOpsContext) {
    let Some(stamp) = stamp(ctx) else { return };
    if stamp.filed == 0 {
        return;
    }
    stamp.filed = 0;
    let flow = stamp.flow;
    let Some(entry) = FLOWS.get_ptr(flow) else { return };
    // SAFETY: takes the context that the kernel gave; the entry is non-null and outlives the program run.
    let ours = unsafe { (*entry).owner == bpf_get_socket_cookie(ctx.as_ptr()) };
    if ours && FLOWS.remove(flow).is_ok() {
        count(Counter::Abandoned);
    }
}

/// Cheap enough for every connection of every pod: none but ours goes to the listeners' port. With destinations of
/// single namespaces the port does not tell, and the stamp must be asked.
#[inline(always)]
fn may_be_ours(config: &Config, port: Port) -> bool {
    config.override_count != 0 || port == config.destination.v4.port || port == config.destination.v6.port
}

#[inline(always)]
fn stamp<'a>(ctx: &'a SockOpsContext) -> Option<&'a mut Stamp> {
    // SAFETY: the kernel hands a valid context to the program.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: a socket storage map and the context's own socket, checked above; the storage lives as long as the
    // socket, and the socket as long as the context.
    unsafe {
        bpf_sk_storage_get(
            ptr::from_ref(&STAMPS).cast_mut().cast(),
            sk.cast(),
            ptr::null_mut(),
            0,
        )
        .cast::<Stamp>()
        .as_mut()
    }
}

/// In this context `remote_port` is in network byte order, in the upper half on little-endian machines
/// (net/core/filter.c, `sock_ops_convert_ctx_access`).
#[inline(always)]
fn remote_port(ctx: &SockOpsContext) -> Port {
    Port::new(u32::from_be(ctx.remote_port()) as u16)
}

/// IPv4 and mapped addresses give the same key: the listener can't tell them apart either.
#[inline(always)]
fn key(ctx: &SockOpsContext) -> FlowKey {
    let raw = ctx.ops;
    // SAFETY: the kernel hands a valid context to the program; the verifier checks every access to it.
    let (client, listener) = unsafe {
        if ctx.family() == AF_INET6 {
            (
                words((&raw const (*raw).local_ip6).cast()),
                words((&raw const (*raw).remote_ip6).cast()),
            )
        } else {
            (
                Address::from_v4_word(ctx.local_ip4()),
                Address::from_v4_word(ctx.remote_ip4()),
            )
        }
    };
    FlowKey {
        client: Endpoint::new(client, Port::new(ctx.local_port() as u16)),
        listener: Endpoint::new(listener, remote_port(ctx)),
    }
}

/// Word by word and volatile: this context may be read in words only, and the compiler would merge them.
///
/// # Safety
/// `first` must point at four words of the context.
#[inline(always)]
unsafe fn words(first: *const u32) -> Address {
    // SAFETY: the caller's promise.
    unsafe {
        Address::from_v6_words([
            first.read_volatile(),
            first.add(1).read_volatile(),
            first.add(2).read_volatile(),
            first.add(3).read_volatile(),
        ])
    }
}
