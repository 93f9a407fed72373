//! Reads a `bpf_sock_ops`.
//!
//! All accesses are word by word and volatile, because the verifier allows accesses to the context only at fixed
//! offsets and in words, and the compiler would merge them.

use aya_ebpf::bindings::BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
use aya_ebpf::helpers::generated::{bpf_load_hdr_opt, bpf_reserve_hdr_opt, bpf_store_hdr_opt};
use aya_ebpf::programs::SockOpsContext;
use metaproxy_common::address::{Address, Endpoint, Port};
use metaproxy_common::handshake::SEARCH;

/// `AF_INET6` (include/linux/socket.h).
const AF_INET6: u32 = 10;

/// Returns this end's address and port. IPv4 and mapped addresses are the same, because the other end cannot
/// distinguish them either.
///
/// All fields are read for either family, because the compiler turns a choice between two of them into a computed
/// pointer into the context, which the verifier refuses.
#[inline(always)]
pub fn local(ctx: &SockOpsContext) -> Endpoint {
    let raw = ctx.ops;
    // SAFETY: the kernel hands a valid context to the program; the verifier checks every access to it.
    unsafe {
        let v4 = (&raw const (*raw).local_ip4).read_volatile();
        let v6 = words((&raw const (*raw).local_ip6).cast());
        // This port is in host byte order, unlike the remote one.
        let port = (&raw const (*raw).local_port).read_volatile();
        Endpoint::new(address(ctx, v4, v6), Port::new(port as u16))
    }
}

/// Returns the other end's address and port.
#[inline(always)]
pub fn remote(ctx: &SockOpsContext) -> Endpoint {
    let raw = ctx.ops;
    // SAFETY: as above.
    unsafe {
        let v4 = (&raw const (*raw).remote_ip4).read_volatile();
        let v6 = words((&raw const (*raw).remote_ip6).cast());
        // This port is in network byte order, and in the upper half on little-endian machines
        // (`sock_ops_convert_ctx_access`, net/core/filter.c).
        let port = u32::from_be((&raw const (*raw).remote_port).read_volatile());
        Endpoint::new(address(ctx, v4, v6), Port::new(port as u16))
    }
}

#[inline(always)]
fn address(ctx: &SockOpsContext, v4: u32, v6: [u32; 4]) -> Address {
    // SAFETY: as above.
    let family = unsafe { (&raw const (*ctx.ops).family).read_volatile() };
    if family == AF_INET6 {
        Address::from_v6_words(v6)
    } else {
        Address::from_v4_word(v4)
    }
}

/// Reads four words.
///
/// # Safety
/// `first` must point at four words of the context.
#[inline(always)]
unsafe fn words(first: *const u32) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            first.read_volatile(),
            first.add(1).read_volatile(),
            first.add(2).read_volatile(),
            first.add(3).read_volatile(),
        ]
    }
}

/// Returns the first sequence number that the other end has not acknowledged; 0 if there is no full socket.
#[inline(always)]
pub fn snd_una(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx.ops).snd_una }
}

/// Returns the sequence number that this end sends next; 0 if there is no full socket.
#[inline(always)]
pub fn snd_nxt(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx.ops).snd_nxt }
}

/// Returns the sequence number that this end expects next; 0 if there is no full socket.
#[inline(always)]
pub fn rcv_nxt(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { (*ctx.ops).rcv_nxt }
}

/// Reports whether the event is about a full socket, and not about a request for a connection.
#[inline(always)]
pub fn has_socket(ctx: &SockOpsContext) -> bool {
    // SAFETY: the kernel hands a valid context to the program.
    unsafe { !(*ctx.ops).__bindgen_anon_2.sk.is_null() }
}

/// Returns both sequence numbers in the header of the packet that is about to leave: its own and the acknowledged one.
/// They exist only while an option is written.
#[inline(always)]
pub fn sequence_numbers(ctx: &SockOpsContext) -> Option<(u32, u32)> {
    /// The offsets of `seq` and `ack_seq` in a TCP header (RFC 9293).
    const SEQ: usize = 4;
    const ACK_SEQ: usize = 8;
    // SAFETY: the kernel hands a valid context to the program; the bounds are checked before the header is read.
    unsafe {
        let start = (*ctx.ops).__bindgen_anon_3.skb_data as usize;
        let end = (*ctx.ops).__bindgen_anon_4.skb_data_end as usize;
        if start + ACK_SEQ + 4 > end {
            return None;
        }
        let word = |offset: usize| u32::from_be(*((start + offset) as *const u32));
        Some((word(SEQ), word(ACK_SEQ)))
    }
}

/// Makes the kernel ask for options of this socket's packets, and keeps the flags of other programs. It reports whether
/// the kernel does.
#[inline(always)]
pub fn write_options(ctx: &SockOpsContext) -> bool {
    ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG) as i32)
        .is_ok()
}

/// Reports whether the kernel asks for options of this socket's packets.
#[inline(always)]
pub fn writes_options(ctx: &SockOpsContext) -> bool {
    ctx.cb_flags() & BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG != 0
}

/// Undoes [`write_options`]. This is only for sockets of the agent's listeners, because it clears the flag for other
/// programs too.
#[inline(always)]
pub fn stop_writing_options(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG) as i32);
}

/// Reserves room in a packet's header for an option of this length in bytes, and reports whether there was any.
#[inline(always)]
pub fn reserve(ctx: &SockOpsContext, length: usize) -> bool {
    // SAFETY: takes the context that the kernel gave.
    unsafe { bpf_reserve_hdr_opt(ctx.ops, length as u32, 0) == 0 }
}

/// Writes an option into a packet's header, and reports whether there was room.
#[inline(always)]
pub fn store<const N: usize>(ctx: &SockOpsContext, option: &[u8; N]) -> bool {
    // SAFETY: takes the context that the kernel gave, and reads N bytes of the option.
    unsafe { bpf_store_hdr_opt(ctx.ops, option.as_ptr().cast(), N as u32, 0) == 0 }
}

/// The result of searching a packet's header for an option.
pub enum Loaded {
    /// There is no such option.
    Missing,
    /// There is one of another length.
    Other,
    /// There is one of the wanted length, and the buffer holds it.
    Found,
}

/// Reads the first option of this experiment in the packet at hand. The kernel's parser is used, so that no second one
/// can differ from it.
#[inline(always)]
pub fn load<const N: usize>(ctx: &SockOpsContext, option: &mut [u8; N]) -> Loaded {
    /// `-ENOMSG`: no such option (bpf-helpers(7), `bpf_load_hdr_opt`).
    const ENOMSG: i64 = -42;
    let [kind, length, id0, id1] = SEARCH;
    option[0] = kind;
    option[1] = length;
    option[2] = id0;
    option[3] = id1;
    // SAFETY: takes the context that the kernel gave, and writes at most N bytes to the option.
    let result = unsafe { bpf_load_hdr_opt(ctx.ops, option.as_mut_ptr().cast(), N as u32, 0) };
    if result == N as i64 {
        Loaded::Found
    } else if result == ENOMSG {
        Loaded::Missing
    } else {
        Loaded::Other
    }
}
