//! Checks that connections to the agent's own listeners arrive at them.
//!
//! A socket that listens does not show whether connections reach it, because the node's NAT rules change a
//! connection's destination before the kernel looks for a socket (`NF_INET_PRE_ROUTING`, `NF_INET_LOCAL_OUT`). So the
//! agent connects to itself, which is subject to the rules that portmap and kube-proxy write for the node's own
//! processes, and sends a secret number. The check succeeds if the accepting side reads that number, at one of the
//! agent's own addresses, and the program that verifies callers has seen the connection.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metaproxy_common::layout::Counter;
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::Unidentified;
use crate::intercept::tcp_sockets;

/// How often each listener is checked.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long the connection of a check may take to arrive.
pub const CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the connection of the second check may take, which confirms a failed one. The kernel sends a lost SYN
/// again after 1 s (RFC 6298).
pub const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long the accepting side waits for the number that a check sends.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// The maximum number of checks that are remembered. The connection of a failed check may still arrive, and must then
/// not count as a refused one.
const MAX_PENDING: usize = 64;

/// The secret number that a check sends.
type Nonce = [u8; 16];

/// Why a check failed. The worst reason comes first.
#[derive(Clone, Debug, Error, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The listener's address was taken from the node.
    #[error(
        "the listener {listener} is at an address that is not the node's any more: no connection reaches it. Give the node the address \
         back, or start the agent again; without --listen-address it looks for another by itself"
    )]
    AddressGone {
        /// The listener.
        listener: SocketAddr,
    },
    /// The connection did not arrive.
    #[error(
        "connections to the listener {listener} do not arrive at the agent ({how}): a NAT rule of this node (of a Service \
         with externalIPs, or of a hostPort) claims that address and port"
    )]
    Elsewhere {
        /// The listener.
        listener: SocketAddr,
        /// The error of the connection.
        how: String,
    },
    /// The connection arrived, but the program that verifies callers has not seen it.
    #[error("callers of the listener {listener} cannot be verified: {why}")]
    Unverified {
        /// The listener.
        listener: SocketAddr,
        /// The reason of the accepting side.
        why: String,
    },
    /// The check could not be made.
    #[error("cannot check whether connections to the listener {listener} arrive: {why}")]
    Untried {
        /// The listener.
        listener: SocketAddr,
        /// The system's error.
        why: String,
    },
}

/// The pending checks, which the connecting and the accepting side share.
#[derive(Debug, Default)]
pub struct SelfChecks {
    pending: Mutex<VecDeque<(Nonce, oneshot::Sender<Unidentified>)>>,
    bare: AtomicU64,
    stamped: AtomicU64,
}

impl SelfChecks {
    /// Connects to a listener of this process and waits until the connection has arrived there.
    ///
    /// # Errors
    /// Returns the fault if the check fails or cannot be made.
    pub async fn check(&self, listener: SocketAddr, timeout: Duration) -> Result<(), Fault> {
        let untried = |why: String| Fault::Untried { listener, why };
        let (nonce, arrival) = self.expect().map_err(untried)?;
        let (socket, client) = bound(listener.ip()).map_err(|error| match error.kind() {
            // bind(2): "A nonexistent interface was requested or the requested address was not local."
            io::ErrorKind::AddrNotAvailable => Fault::AddressGone { listener },
            _ => untried(error.to_string()),
        })?;
        let connection = async {
            let mut stream = socket.connect(listener).await?;
            stream.write_all(&nonce).await?;
            // The sender is dropped without sending only after many more checks have failed.
            Ok::<_, io::Error>(arrival.await.ok())
        };
        let how = match tokio::time::timeout(timeout, connection).await {
            Ok(Ok(Some(seen))) => return is_verified(listener, &seen),
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(None)) | Err(_) => format!("none within {} ms", timeout.as_millis()),
        };
        // A busy agent may accept late, which is not the fault of another program.
        match tokio::task::spawn_blocking(move || tcp_sockets::is_arriving(listener, client)).await {
            Ok(true) => Ok(()),
            _ => Err(Fault::Elsewhere { listener, how }),
        }
    }

    /// Takes over an accepted connection without a caller if it is a check. Otherwise it returns the reason why the
    /// connection has no caller.
    pub async fn take(&self, stream: &mut TcpStream, reason: Unidentified) -> Option<Unidentified> {
        let mut nonce = Nonce::default();
        let read = tokio::time::timeout(READ_TIMEOUT, stream.read_exact(&mut nonce)).await;
        if !matches!(read, Ok(Ok(_))) {
            return Some(reason);
        }
        let found = {
            let mut pending = self.pending();
            let at = pending.iter().position(|(expected, _)| *expected == nonce);
            at.and_then(|at| pending.remove(at))
        };
        let Some((_, sender)) = found else {
            return Some(reason);
        };
        match reason {
            Unidentified::NoOption => self.bare.fetch_add(1, Ordering::Relaxed),
            _ => self.stamped.fetch_add(1, Ordering::Relaxed),
        };
        // The check may have failed before this.
        let _ = sender.send(reason);
        None
    }

    /// Returns the number of checks that a counter of the programs includes.
    pub fn counted(&self, counter: Counter) -> u64 {
        match counter {
            Counter::NoOption => self.bare.load(Ordering::Relaxed),
            // The programs for pods see the checks of an agent that runs below the pods' cgroup.
            Counter::Stamped | Counter::Proven => self.stamped.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    fn expect(&self) -> Result<(Nonce, oneshot::Receiver<Unidentified>), String> {
        let mut nonce = Nonce::default();
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| "the system's random number generator failed".to_owned())?;
        let (sender, arrival) = oneshot::channel();
        let mut pending = self.pending();
        if pending.len() == MAX_PENDING {
            pending.pop_front();
        }
        pending.push_back((nonce, sender));
        Ok((nonce, arrival))
    }

    fn pending(&self) -> MutexGuard<'_, VecDeque<(Nonce, oneshot::Sender<Unidentified>)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a socket that is bound to the listener's own address, and returns it with its full address.
fn bound(ip: IpAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = if ip.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.bind(SocketAddr::new(ip, 0))?;
    let client = socket.local_addr()?;
    Ok((socket, client))
}

/// Checks that the program has verified the connection. A check carries no option, or that of the agent's own cgroup
/// if it is below the pods'; both results come from the program.
fn is_verified(listener: SocketAddr, seen: &Unidentified) -> Result<(), Fault> {
    match seen {
        Unidentified::NoOption | Unidentified::OwnAgent => Ok(()),
        other => Err(Fault::Unverified {
            listener,
            why: other.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::sync::Arc;
    use tokio::net::TcpListener;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[rstest]
    #[case::outside_the_pods(Unidentified::NoOption, true)]
    #[case::in_a_pod(Unidentified::OwnAgent, true)]
    #[case::not_verified(Unidentified::Unverified, false)]
    #[case::a_forged_option(Unidentified::BadTag, false)]
    #[tokio::test]
    async fn a_check_that_arrives_succeeds_if_the_program_has_looked_at_it(
        #[case] reason: Unidentified,
        #[case] is_fine: bool,
    ) {
        let (listener, address) = listener().await;
        let checks = Arc::new(SelfChecks::default());
        let accepting = Arc::clone(&checks);
        let said = reason.to_string();
        let accepted = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            accepting.take(&mut stream, reason).await.is_none()
        });
        let checked = checks.check(address, CONFIRM_TIMEOUT).await;
        assert!(accepted.await.unwrap());
        match checked {
            Ok(()) => assert!(is_fine),
            Err(fault) => assert!(!is_fine && fault.to_string().contains(&said), "{fault}"),
        }
    }

    #[tokio::test]
    async fn a_check_that_is_refused_fails_and_says_so() {
        let (other, address) = listener().await;
        drop(other);
        let refused = SelfChecks::default()
            .check(address, CHECK_TIMEOUT)
            .await
            .unwrap_err();
        assert!(matches!(refused, Fault::Elsewhere { .. }));
        assert!(refused.to_string().contains("Connection refused"), "{refused}");
    }

    #[tokio::test]
    async fn a_check_at_an_address_that_is_not_the_nodes_says_so() {
        // The address is from a documentation prefix (RFC 5737).
        let listener = "192.0.2.1:18181".parse().unwrap();
        let gone = SelfChecks::default().check(listener, CHECK_TIMEOUT).await;
        assert_eq!(gone, Err(Fault::AddressGone { listener }));
    }

    #[tokio::test]
    async fn a_connection_that_sends_something_else_is_no_check() {
        let (listener, address) = listener().await;
        let checks = SelfChecks::default();
        let (_, _expected) = checks.expect().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /latest/meta-data/").await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let reason = checks.take(&mut stream, Unidentified::NoOption).await;
        assert!(matches!(reason, Some(Unidentified::NoOption)));
        assert_eq!(checks.counted(Counter::NoOption), 0);
    }

    #[tokio::test]
    async fn a_check_that_arrives_late_is_no_refused_connection() {
        let (listener, address) = listener().await;
        let checks = SelfChecks::default();
        // The connection waits in the accept queue.
        assert_eq!(checks.check(address, Duration::from_millis(20)).await, Ok(()));
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(checks.take(&mut stream, Unidentified::NoOption).await.is_none());
        assert_eq!(checks.counted(Counter::NoOption), 1);
    }
}
