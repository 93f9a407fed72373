extern crate std;
use super::*;
use crate::address::{Address, Port};
use crate::rate::RateLimit;
use crate::target::Target;
use core::net::SocketAddr;
use proptest::prelude::*;

const POD: CallerContext = CallerContext {
    in_node_netns: false,
    listed: false,
};
const HOST: CallerContext = CallerContext {
    in_node_netns: true,
    listed: false,
};
const LISTED: CallerContext = CallerContext {
    in_node_netns: true,
    listed: true,
};

fn at(text: &str) -> Endpoint {
    Endpoint::from_socket(text.parse::<SocketAddr>().expect(text))
}

fn both() -> Destination {
    Destination {
        v4: at("10.0.0.7:20000"),
        v6: at("[2001:db8::7]:20000"),
    }
}

const PASS: ConnectVerdict = ConnectVerdict {
    action: ConnectAction::Pass,
    to: Endpoint::NONE,
};
const STAMP: ConnectVerdict = ConnectVerdict {
    action: ConnectAction::Stamp,
    to: Endpoint::NONE,
};

fn redirect(to: Endpoint) -> ConnectVerdict {
    ConnectVerdict {
        action: ConnectAction::Redirect,
        to,
    }
}

fn refuse(to: Endpoint) -> ConnectVerdict {
    ConnectVerdict {
        action: ConnectAction::Refuse,
        to,
    }
}

/// A socket that is not bound, of a pod that has IPv4.
const V4_SOCKET: ConnectingSocket = ConnectingSocket {
    family: Family::V4,
    source: Address::UNSPECIFIED,
    is_v6only: false,
    pod_family: Family::V4,
};
const V6_SOCKET: ConnectingSocket = ConnectingSocket {
    family: Family::V6,
    ..V4_SOCKET
};
/// A socket that is not bound, of a pod that certainly has IPv6 only.
const V6_SOCKET_OF_IPV6_POD: ConnectingSocket = ConnectingSocket {
    pod_family: Family::V6,
    ..V6_SOCKET
};
const V6ONLY_SOCKET: ConnectingSocket = ConnectingSocket {
    is_v6only: true,
    ..V6_SOCKET
};

fn verdict(
    destination: Destination,
    socket: ConnectingSocket,
    context: CallerContext,
    to: &str,
) -> ConnectVerdict {
    let config = Config::imds(1, destination, RateLimit::NONE);
    decide(&classify(&config, &at(to)), &socket, context, &destination)
}

#[test]
fn a_pod_is_redirected_from_every_form_of_the_metadata_address() {
    let v4 = redirect(both().v4);
    let v6 = redirect(both().v6);
    for (socket, to, want) in [
        (V4_SOCKET, "169.254.169.254:80", v4),
        (V4_SOCKET, "255.255.255.255:80", v4),
        (V6_SOCKET, "[::ffff:169.254.169.254]:80", v4),
        (V6_SOCKET, "[::ffff:255.255.255.255]:80", v4),
        (V6ONLY_SOCKET, "[fd00:ec2::254]:80", v6),
        (V6ONLY_SOCKET, "[ff00:ec2::254]:80", v6),
    ] {
        assert_eq!(verdict(both(), socket, POD, to), want, "{to}");
        assert_eq!(verdict(both(), socket, LISTED, to), want, "{to}, listed");
        assert_eq!(verdict(both(), socket, HOST, to), PASS, "{to}, host");
    }
}

/// Of two listeners, a socket gets the one that it can reach: by the address that it is bound to, else by
/// `IPV6_V6ONLY`, else by the family of its pod.
#[test]
fn of_two_listeners_a_socket_gets_the_one_that_it_can_reach() {
    let bound = |to: &str, socket: ConnectingSocket| ConnectingSocket {
        source: at(to).address,
        ..socket
    };
    let (v4, v6) = (both().v4, both().v6);
    let (imds4, imds6) = ("169.254.169.254:80", "[fd00:ec2::254]:80");
    let mapped = "[::ffff:169.254.169.254]:80";
    for (socket, to, want) in [
        (V4_SOCKET, imds4, v4),
        (V6_SOCKET, imds6, v4),
        (V6_SOCKET, mapped, v4),
        (V6ONLY_SOCKET, imds6, v6),
        (V6_SOCKET_OF_IPV6_POD, imds6, v6),
        (V6_SOCKET_OF_IPV6_POD, mapped, v6),
        // An IPv4 socket can be given no other address.
        (
            ConnectingSocket {
                pod_family: Family::V6,
                ..V4_SOCKET
            },
            imds4,
            v4,
        ),
        (bound("[2001:db8::9]:0", V6_SOCKET), imds6, v6),
        (bound("[::1]:0", V6_SOCKET), imds6, v6),
        (bound("[::ffff:10.1.2.3]:0", V6_SOCKET_OF_IPV6_POD), imds6, v4),
        (bound("[::ffff:0.0.0.0]:0", V6_SOCKET_OF_IPV6_POD), imds6, v4),
    ] {
        assert_eq!(
            verdict(both(), socket, POD, to),
            redirect(want),
            "{socket:?} to {to}"
        );
    }
}

/// Reading the option costs a helper call.
#[test]
fn ipv6_v6only_is_read_only_if_it_decides() {
    let config = Config::imds(1, both(), RateLimit::NONE);
    let asked = |socket: ConnectingSocket, destination: Destination, to: &str| {
        socket.may_be_v6only(&classify(&config, &at(to)), &destination)
    };
    let (v4_only, v6_only) = (
        Destination {
            v6: Endpoint::NONE,
            ..both()
        },
        Destination {
            v4: Endpoint::NONE,
            ..both()
        },
    );
    let imds6 = "[fd00:ec2::254]:80";
    assert!(asked(V6_SOCKET, both(), imds6));
    assert!(asked(V6_SOCKET, both(), "[ff00:ec2::254]:80"));
    for (socket, destination, to) in [
        (V4_SOCKET, both(), "169.254.169.254:80"),
        (V6_SOCKET, both(), "[::ffff:169.254.169.254]:80"),
        (V6_SOCKET, both(), "[2001:db8::7]:20000"),
        (V6_SOCKET, v4_only, imds6),
        (V6_SOCKET, v6_only, imds6),
        (V6_SOCKET_OF_IPV6_POD, both(), imds6),
        (
            ConnectingSocket {
                source: at("[::1]:0").address,
                ..V6_SOCKET
            },
            both(),
            imds6,
        ),
    ] {
        assert!(!asked(socket, destination, to), "{socket:?} to {to}");
    }
}

#[test]
fn the_address_that_was_asked_for_is_known_behind_a_guard() {
    let config = Config::imds(1, both(), RateLimit::NONE);
    for (to, asked) in [
        ("169.254.169.254:80", "169.254.169.254:80"),
        ("255.255.255.255:80", "169.254.169.254:80"),
        ("[ff00:ec2::254]:80", "[fd00:ec2::254]:80"),
        ("10.0.0.7:20000", "10.0.0.7:20000"),
    ] {
        assert_eq!(classify(&config, &at(to)).asked, at(asked), "{to}");
    }
}

#[test]
fn neighbouring_addresses_and_ports_pass() {
    for to in [
        "169.254.169.254:81",
        "169.254.169.254:8080",
        "169.254.169.254:443",
        "169.254.169.253:80",
        "169.254.169.123:80",
        "169.254.170.2:80",
        "10.0.0.7:80",
        "10.0.0.8:20000",
        "[fd00:ec2::253]:80",
        "[fd00:ec2::254]:443",
        "[2001:db8::7]:20001",
        "[::]:0",
    ] {
        assert_eq!(verdict(both(), V6_SOCKET, POD, to), PASS, "{to}");
    }
}

#[test]
fn a_connection_to_a_listener_is_stamped_for_every_caller() {
    for context in [POD, HOST, LISTED] {
        assert_eq!(verdict(both(), V4_SOCKET, context, "10.0.0.7:20000"), STAMP);
        assert_eq!(
            verdict(both(), V6_SOCKET, context, "[::ffff:10.0.0.7]:20000"),
            STAMP
        );
        assert_eq!(verdict(both(), V6_SOCKET, context, "[2001:db8::7]:20000"), STAMP);
    }
}

#[test]
fn without_a_listener_of_the_family_the_other_is_used_or_the_connection_is_refused() {
    let v4_only = Destination {
        v6: Endpoint::NONE,
        ..both()
    };
    let v6_only = Destination {
        v4: Endpoint::NONE,
        ..both()
    };
    let refused4 = refuse(Target::IMDS_V4.sentinel);
    let refused6 = refuse(Target::IMDS_V6.sentinel);
    let (imds4, imds6) = ("169.254.169.254:80", "[fd00:ec2::254]:80");
    for socket in [V6_SOCKET, V6_SOCKET_OF_IPV6_POD, V6ONLY_SOCKET] {
        assert_eq!(verdict(v4_only, socket, POD, imds6), redirect(both().v4));
        assert_eq!(verdict(v6_only, socket, POD, imds4), redirect(both().v6));
        assert_eq!(verdict(Destination::NONE, socket, POD, imds6), refused6);
    }
    assert_eq!(verdict(v6_only, V4_SOCKET, POD, imds4), refused4);
    assert_eq!(verdict(Destination::NONE, V4_SOCKET, POD, imds4), refused4);
}

#[test]
fn an_unconfigured_program_touches_nothing() {
    // SAFETY: all-zero bytes are a valid `Config`: it holds integers only. A fresh array map looks like this.
    let config: Config = unsafe { core::mem::zeroed() };
    for to in ["169.254.169.254:80", "[::]:0", "0.0.0.0:0"] {
        assert_eq!(classify(&config, &at(to)).kind, DialledKind::Other, "{to}");
    }
}

prop_compose! {
    /// Random endpoints, weighted towards those that matter.
    fn endpoint()(
        kind in 0..4u8, row in 0..2usize, words: [u32; 4], port: u16, metadata_port: bool,
    ) -> Endpoint {
        let target = [Target::IMDS_V4, Target::IMDS_V6][row];
        let address = match kind {
            0 => target.address.address,
            1 => target.sentinel.address,
            2 => both().v4.address,
            _ => Address::from_v6_words(words),
        };
        Endpoint::new(address, Port::new(if metadata_port { 80 } else { port }))
    }
}

proptest! {
    /// This is the safety promise of the whole product: every connection to a metadata address from outside the
    /// node's namespace, or of a listed pod, ends at a listener or a sentinel, and no other connection is rewritten.
    #[test]
    fn a_pod_never_passes_to_metadata_and_nothing_else_is_touched(
        to in endpoint(), v6_socket: bool, in_node_netns: bool, listed: bool, has4: bool, has6: bool,
        is_bound: bool, source in endpoint(), is_v6only: bool, ipv6_pod: bool,
    ) {
        let destination = Destination {
            v4: if has4 { both().v4 } else { Endpoint::NONE },
            v6: if has6 { both().v6 } else { Endpoint::NONE },
        };
        let config = Config::imds(1, destination, RateLimit::NONE);
        let family = if v6_socket || !to.address.is_v4() { Family::V6 } else { Family::V4 };
        let context = CallerContext { in_node_netns, listed };
        let socket = ConnectingSocket {
            family,
            source: if is_bound { source.address } else { Address::UNSPECIFIED },
            is_v6only,
            pod_family: if ipv6_pod { Family::V6 } else { Family::V4 },
        };
        let verdict = decide(&classify(&config, &to), &socket, context, &destination);

        let row = [Target::IMDS_V4, Target::IMDS_V6].into_iter().find(|t| t.address == to || t.sentinel == to);
        let end = verdict.to;
        match (row, verdict.action) {
            (Some(_), ConnectAction::Pass) => prop_assert!(in_node_netns && !listed),
            (Some(row), ConnectAction::Refuse) => prop_assert_eq!(end, row.sentinel),
            (Some(_), ConnectAction::Redirect) => {
                prop_assert!(end == destination.v4 || end == destination.v6);
                prop_assert!(end.exists());
                prop_assert!(family == Family::V6 || end.address.is_v4());
            }
            (Some(_), ConnectAction::Stamp) => prop_assert!(false, "a metadata address was only stamped"),
            (None, ConnectAction::Pass) => prop_assert!(!destination.is(&to)),
            (None, ConnectAction::Stamp) => prop_assert!(destination.is(&to)),
            (None, other) => prop_assert!(false, "{to:?} was not ours, yet {other:?}"),
        }
    }
}
