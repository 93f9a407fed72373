//! The guard's entry points, with the names of `metaproxy_common::names`.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, TcContext};
use metaproxy_common::packet::LinkLayer;
use metaproxy_common::verdict::Family;

use crate::connect;
use crate::packets::{NodePacketTest, drop_at_socket, drop_at_uplink};

const ALLOW: i32 = 1;
const DROP: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn mp_guard4(ctx: SockAddrContext) -> i32 {
    connect::on_connect(&ctx, Family::V4);
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn mp_guard6(ctx: SockAddrContext) -> i32 {
    connect::on_connect(&ctx, Family::V6);
    ALLOW
}

#[cgroup_skb(egress)]
pub fn mp_guard_skb(ctx: SkBuffContext) -> i32 {
    if drop_at_socket(&ctx) { DROP } else { ALLOW }
}

/// Returns `TCX_DROP`, or `TCX_NEXT`, after which the next program in the chain decides (enum tcx_action_base).
#[inline(always)]
fn verdict(drops: bool) -> i32 {
    if drops { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

#[classifier]
pub fn mp_uplink_eth(ctx: TcContext) -> i32 {
    verdict(drop_at_uplink(&ctx, LinkLayer::Ethernet, NodePacketTest::Netns))
}

#[classifier]
pub fn mp_uplink_ip(ctx: TcContext) -> i32 {
    verdict(drop_at_uplink(&ctx, LinkLayer::Ip, NodePacketTest::Netns))
}

#[classifier]
pub fn mp_uplink_eth66(ctx: TcContext) -> i32 {
    verdict(drop_at_uplink(
        &ctx,
        LinkLayer::Ethernet,
        NodePacketTest::SocketLookup,
    ))
}

#[classifier]
pub fn mp_uplink_ip66(ctx: TcContext) -> i32 {
    verdict(drop_at_uplink(&ctx, LinkLayer::Ip, NodePacketTest::SocketLookup))
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
