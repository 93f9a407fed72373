//! Records TCP packets for the metadata service as they arrive, whether or not they belong to a connection.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use metaproxy_common::packet::{Bytes, LinkLayer, match_packet};
use metaproxy_common::target::Targets;

use super::netns::Netns;

/// The IPv4 address of the metadata service (EC2 user guide, instance metadata service).
const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How long a packet may take until it is recorded.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

type Seen = Arc<Mutex<BTreeMap<IpAddr, usize>>>;

/// Records at every interface of a network namespace until it is dropped.
#[derive(Debug)]
pub struct Recorder {
    seen: Seen,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Frame<'a>(&'a [u8]);

impl Bytes for Frame<'_> {
    fn load<const N: usize>(&self, at: u32, into: &mut [u8; N]) -> bool {
        let Some(bytes) = self.0.get(at as usize..at as usize + N) else {
            return false;
        };
        into.copy_from_slice(bytes);
        true
    }
}

impl Recorder {
    /// Starts to record.
    pub fn start(netns: &Netns) -> Result<Self> {
        let socket = netns.run(packet_socket)?.context("a packet socket")?;
        let (seen, ends) = (Seen::default(), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (seen, ends) = (Arc::clone(&seen), Arc::clone(&ends));
            move || record(&socket, &seen, &ends)
        });
        Ok(Self {
            seen,
            ends,
            thread: Some(thread),
        })
    }

    /// Counts the packets so far, by source address.
    pub fn seen(&self) -> BTreeMap<IpAddr, usize> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a packet that the node sends now is recorded. Packets that were sent before have arrived by then, or
    /// are lost.
    ///
    /// # Errors
    /// If that takes longer than five seconds.
    pub fn settle(&self, node: &Netns) -> Result<()> {
        let to = SocketAddr::from((IMDS, 80));
        let of_node = || {
            self.seen()
                .get(&IpAddr::from(super::NODE_IP))
                .copied()
                .unwrap_or_default()
        };
        let before = of_node();
        let end = Instant::now() + SETTLE_TIMEOUT;
        // Whether the connection is refused does not matter: its first packet was sent.
        let _ = node.run(|| TcpStream::connect_timeout(&to, SETTLE_TIMEOUT))?;
        while of_node() == before {
            ensure!(
                Instant::now() < end,
                "the recorder does not see the node's own packets"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Counts the packets so far that came from other addresses than the node's, and forgets all.
    pub fn take_from_others(&self) -> usize {
        let own: [IpAddr; 2] = [super::NODE_IP.into(), super::NODE_IP6.into()];
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        seen.iter()
            .filter(|(ip, _)| !own.contains(ip))
            .map(|(_, count)| count)
            .sum()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn packet_socket() -> io::Result<OwnedFd> {
    let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let wait = libc::timeval {
        tv_sec: 0,
        tv_usec: 50_000,
    };
    nix::sys::socket::setsockopt(
        &socket,
        nix::sys::socket::sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::from(wait),
    )?;
    Ok(socket)
}

fn record(socket: &OwnedFd, seen: &Seen, ends: &AtomicBool) {
    let mut buffer = [0_u8; 2048];
    while !ends.load(Ordering::Relaxed) {
        // SAFETY: the buffer has the length that is passed.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(length) = usize::try_from(length) else {
            continue;
        };
        let frame = Frame(&buffer[..length.min(buffer.len())]);
        let found = match_packet(&frame, LinkLayer::Ethernet, &Targets::IMDS);
        if let Some(source) = found.hit.then(|| source(&frame, found.ip, found.is_v6)) {
            *seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(source)
                .or_default() += 1;
        }
    }
}

fn source(frame: &Frame<'_>, ip: u32, is_v6: bool) -> IpAddr {
    if is_v6 {
        let mut address = [0; 16];
        frame.load(ip + 8, &mut address);
        Ipv6Addr::from(address).into()
    } else {
        let mut address = [0; 4];
        frame.load(ip + 12, &mut address);
        Ipv4Addr::from(address).into()
    }
}
