extern crate std;
use super::*;
use crate::address::{Address, Port};
use crate::rate::RateLimit;
use crate::target::Target;
use core::net::SocketAddr;
use proptest::prelude::*;

const POD: Surroundings = Surroundings {
    in_node_netns: false,
    listed: false,
};
const HOST: Surroundings = Surroundings {
    in_node_netns: true,
    listed: false,
};
const LISTED: Surroundings = Surroundings {
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

const PASS: Verdict = Verdict {
    action: Action::Pass,
    to: Endpoint::NONE,
};
const STAMP: Verdict = Verdict {
    action: Action::Stamp,
    to: Endpoint::NONE,
};

fn redirect(to: Endpoint) -> Verdict {
    Verdict {
        action: Action::Redirect,
        to,
    }
}

fn refuse(to: Endpoint) -> Verdict {
    Verdict {
        action: Action::Refuse,
        to,
    }
}

fn verdict(destination: Destination, family: Family, around: Surroundings, to: &str) -> Verdict {
    let config = Config::imds(1, destination, RateLimit::NONE);
    decide(&classify(&config, &at(to)), family, around, &destination)
}

#[test]
fn a_pod_is_redirected_from_every_form_of_the_metadata_address() {
    let v4 = redirect(both().v4);
    let v6 = redirect(both().v6);
    for (family, to, want) in [
        (Family::V4, "169.254.169.254:80", v4),
        (Family::V4, "255.255.255.255:80", v4),
        (Family::V6, "[::ffff:169.254.169.254]:80", v4),
        (Family::V6, "[::ffff:255.255.255.255]:80", v4),
        (Family::V6, "[fd00:ec2::254]:80", v6),
        (Family::V6, "[ff00:ec2::254]:80", v6),
    ] {
        assert_eq!(verdict(both(), family, POD, to), want, "{to}");
        assert_eq!(verdict(both(), family, LISTED, to), want, "{to}, listed");
        assert_eq!(verdict(both(), family, HOST, to), PASS, "{to}, host");
    }
}

#[test]
fn what_was_asked_for_is_told_behind_a_guard_too() {
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
        assert_eq!(verdict(both(), Family::V6, POD, to), PASS, "{to}");
    }
}

#[test]
fn a_listener_dialled_directly_is_stamped_for_whoever_dials() {
    for around in [POD, HOST, LISTED] {
        assert_eq!(verdict(both(), Family::V4, around, "10.0.0.7:20000"), STAMP);
        assert_eq!(
            verdict(both(), Family::V6, around, "[::ffff:10.0.0.7]:20000"),
            STAMP
        );
        assert_eq!(verdict(both(), Family::V6, around, "[2001:db8::7]:20000"), STAMP);
    }
}

#[test]
fn without_a_listener_of_the_family_another_is_used_or_the_connection_refused() {
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
    assert_eq!(verdict(v4_only, Family::V6, POD, imds6), redirect(both().v4));
    assert_eq!(verdict(v6_only, Family::V6, POD, imds4), redirect(both().v6));
    assert_eq!(verdict(v6_only, Family::V4, POD, imds4), refused4);
    assert_eq!(verdict(Destination::NONE, Family::V4, POD, imds4), refused4);
    assert_eq!(verdict(Destination::NONE, Family::V6, POD, imds6), refused6);
}

#[test]
fn before_it_is_configured_a_program_touches_nothing() {
    // SAFETY: all-zero bytes are a valid `Config`: it holds integers only. A fresh array map looks like this.
    let config: Config = unsafe { core::mem::zeroed() };
    for to in ["169.254.169.254:80", "[::]:0", "0.0.0.0:0"] {
        assert_eq!(classify(&config, &at(to)).kind, Kind::Other, "{to}");
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
    /// The safety promise of the whole product, at its root: outside the node's namespace, or listed, whatever
    /// is sent to a metadata address ends at a listener or a sentinel; and nothing else is ever rewritten.
    #[test]
    fn a_pod_never_passes_to_metadata_and_nothing_else_is_touched(
        to in endpoint(), v6_socket: bool, in_node_netns: bool, listed: bool, has4: bool, has6: bool,
    ) {
        let destination = Destination {
            v4: if has4 { both().v4 } else { Endpoint::NONE },
            v6: if has6 { both().v6 } else { Endpoint::NONE },
        };
        let config = Config::imds(1, destination, RateLimit::NONE);
        let family = if v6_socket || !to.address.is_v4() { Family::V6 } else { Family::V4 };
        let around = Surroundings { in_node_netns, listed };
        let verdict = decide(&classify(&config, &to), family, around, &destination);

        let row = [Target::IMDS_V4, Target::IMDS_V6].into_iter().find(|t| t.address == to || t.sentinel == to);
        let end = verdict.to;
        match (row, verdict.action) {
            (Some(_), Action::Pass) => prop_assert!(in_node_netns && !listed),
            (Some(row), Action::Refuse) => prop_assert_eq!(end, row.sentinel),
            (Some(_), Action::Redirect) => {
                prop_assert!(end == destination.v4 || end == destination.v6);
                prop_assert!(end.exists());
                prop_assert!(family == Family::V6 || end.address.is_v4());
            }
            (Some(_), Action::Stamp) => prop_assert!(false, "a metadata address was only stamped"),
            (None, Action::Pass) => prop_assert!(!destination.is(&to)),
            (None, Action::Stamp) => prop_assert!(destination.is(&to)),
            (None, other) => prop_assert!(false, "{to:?} was not ours, yet {other:?}"),
        }
    }
}
