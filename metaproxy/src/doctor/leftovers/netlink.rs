//! Finds the tables of nftables through netlink, so that no tool is required if there is no table.
//!
//! `rtnetlink` does not support this protocol, and a single request does not justify another crate.

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

// include/uapi/linux/netlink.h, include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The message type: `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE`.
const GET_TABLE: u16 = 10 << 8 | 1;
const NFPROTO_IPV4: u8 = 2;
const NFTA_TABLE_NAME: u16 = 1;

/// The length of `struct nlmsghdr`.
const HEADER_LENGTH: usize = 16;
/// The length of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADERS_LENGTH: usize = HEADER_LENGTH + 4;

/// The time limit of a netlink request, which the kernel answers at once.
const NETLINK_TIMEOUT: Duration = Duration::from_secs(1);

/// Reports whether nftables has an IPv4 table of this name. iptables-nft uses iptables' names of tables.
///
/// # Errors
/// EPERM without `CAP_NET_ADMIN`.
pub(super) fn has(name: &str) -> io::Result<bool> {
    let socket = match socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    ) {
        // The kernel has no netfilter.
        Err(Errno::EPROTONOSUPPORT) => return Ok(false),
        result => result?,
    };
    let timeout = TimeVal::milliseconds(NETLINK_TIMEOUT.as_millis() as i64);
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    send(socket.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if let Some(has) = has_table(buffer.get(..length).unwrap_or_default(), name)? {
            return Ok(has);
        }
    }
}

/// Makes the request for all tables of IPv4.
fn request() -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADERS_LENGTH);
    request.extend((HEADERS_LENGTH as u32).to_ne_bytes());
    request.extend(GET_TABLE.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence number and port can be 0, because this is the only request on the socket.
    request.extend([0; 8]);
    // Version and resource id are 0.
    request.extend([NFPROTO_IPV4, 0, 0, 0]);
    request
}

/// Reports whether the messages of a datagram contain the table; `None` if more datagrams follow.
fn has_table(mut datagram: &[u8], name: &str) -> io::Result<Option<bool>> {
    while let Some(length) = u32_at(datagram, 0) {
        let length = length as usize;
        let Some(message) = datagram.get(..length).filter(|_| length >= HEADER_LENGTH) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match u16_at(message, 4) {
            Some(NLMSG_DONE) => return Ok(Some(false)),
            Some(NLMSG_ERROR) => {
                let errno = u32_at(message, HEADER_LENGTH).unwrap_or_default() as i32;
                return match Errno::from_raw(-errno) {
                    // The kernel has no nftables.
                    Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT => Ok(Some(false)),
                    error => Err(error.into()),
                };
            }
            _ if table(message).is_some_and(|table| table == name.as_bytes()) => return Ok(Some(true)),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// Returns the name of a table.
fn table(message: &[u8]) -> Option<&[u8]> {
    let mut attributes = message.get(HEADERS_LENGTH..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let attribute = attributes.get(4..length)?;
        if u16_at(attributes, 2)? == NFTA_TABLE_NAME {
            return attribute.split(|byte| *byte == 0).next();
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = ((HEADER_LENGTH + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    /// Makes a message with an attribute before the name (`NFTA_TABLE_FLAGS`).
    fn table(name: &str) -> Vec<u8> {
        let mut body = vec![NFPROTO_IPV4, 0, 0, 0];
        for (kind, value) in [
            (2_u16, vec![0; 4]),
            (NFTA_TABLE_NAME, [name.as_bytes(), b"\0"].concat()),
        ] {
            body.extend(((4 + value.len()) as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        message(10 << 8, &body)
    }

    #[test]
    fn a_table_is_found_by_its_whole_name() {
        let done = message(NLMSG_DONE, &[0; 4]);
        let of = |messages: &[Vec<u8>]| has_table(&messages.concat(), "nat").unwrap();
        assert_eq!(of(&[table("filter"), table("nat"), done.clone()]), Some(true));
        assert_eq!(of(&[table("filter"), table("natty"), done.clone()]), Some(false));
        assert_eq!(of(&[table("filter")]), None, "more is to come");
        assert_eq!(of(&[done]), Some(false));
    }

    #[test]
    fn without_nftables_there_is_no_table_and_a_refused_request_is_an_error() {
        let error = |errno: i32| has_table(&message(NLMSG_ERROR, &(-errno).to_ne_bytes()), "nat");
        assert_eq!(error(libc::EINVAL).unwrap(), Some(false));
        assert_eq!(
            error(libc::EPERM).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
        assert!(has_table(&[3, 0, 0, 0], "nat").is_err());
    }
}
