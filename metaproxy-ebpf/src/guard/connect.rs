//! connect4 and connect6: replaces a metadata address by its sentinel, at which `connect()` fails at once. An agent's
//! programs accept the sentinel in place of the address, so the order of the programs does not matter.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use metaproxy_common::verdict::Family;

use crate::maps::GUARD;
use crate::sockaddr;

#[inline(always)]
pub fn on_connect(ctx: &SockAddrContext, family: Family) {
    let Some(config) = GUARD.get(0) else { return };
    let found = config.targets.find(&sockaddr::read(ctx, family));
    if !found.hit || !sockaddr::is_stream(ctx) {
        return;
    }
    // SAFETY: the helper takes the context that the kernel gave.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if sockaddr::is_node_netns(cookie, config.node_netns) {
        return;
    }
    // This is not counted, because an agent's program that runs later may redirect the connection.
    sockaddr::write(ctx, family, &found.sentinel);
}
