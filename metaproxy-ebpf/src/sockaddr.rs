//! Reads and writes the address of a `bpf_sock_addr`.
//!
//! All accesses are word by word and volatile, because the verifier allows accesses to the context only at fixed
//! offsets and in words, and the compiler would merge them into a `memcpy`.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use metaproxy_common::address::{Address, Endpoint, Port};
use metaproxy_common::verdict::Family;

/// `SOCK_STREAM` (include/linux/net.h); MPTCP sockets are stream sockets too.
const SOCK_STREAM: u32 = 1;

/// Reports whether the socket is of the type that TCP uses.
#[inline(always)]
pub fn is_stream(ctx: &SockAddrContext) -> bool {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx.sock_addr).type_ == SOCK_STREAM }
}

/// Reports whether a cookie is that of the node's network namespace. `node` is 0 if userspace cannot find out the
/// node's cookie; the node's namespace is the initial one then.
#[inline(always)]
pub fn is_node_netns(cookie: u64, node: u64) -> bool {
    if node != 0 {
        return cookie == node;
    }
    // SAFETY: NULL asks for the initial network namespace (bpf-helpers(7)).
    cookie == unsafe { bpf_get_netns_cookie(ptr::null_mut()) }
}

/// Reads the address in the context, which is dialled (connect) or shown (getpeername).
#[inline(always)]
pub fn read(ctx: &SockAddrContext, family: Family) -> Endpoint {
    let raw = ctx.sock_addr;
    // SAFETY: the kernel hands a valid context to the program; the verifier checks every access to it.
    unsafe {
        let address = match family {
            Family::V4 => Address::from_v4_word((&raw const (*raw).user_ip4).read_volatile()),
            Family::V6 => {
                let words = (&raw const (*raw).user_ip6).cast::<u32>();
                Address::from_v6_words([
                    words.read_volatile(),
                    words.add(1).read_volatile(),
                    words.add(2).read_volatile(),
                    words.add(3).read_volatile(),
                ])
            }
        };
        Endpoint::new(
            address,
            Port::from_be((&raw const (*raw).user_port).read_volatile() as u16),
        )
    }
}

/// Replaces the address in the context. For [`Family::V4`] the address must be IPv4 (in mapped form).
#[inline(always)]
pub fn write(ctx: &SockAddrContext, family: Family, to: &Endpoint) {
    let raw = ctx.sock_addr;
    // SAFETY: as above; there is no other reference into the context.
    unsafe {
        match family {
            Family::V4 => (&raw mut (*raw).user_ip4).write_volatile(to.address.v4_word()),
            Family::V6 => {
                let words = (&raw mut (*raw).user_ip6).cast::<u32>();
                let [a, b, c, d] = to.address.v6_words();
                words.write_volatile(a);
                words.add(1).write_volatile(b);
                words.add(2).write_volatile(c);
                words.add(3).write_volatile(d);
            }
        }
        (&raw mut (*raw).user_port).write_volatile(u32::from(to.port.be()));
    }
}
