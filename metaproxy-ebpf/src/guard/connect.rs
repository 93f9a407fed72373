//! connect4 and connect6: turns a metadata address into its sentinel, at which `connect()` fails at once. Whoever
//! redirects takes the sentinel for the address, before or after.

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
    // Not counted: whoever redirects may come after, and then it is not refused.
    sockaddr::write(ctx, family, &found.sentinel);
}
