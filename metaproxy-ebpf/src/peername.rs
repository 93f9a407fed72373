//! getpeername4 and getpeername6: shows a client the address that it asked for, and not that of the listener.

use aya_ebpf::programs::SockAddrContext;
use metaproxy_common::verdict::Family;

use crate::maps::STAMPS;
use crate::sockaddr;

#[inline(always)]
pub fn on_getpeername(ctx: &SockAddrContext, family: Family) {
    // SAFETY: the storage belongs to the context's socket, which lives as long as the context.
    let stamp = unsafe { STAMPS.get_ptr_mut(ctx) };
    if stamp.is_null() {
        return;
    }
    // SAFETY: the pointer is not null.
    let stamp = unsafe { &*stamp };
    // A socket keeps its stamp when it is connected to another address later.
    if sockaddr::read(ctx, family) == stamp.listener {
        sockaddr::write(ctx, family, &stamp.asked);
    }
}
