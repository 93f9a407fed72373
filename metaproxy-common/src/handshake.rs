//! Carries the caller in TCP options of the connection's own packets.
//!
//! The programs at the client's socket write the caller's cgroup id into the packets of a connection to a listener,
//! from the handshake's ACK until the listener has acknowledged data. Two tags that only the agent's programs can
//! make cover the id, both initial sequence numbers and the listener's address; the first one also covers the
//! client's address. The program at the listener verifies the tags and notes the caller on the accepted socket. There
//! is no table that a client could fill, and an option that was recorded proves nothing on another connection.
//!
//! ```text
//!  0        1        2        4                 9                 16                23
//!  +--------+--------+--------+-----------------+-----------------+-----------------+
//!  | 253    | 23     | "MP"   | cgroup id       | tag             | tag, any client |
//!  +--------+--------+--------+-----------------+-----------------+-----------------+
//! ```
//!
//! The listener's SYN-ACK carries an option, too. If it is missing, the client's programs know that another program
//! has answered:
//!
//! ```text
//!  0        1        2        4                 12
//!  +--------+--------+--------+-----------------+
//!  | 253    | 12     | "MP"   | tag, any client |
//!  +--------+--------+--------+-----------------+
//! ```
//!
//! Integers are in little-endian order. Option kind 253 is for experiments, and two bytes identify the experiment
//! (RFC 3692, RFC 6994); 254 is in use for fast open. The option is not on the SYN, because a listener whose SYN
//! queue is full answers with a cookie and keeps no SYN from which the kernel could read it.

use crate::address::Endpoint;
use crate::siphash::{Key, siphash};

/// The option kind: the first one for experiments (RFC 3692).
pub const OPTION_KIND: u8 = 253;

/// Identifies this option among experiments (RFC 6994).
pub const EXPERIMENT_ID: [u8; 2] = *b"MP";

/// The length of the caller's option in bytes. The kernel pads it to 24; 28 are left beside timestamps.
pub const CALLER_OPTION_LEN: usize = 23;

/// The length of the listener's option in bytes; 20 are left in a SYN-ACK.
pub const LISTENER_OPTION_LEN: usize = 12;

/// The largest cgroup id for which the option has room: 40 bits. The lower 32 bits of a cgroup id are a number, and
/// the bits above count how often all numbers were used up (`kernfs_new_node`, fs/kernfs/dir.c).
pub const MAX_CGROUP_ID: u64 = (1 << 40) - 1;

/// The mask of a caller's tag, which has 56 bits.
const TAG_MASK: u64 = (1 << 56) - 1;

/// A window is the time since boot in units of 2^32 ns (4.3 s), modulo 2^24.
const WINDOW_SHIFT: u32 = 32;
const WINDOW_MASK: u64 = (1 << 24) - 1;

/// Returns the window in which an option is made or verified, from nanoseconds since boot (`bpf_ktime_get_ns`).
#[inline(always)]
pub const fn window(now_ns: u64) -> u64 {
    (now_ns >> WINDOW_SHIFT) & WINDOW_MASK
}

/// The properties of a connection that both ends know, and that tags cover.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The client's address and port, as this end sees them.
    pub client: Endpoint,
    /// The listener's address and port.
    pub listener: Endpoint,
    /// The client's initial sequence number.
    pub client_isn: u32,
    /// The listener's initial sequence number.
    pub listener_isn: u32,
}

/// The purpose of a tag. A tag of one purpose is never valid for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Purpose {
    /// It proves the caller at the client's address.
    Caller = 1,
    /// It proves the caller at any address of the client, because NAT inside its pod may have changed it.
    CallerAnyClient = 2,
    /// It proves the listener at any address of the client, because NAT inside the client's pod may have changed it.
    Listener = 3,
}

/// Returns the message that a tag covers: seven words, of which the first holds the cgroup id and the window.
#[inline(always)]
fn message(connection: &Connection, subject: u64, window: u64, purpose: Purpose) -> [u64; 7] {
    let (client, client_port) = match purpose {
        Purpose::Caller => (connection.client.address.halves(), connection.client.port.get()),
        Purpose::CallerAnyClient | Purpose::Listener => ([0; 2], 0),
    };
    let listener = connection.listener.address.halves();
    [
        subject | (window << 40),
        connection.client_isn as u64 | ((connection.listener_isn as u64) << 32),
        client[0],
        client[1],
        listener[0],
        listener[1],
        client_port as u64 | ((connection.listener.port.get() as u64) << 16) | ((purpose as u64) << 32),
    ]
}

/// Computes the hash of a message. In the kernel this is a subprogram, because it is large and has several callers.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn hash(key: &Key, message: &[u64; 7]) -> u64 {
    siphash(key, message)
}

/// A caller's option as it stands in a packet.
pub type CallerOption = [u8; CALLER_OPTION_LEN];

/// A listener's option as it stands in a packet.
pub type ListenerOption = [u8; LISTENER_OPTION_LEN];

/// The search key for `bpf_load_hdr_opt`: kind, length of the key, experiment.
pub const SEARCH: [u8; 4] = [OPTION_KIND, 4, EXPERIMENT_ID[0], EXPERIMENT_ID[1]];

/// Makes the option of a caller. `cgroup_id` must be at most [`MAX_CGROUP_ID`].
#[inline(always)]
pub fn caller_option(key: &Key, connection: &Connection, cgroup_id: u64, window: u64) -> CallerOption {
    let tag = hash(key, &message(connection, cgroup_id, window, Purpose::Caller));
    let any_client = hash(
        key,
        &message(connection, cgroup_id, window, Purpose::CallerAnyClient),
    );
    let (id, tag, any) = (
        cgroup_id.to_le_bytes(),
        tag.to_le_bytes(),
        any_client.to_le_bytes(),
    );
    [
        OPTION_KIND,
        CALLER_OPTION_LEN as u8,
        EXPERIMENT_ID[0],
        EXPERIMENT_ID[1],
        id[0],
        id[1],
        id[2],
        id[3],
        id[4],
        tag[0],
        tag[1],
        tag[2],
        tag[3],
        tag[4],
        tag[5],
        tag[6],
        any[0],
        any[1],
        any[2],
        any[3],
        any[4],
        any[5],
        any[6],
    ]
}

/// The result of verifying an option. It is an integer for the reason given at
/// [`PodFamily`](crate::layout::PodFamily).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof(pub u32);

impl Proof {
    /// The option proves nothing: its tags are wrong, or of another connection, or too old.
    pub const NONE: Self = Self(0);
    /// The caller has made this connection, and no address was changed on the way.
    pub const CALLER: Self = Self(1);
    /// The caller has made a connection with these sequence numbers to this listener, and the client's address or
    /// port was changed on the way. The tags do not prove the place of the change, so the address must be one of the
    /// pod's own.
    pub const CALLER_BEHIND_NAT: Self = Self(2);
}

/// Returns the cgroup id in a caller's option, without verifying it.
#[inline(always)]
pub fn claimed_cgroup(option: &CallerOption) -> u64 {
    u64::from_le_bytes([option[4], option[5], option[6], option[7], option[8], 0, 0, 0])
}

/// Reads seven bytes as an integer.
#[inline(always)]
fn seven_bytes(option: &CallerOption, at: usize) -> u64 {
    u64::from_le_bytes([
        option[at],
        option[at + 1],
        option[at + 2],
        option[at + 3],
        option[at + 4],
        option[at + 5],
        option[at + 6],
        0,
    ])
}

/// Verifies a caller's option in this window or the one before it.
#[inline(always)]
pub fn verify_caller(key: &Key, connection: &Connection, option: &CallerOption, window: u64) -> Proof {
    if option[0] != OPTION_KIND
        || option[1] != CALLER_OPTION_LEN as u8
        || option[2] != EXPERIMENT_ID[0]
        || option[3] != EXPERIMENT_ID[1]
    {
        return Proof::NONE;
    }
    let (cgroup_id, tag, any_client) = (
        claimed_cgroup(option),
        seven_bytes(option, 9),
        seven_bytes(option, 16),
    );
    let before = window.wrapping_sub(1) & WINDOW_MASK;
    let is_tag =
        |window, purpose, tag| hash(key, &message(connection, cgroup_id, window, purpose)) & TAG_MASK == tag;
    if is_tag(window, Purpose::Caller, tag) || is_tag(before, Purpose::Caller, tag) {
        return Proof::CALLER;
    }
    if is_tag(window, Purpose::CallerAnyClient, any_client)
        || is_tag(before, Purpose::CallerAnyClient, any_client)
    {
        return Proof::CALLER_BEHIND_NAT;
    }
    Proof::NONE
}

/// Makes the option of a listener's SYN-ACK. It covers no time, because the client's initial sequence number is
/// fresh.
#[inline(always)]
pub fn listener_option(key: &Key, connection: &Connection) -> ListenerOption {
    let tag = hash(key, &message(connection, 0, 0, Purpose::Listener)).to_le_bytes();
    [
        OPTION_KIND,
        LISTENER_OPTION_LEN as u8,
        EXPERIMENT_ID[0],
        EXPERIMENT_ID[1],
        tag[0],
        tag[1],
        tag[2],
        tag[3],
        tag[4],
        tag[5],
        tag[6],
        tag[7],
    ]
}

/// Reports whether the listener itself has answered this connection, directly or through NAT.
#[inline(always)]
pub fn is_answered_by_listener(key: &Key, connection: &Connection, option: &ListenerOption) -> bool {
    if option[0] != OPTION_KIND
        || option[1] != LISTENER_OPTION_LEN as u8
        || option[2] != EXPERIMENT_ID[0]
        || option[3] != EXPERIMENT_ID[1]
    {
        return false;
    }
    let tag = u64::from_le_bytes([
        option[4], option[5], option[6], option[7], option[8], option[9], option[10], option[11],
    ]);
    hash(key, &message(connection, 0, 0, Purpose::Listener)) == tag
}

#[cfg(test)]
mod tests;
