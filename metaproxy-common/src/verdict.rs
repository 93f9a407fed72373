//! What happens to a `connect()`: a pure decision in two steps, so that the common case ends after the first.
//!
//! 1. [`classify`] compares the destination with the target table and the listeners. Nearly every connection ends
//!    here, as [`DialledKind::Other`].
//! 2. [`decide`] weighs who is calling, which costs helper calls and is done only for what [`classify`] matched.

use crate::address::{Address, Endpoint};
use crate::layout::{Config, Destination};
use crate::target::Target;

/// Address family of the connecting socket. An IPv4 socket can be given only an IPv4 address; an IPv6 socket any
/// (IPv4 in mapped form).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`
    V4,
    /// `AF_INET6`
    V6,
}

// DialledClass and verdict are plain structs for the reason told at `TargetMatch`.

/// What a destination is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialledClass {
    /// What it is.
    pub kind: DialledKind,
    /// What was asked for: a guard may have put the sentinel in the metadata address's place.
    pub asked: Endpoint,
    /// Where a connection goes that must reach neither the metadata service nor a listener.
    pub sentinel: Endpoint,
}

/// See [`DialledClass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialledKind {
    /// Nothing: not touched.
    Other,
    /// A metadata address, or the sentinel that a guard made of it.
    Metadata,
    /// A listener, dialled directly (as a transparent proxy in a pod does).
    Listener,
}

/// The connecting socket: what decides which listener it can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectingSocket {
    /// Its address family.
    pub family: Family,
    /// The address that it is bound to; [`Address::UNSPECIFIED`] for none.
    pub source: Address,
    /// It is `IPV6_V6ONLY`. Read only if [`Self::may_be_v6only`].
    pub is_v6only: bool,
    /// Of which family its pod surely has an address.
    pub pod_family: Family,
}

impl ConnectingSocket {
    /// Whether `IPV6_V6ONLY` decides which listener the socket gets: finding it out costs a helper call.
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

    /// The family of the listener for a socket that may use either.
    ///
    /// What the socket is bound to leaves no choice. Then its pod's own family is the one that has a route: an IPv4
    /// listener beside an IPv6 one, or the reverse, takes nothing away from pods of one family. A socket that is
    /// `IPV6_V6ONLY` has no use for an IPv4 address, whatever its pod has. A mapped address can be dialled only by one
    /// that is not.
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

/// Where the connecting socket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerContext {
    /// Its network namespace is the node's own.
    pub in_node_netns: bool,
    /// Its task belongs to a pod that is listed for interception in the node's network namespace too.
    pub listed: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectVerdict {
    /// What to do.
    pub action: ConnectAction,
    /// For [`ConnectAction::Redirect`] and [`ConnectAction::Refuse`]: where it goes.
    pub to: Endpoint,
}

/// See [`ConnectVerdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectAction {
    /// Leave it alone.
    Pass,
    /// Note who called; leave the address.
    Stamp,
    /// Note who called and send it to the listener.
    Redirect,
    /// Send it to the sentinel, where it fails at once.
    Refuse,
}

/// Compares a destination with the target table and the listeners.
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
    // A listener has no sentinel of its own; those of the metadata service fail for a socket of either family.
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
/// `destination` is that of the socket's network namespace. Sockets of the node's own namespace are left alone
/// unless their pod is listed, so that the node's and our own calls to the metadata service need no exemption that a
/// pod could forge. Where no listener suits the socket, it is refused: never passed.
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

/// The listener for a socket: of the family that it can reach, where both are there; else the one that there is, if the
/// socket can be given its address; [`Endpoint::NONE`] where there is none.
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
