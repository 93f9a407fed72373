//! The entry points, with the names of `metaproxy_common::names`. Each always returns "allow", because the kernel ANDs
//! the verdicts of all programs on a cgroup: a denial would override those of other software.

use aya_ebpf::macros::{cgroup_sock_addr, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use metaproxy_common::verdict::Family;

use crate::{caller, connect, listener, peername};

const ALLOW: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn mp_connect4(ctx: SockAddrContext) -> i32 {
    connect::on_connect(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn mp_connect6(ctx: SockAddrContext) -> i32 {
    connect::on_connect(&ctx, Family::V6);
    ALLOW
}

#[sock_ops]
pub fn mp_sock_ops(ctx: SockOpsContext) -> u32 {
    caller::on_event(&ctx);
    ALLOW as u32
}

#[sock_ops]
pub fn mp_listener_ops(ctx: SockOpsContext) -> u32 {
    listener::on_event(&ctx);
    ALLOW as u32
}

#[cgroup_sock_addr(getpeername4)]
pub fn mp_getpeername4(ctx: SockAddrContext) -> i32 {
    peername::on_getpeername(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn mp_getpeername6(ctx: SockAddrContext) -> i32 {
    peername::on_getpeername(&ctx, Family::V6);
    ALLOW
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects any program in which this could be reached.
    loop {}
}

/// The kernel's name for MIT or GPL, which helpers for GPL-compatible programs require (include/linux/license.h).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
