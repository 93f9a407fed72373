//! What happens to a `connect()`: a pure decision in two steps, so that the common case ends after the first.
//!
//! 1. [`classify`] compares the destination with the target table and the listeners. Nearly every connection ends
//!    here, as [`Kind::Other`].
//! 2. [`decide`] weighs who is calling, which costs helper calls and is done only for what [`classify`] matched.

use crate::address::Endpoint;
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

// Class and verdict are plain structs for the reason told at `Found`.

/// What a destination is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// What it is.
    pub kind: Kind,
    /// What was asked for: a guard may have put the sentinel in the metadata address's place.
    pub asked: Endpoint,
    /// Where a connection goes that must reach neither the metadata service nor a listener.
    pub sentinel: Endpoint,
}

/// See [`Class`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: not touched.
    Other,
    /// A metadata address, or the sentinel that a guard made of it.
    Metadata,
    /// A listener, dialled directly (as a transparent proxy in a pod does).
    Listener,
}

/// Where the connecting socket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Its network namespace is the node's own.
    pub in_node_netns: bool,
    /// Its task belongs to a hostNetwork pod that is listed for interception.
    pub listed: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub action: Action,
    /// For [`Action::Redirect`] and [`Action::Refuse`]: where it goes.
    pub to: Endpoint,
}

/// See [`Verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
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
pub fn classify(config: &Config, to: &Endpoint) -> Class {
    let found = config.targets.find(to);
    if found.hit {
        return Class {
            kind: Kind::Metadata,
            asked: found.address,
            sentinel: found.sentinel,
        };
    }
    let kind = if config.destination.is(to) {
        Kind::Listener
    } else {
        Kind::Other
    };
    // A listener has no sentinel of its own; those of the metadata service fail for a socket of either family.
    let sentinel = if to.address.is_v4() {
        Target::IMDS_V4.sentinel
    } else {
        Target::IMDS_V6.sentinel
    };
    Class {
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
pub fn decide(class: &Class, family: Family, around: Surroundings, destination: &Destination) -> Verdict {
    match class.kind {
        Kind::Other => Verdict {
            action: Action::Pass,
            to: Endpoint::NONE,
        },
        Kind::Listener => Verdict {
            action: Action::Stamp,
            to: Endpoint::NONE,
        },
        Kind::Metadata if around.in_node_netns && !around.listed => Verdict {
            action: Action::Pass,
            to: Endpoint::NONE,
        },
        Kind::Metadata => {
            let to = listener(family, &class.sentinel, destination);
            if to.exists() {
                Verdict {
                    action: Action::Redirect,
                    to,
                }
            } else {
                Verdict {
                    action: Action::Refuse,
                    to: class.sentinel,
                }
            }
        }
    }
}

/// The listener for a socket: of the family that was dialled where there is one (a socket that is `IPV6_V6ONLY` or
/// bound to an IPv6 address can't use the other), else of the one that the socket can still reach;
/// [`Endpoint::NONE`] where there is none.
#[inline(always)]
fn listener(family: Family, dialled: &Endpoint, destination: &Destination) -> Endpoint {
    let Destination { v4, v6 } = destination;
    let (first, second) = match family {
        Family::V4 => (v4, &Endpoint::NONE),
        Family::V6 if dialled.address.is_v4() => (v4, v6),
        Family::V6 => (v6, v4),
    };
    if first.exists() { *first } else { *second }
}

#[cfg(test)]
mod tests;
