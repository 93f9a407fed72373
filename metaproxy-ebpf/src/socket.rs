//! Reads the properties of a `bpf_sock_addr`'s socket that decide which listener it can reach.
//!
//! The fields are read word by word and volatile, for the reason given in `sockaddr`.

use core::mem::size_of;
use core::net::Ipv4Addr;

use aya_ebpf::helpers::generated::bpf_bind;
use aya_ebpf::programs::SockAddrContext;
use metaproxy_common::address::Address;

/// `AF_INET6` (include/linux/socket.h).
const AF_INET6: u16 = 10;

/// `struct sockaddr_in6` (include/uapi/linux/in6.h), without implicit padding.
#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flow_info: u32,
    address: [u32; 4],
    scope_id: u32,
}

/// Returns the address that an IPv6 socket is bound to, or the unspecified one.
#[inline(always)]
pub fn source(ctx: &SockAddrContext) -> Address {
    // SAFETY: the kernel hands a valid context to the program, and its socket with it; the verifier checks every
    // access.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        let words = (&raw const (*socket).src_ip6).cast::<u32>();
        Address::from_v6_words([
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ])
    }
}

/// Reports whether an IPv6 socket that is not bound to an address is `IPV6_V6ONLY`; false if that cannot be found out.
///
/// No helper reads the option, because `bpf_getsockopt` does not know it. But an attempt to bind to an IPv4 address
/// fails with EINVAL for such a socket before the address is checked, and with EADDRNOTAVAIL for any other
/// (`__inet6_bind`, net/ipv6/af_inet6.c). Neither changes the socket. For a socket that already has a port, the attempt
/// always fails with EINVAL, so the default of sockets is assumed.
#[inline(always)]
pub fn is_v6only(ctx: &SockAddrContext) -> bool {
    const EINVAL: i64 = -22;
    /// An address for documentation (RFC 5737), which no pod has.
    const FOREIGN_ADDRESS: Address = Address::from_v4(Ipv4Addr::new(192, 0, 2, 1));
    // SAFETY: as above.
    let port = unsafe { (&raw const (*(*ctx.sock_addr).__bindgen_anon_1.sk).src_port).read_volatile() };
    if port != 0 {
        return false;
    }
    let answer = bind(ctx, &FOREIGN_ADDRESS);
    if answer == 0 {
        // The pod has the address after all, or its socket accepts any (IP_FREEBIND, IP_TRANSPARENT, ip_nonlocal_bind).
        let _ = bind(ctx, &Address::UNSPECIFIED);
    }
    answer == EINVAL
}

#[inline(always)]
fn bind(ctx: &SockAddrContext, address: &Address) -> i64 {
    let mut to = SockaddrIn6 {
        family: AF_INET6,
        port: 0,
        flow_info: 0,
        address: address.v6_words(),
        scope_id: 0,
    };
    // SAFETY: the helper takes the context that the kernel gave, and reads an address of that length.
    unsafe {
        bpf_bind(
            ctx.sock_addr,
            (&raw mut to).cast(),
            size_of::<SockaddrIn6>() as i32,
        )
    }
}
