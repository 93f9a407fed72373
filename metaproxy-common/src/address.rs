//! Addresses and ports as the kernel's hooks hold them: in network byte order, IPv4 as IPv4-mapped IPv6.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The third word of an IPv4-mapped address, `0000:ffff`, in memory order.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// An IPv6 address, or an IPv4 address in its mapped form (RFC 4291, 2.5.5.2), as four words in memory order
/// (each holds four bytes of the address as they go on the wire).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    words: [u32; 4],
}

impl Address {
    /// `::`
    pub const UNSPECIFIED: Self = Self::from_v6_words([0; 4]);

    /// Makes an address from a `user_ip4` as a hook's context holds it (network byte order).
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// Makes an address from a `user_ip6` as a hook's context holds it (network byte order).
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// Converts a Rust IPv4 address.
    pub const fn from_v4(ip: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(ip.octets()))
    }

    /// Converts a Rust IPv6 address. A mapped one stays mapped, and so counts as IPv4.
    pub const fn from_v6(ip: Ipv6Addr) -> Self {
        let o = ip.octets();
        Self {
            words: [
                u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
                u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
                u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
                u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
            ],
        }
    }

    /// Converts any Rust address.
    pub const fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::from_v4(ip),
            IpAddr::V6(ip) => Self::from_v6(ip),
        }
    }

    /// Reports whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// Reports whether this is the unspecified IPv6 address, `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && self.words[3] == 0
    }

    /// Returns the word to write to `user_ip4`. It has a meaning only if [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// Returns the words to write to `user_ip6`.
    #[inline(always)]
    pub const fn v6_words(&self) -> [u32; 4] {
        self.words
    }

    /// Returns the address as two words of 64 bits, for hashing. Both ends of a connection must be on one machine,
    /// because the words are in its byte order.
    #[inline(always)]
    pub const fn halves(&self) -> [u64; 2] {
        [
            self.words[0] as u64 | ((self.words[1] as u64) << 32),
            self.words[2] as u64 | ((self.words[3] as u64) << 32),
        ]
    }

    /// Converts it to a Rust address; a mapped one becomes IPv4.
    pub fn ip(&self) -> IpAddr {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
    }

    /// Compares word by word, so that it compiles to at most four compares in the kernel.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.words[3] == other.words[3]
            && self.words[0] == other.words[0]
            && self.words[1] == other.words[1]
            && self.words[2] == other.words[2]
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// A port in network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    be: u16,
}

impl Port {
    /// Makes a port from a number in host byte order, 0..=65535.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self { be: port.to_be() }
    }

    /// Makes a port from a 16-bit field that is in network byte order.
    #[inline(always)]
    pub const fn from_be(be: u16) -> Self {
        Self { be }
    }

    /// Returns the port in network byte order, as `user_port` needs it.
    #[inline(always)]
    pub const fn be(&self) -> u16 {
        self.be
    }

    /// Returns the port in host byte order.
    #[inline(always)]
    pub const fn get(&self) -> u16 {
        u16::from_be(self.be)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: Port,
    /// Always zero, because map keys are compared byte by byte.
    pad: u16,
}

impl Endpoint {
    /// No endpoint: the unspecified IPv6 address and port 0.
    pub const NONE: Self = Self::new(Address::UNSPECIFIED, Port::new(0));

    /// Makes an endpoint.
    #[inline(always)]
    pub const fn new(address: Address, port: Port) -> Self {
        Self {
            address,
            port,
            pad: 0,
        }
    }

    /// Converts a Rust socket address. Scope and flow label are dropped.
    pub const fn from_socket(socket: SocketAddr) -> Self {
        Self::new(Address::from_ip(socket.ip()), Port::new(socket.port()))
    }

    /// Converts it to a Rust socket address; a mapped address becomes IPv4.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.port.get())
    }

    /// Reports whether there is an endpoint. Port 0 stands for none, because it cannot be dialled.
    #[inline(always)]
    pub const fn exists(&self) -> bool {
        self.port.be != 0
    }

    /// Compares the port first, because nearly every other connection differs there.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.port.be == other.port.be && self.address.same(&other.address)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_unspecified_ipv6_address_is_unspecified() {
        assert!(Address::UNSPECIFIED.is_unspecified());
        for other in ["::1", "::ffff:0.0.0.0", "1::", "0:0:1::"] {
            assert!(
                !Address::from_v6(other.parse().unwrap()).is_unspecified(),
                "{other}"
            );
        }
    }

    #[test]
    fn an_ipv4_address_is_kept_in_mapped_form() {
        let plain = Address::from_v4(Ipv4Addr::new(169, 254, 169, 254));
        let mapped = Address::from_v6("::ffff:169.254.169.254".parse().unwrap());
        assert_eq!(plain, mapped);
        assert!(plain.is_v4());
        assert_eq!(plain.v4_word(), u32::from_ne_bytes([169, 254, 169, 254]));
    }

    proptest! {
        #[test]
        fn any_address_survives_the_round_trip(octets: [u8; 16], port: u16) {
            let ip = IpAddr::V6(Ipv6Addr::from(octets)).to_canonical();
            let socket = SocketAddr::new(ip, port);
            prop_assert_eq!(Endpoint::from_socket(socket).socket(), socket);
            prop_assert_eq!(Address::from_ip(ip).is_v4(), ip.is_ipv4());
        }

        #[test]
        fn same_is_equality(a: [u32; 4], b: [u32; 4], p: u16, q: u16) {
            let (x, y) = (Address::from_v6_words(a), Address::from_v6_words(b));
            prop_assert_eq!(x.same(&y), x == y);
            prop_assert!(x.same(&x));
            let (e, f) = (Endpoint::new(x, Port::new(p)), Endpoint::new(y, Port::new(q)));
            prop_assert_eq!(e.same(&f), e == f);
        }
    }
}
