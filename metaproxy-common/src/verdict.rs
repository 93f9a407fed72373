//! Decides about a `connect()`: a pure decision in two steps, so that the common case ends after the first.
//!
//! 1. [`classify`] compares the dialled address with the target table and the listeners. Nearly every connection ends
//!    here, as [`DialledKind::Other`].
//! 2. [`decide`] considers the caller, which costs helper calls, so it is called only for what [`classify`] matched.

use crate::address::{Address, Endpoint};
use crate::layout::{Config, Destination};
use crate::target::Target;

/// The address family of the connecting socket. An IPv4 socket can be given only an IPv4 address. An IPv6 socket can
/// be given any (IPv4 in mapped form).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`
    V4,
    /// `AF_INET6`
    V6,
}

/// The class of a dialled address. It is a plain struct for the reason given at
/// [`TargetMatch`](crate::target::TargetMatch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialledClass {
    /// The kind of address.
    pub kind: DialledKind,
    /// The address that the client asked for. A guard may have put the sentinel in its place.
    pub asked: Endpoint,
    /// The address to which the connection is sent if it must reach neither the metadata service nor a listener.
    pub sentinel: Endpoint,
}

/// The kind of a dialled address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialledKind {
    /// Any other address: the connection is not touched.
    Other,
    /// A metadata address, or the sentinel that a guard has put in its place.
    Metadata,
    /// A listener that is dialled directly, as a transparent proxy in a pod does.
    Listener,
}

/// The properties of the connecting socket that decide which listener it can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectingSocket {
    /// The address family.
    pub family: Family,
    /// The address that it is bound to, or [`Address::UNSPECIFIED`].
    pub source: Address,
    /// Whether it is `IPV6_V6ONLY`. This counts only if [`Self::may_be_v6only`].
    pub is_v6only: bool,
    /// A family of which its pod certainly has an address.
    pub pod_family: Family,
}

impl ConnectingSocket {
    /// Reports whether `IPV6_V6ONLY` decides which listener the socket gets. Reading the option costs a helper call.
    #[inline(always)]
    pub fn may_be_v6only(&self, class: &DialledClass, destination: &Destination) -> bool {
        matches!(class.kind, DialledKind::Metadata)
            && matches!(self.family, Family::V6)
            && destination.v4.exists()
            && destination.v6.exists()
            && self.source.is_unspecified()
            && matches!(self.pod_family, Family::V4)
            && !class.sentinel.address.is_v4()
    }

    /// Returns the preferred family of the listener.
    ///
    /// A socket that is bound to an address can use only that family. A socket that is `IPV6_V6ONLY` cannot use an
    /// IPv4 address, and cannot have dialled a mapped one. For all others, the pod's own family is the one that
    /// certainly has a route, so that a second listener takes nothing away from pods of one family.
    #[inline(always)]
    fn listener_family(&self, dialled: &Endpoint) -> Family {
        if matches!(self.family, Family::V4) {
            Family::V4
        } else if !self.source.is_unspecified() {
            if self.source.is_v4() {
                Family::V4
            } else {
                Family::V6
            }
        } else if self.is_v6only && !dialled.address.is_v4() {
            Family::V6
        } else {
            self.pod_family
        }
    }
}

/// The network namespace and the pod of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerContext {
    /// Whether the network namespace of the socket is the node's own.
    pub in_node_netns: bool,
    /// Whether the task belongs to a pod that is listed for interception in the node's network namespace.
    pub listed: bool,
}

/// The decision about a connection. It is a plain struct for the reason given at
/// [`TargetMatch`](crate::target::TargetMatch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectVerdict {
    /// The action.
    pub action: ConnectAction,
    /// The new address, for [`ConnectAction::Redirect`] and [`ConnectAction::Refuse`].
    pub to: Endpoint,
}

/// The action that a program takes on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectAction {
    /// Leave the connection alone.
    Pass,
    /// Note the caller on the socket, and leave the address.
    Stamp,
    /// Note the caller on the socket, and send the connection to the listener.
    Redirect,
    /// Send the connection to the sentinel, where it fails at once.
    Refuse,
}

/// Compares a dialled address with the target table and the listeners.
#[inline(always)]
pub fn classify(config: &Config, to: &Endpoint) -> DialledClass {
    let found = config.targets.find(to);
    if found.hit {
        return DialledClass {
            kind: DialledKind::Metadata,
            asked: found.address,
            sentinel: found.sentinel,
        };
    }
    let kind = if config.destination.is(to) {
        DialledKind::Listener
    } else {
        DialledKind::Other
    };
    // A listener has no sentinel of its own. The sentinels of the metadata service fail for a socket of either
    // family.
    let sentinel = if to.address.is_v4() {
        Target::IMDS_V4.sentinel
    } else {
        Target::IMDS_V6.sentinel
    };
    DialledClass {
        kind,
        asked: *to,
        sentinel,
    }
}

/// Decides about a stream connection that [`classify`] matched.
///
/// `destination` is that of the socket's network namespace. Sockets of the node's own namespace are left alone unless
/// their pod is listed, so that the calls of the node and of the agent to the metadata service need no exemption that
/// a pod could forge. If no listener suits the socket, the connection is refused, and never passed.
#[inline(always)]
pub fn decide(
    class: &DialledClass,
    socket: &ConnectingSocket,
    context: CallerContext,
    destination: &Destination,
) -> ConnectVerdict {
    match class.kind {
        DialledKind::Other => ConnectVerdict {
            action: ConnectAction::Pass,
            to: Endpoint::NONE,
        },
        DialledKind::Listener => ConnectVerdict {
            action: ConnectAction::Stamp,
            to: Endpoint::NONE,
        },
        DialledKind::Metadata if context.in_node_netns && !context.listed => ConnectVerdict {
            action: ConnectAction::Pass,
            to: Endpoint::NONE,
        },
        DialledKind::Metadata => {
            let to = listener(socket, &class.sentinel, destination);
            if to.exists() {
                ConnectVerdict {
                    action: ConnectAction::Redirect,
                    to,
                }
            } else {
                ConnectVerdict {
                    action: ConnectAction::Refuse,
                    to: class.sentinel,
                }
            }
        }
    }
}

/// Returns the listener for a socket: that of the preferred family if it exists, else the other one if the socket can
/// be given its address, else [`Endpoint::NONE`].
#[inline(always)]
fn listener(socket: &ConnectingSocket, dialled: &Endpoint, destination: &Destination) -> Endpoint {
    let Destination { v4, v6 } = destination;
    let (first, second) = match socket.listener_family(dialled) {
        Family::V4 => (v4, v6),
        Family::V6 => (v6, v4),
    };
    if first.exists() {
        *first
    } else if matches!(socket.family, Family::V4) {
        Endpoint::NONE
    } else {
        *second
    }
}

#[cfg(test)]
mod tests;
