extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

impl Bytes for Vec<u8> {
    fn load<const N: usize>(&self, at: u32, into: &mut [u8; N]) -> bool {
        let Some(bytes) = self.get(at as usize..at as usize + N) else {
            return false;
        };
        into.copy_from_slice(bytes);
        true
    }
}

const IMDS: [u8; 4] = [169, 254, 169, 254];
const IMDS6: [u8; 16] = [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54];

fn tcp(port: u16) -> Vec<u8> {
    let mut header = std::vec![0x9c, 0x40];
    header.extend(port.to_be_bytes());
    header.resize(20, 0);
    header
}

fn v4(to: [u8; 4], protocol: u8, fragment: u16, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut packet = std::vec![0x40 | (5 + options as u8), 0, 0, 0, 0, 0];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 1]);
    packet.extend(to);
    packet.resize(20 + options * 4, 1);
    packet.extend(payload);
    packet
}

fn v6(to: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = std::vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet.extend([0xfd; 16]);
    packet.extend(to);
    packet.extend(payload);
    packet
}

fn ethernet(kind: u16, tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut frame = std::vec![2; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

fn drops(packet: Vec<u8>, link_layer: LinkLayer) -> bool {
    match_packet(&packet, link_layer, &Targets::IMDS).hit
}

#[test]
fn tcp_to_the_metadata_service_is_matched_behind_all_headers() {
    let ip = |packet| drops(packet, LinkLayer::Ip);
    assert!(ip(v4(IMDS, TCP, 0, 0, &tcp(80))));
    assert!(ip(v4(IMDS, TCP, 0, 10, &tcp(80))), "IP options");
    assert!(ip(v4(IMDS, TCP, 0x2000, 0, &tcp(80)[..8])), "a first fragment");
    assert!(ip(v6(IMDS6, TCP, &tcp(80))));
    for kind in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
        let header = [&[TCP, 1][..], &[0; 14], &tcp(80)].concat();
        assert!(ip(v6(IMDS6, kind, &header)), "extension {kind}");
    }
    let authenticated = [&[TCP, 4][..], &[0; 22], &tcp(80)].concat();
    assert!(ip(v6(IMDS6, AUTHENTICATION, &authenticated)));
    let fragment = [&[TCP, 0, 0, 1, 0, 0, 0, 1][..], &tcp(80)].concat();
    assert!(ip(v6(IMDS6, FRAGMENT, &fragment)), "a first fragment");
    for tags in [&[][..], &[ETH_P_8021Q], &[ETH_P_8021AD, ETH_P_8021Q]] {
        let frames = [
            ethernet(ETH_P_IP, tags, &v4(IMDS, TCP, 0, 0, &tcp(80))),
            ethernet(ETH_P_IPV6, tags, &v6(IMDS6, TCP, &tcp(80))),
        ];
        for frame in frames {
            assert!(drops(frame, LinkLayer::Ethernet), "tags {tags:x?}");
        }
    }
}

#[test]
fn the_offsets_of_the_headers_are_returned() {
    let frame = ethernet(ETH_P_IP, &[ETH_P_8021Q], &v4(IMDS, TCP, 0, 2, &tcp(80)));
    let found = match_packet(&frame, LinkLayer::Ethernet, &Targets::IMDS);
    assert_eq!((found.ip, found.is_v6, found.tcp), (18, false, 18 + 28));
    let header = [&[TCP, 1][..], &[0; 14], &tcp(80)].concat();
    let found = match_packet(
        &v6(IMDS6, DESTINATION_OPTIONS, &header),
        LinkLayer::Ip,
        &Targets::IMDS,
    );
    assert_eq!((found.ip, found.is_v6, found.tcp), (0, true, 40 + 16));
}

#[test]
fn other_ports_protocols_and_addresses_pass() {
    let ip = |packet| drops(packet, LinkLayer::Ip);
    assert!(!ip(v4(IMDS, TCP, 0, 0, &tcp(81))));
    assert!(!ip(v4(IMDS, 17, 0, 0, &tcp(80))), "UDP");
    assert!(!ip(v4(IMDS, TCP, 3, 0, &tcp(80))), "a later fragment");
    assert!(!ip(v4([169, 254, 169, 253], TCP, 0, 0, &tcp(80))));
    assert!(!ip(v4([169, 254, 169, 123], TCP, 0, 0, &tcp(80))), "time");
    assert!(!ip(v6(IMDS6, TCP, &tcp(443))));
    assert!(!ip(v6(IMDS6, 58, &tcp(80))), "ICMPv6");
    let later = [&[TCP, 0, 0, 9, 0, 0, 0, 1][..], &tcp(80)].concat();
    assert!(!ip(v6(IMDS6, FRAGMENT, &later)), "a later fragment");
    let other = [&IMDS6[..15], &[0x53]].concat().try_into().unwrap();
    assert!(!ip(v6(other, TCP, &tcp(80))), "DNS");
    assert!(!drops(
        ethernet(0x0806, &[], &v4(IMDS, TCP, 0, 0, &tcp(80))),
        LinkLayer::Ethernet
    ));
}

#[test]
fn a_packet_to_a_target_with_unreadable_ports_matches() {
    let ip = |packet| drops(packet, LinkLayer::Ip);
    assert!(ip(v4(IMDS, TCP, 0, 0, &tcp(80)[..3])));
    assert!(
        ip(v6(IMDS6, DESTINATION_OPTIONS, &[])),
        "the header is in another fragment"
    );
    let endless = [DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(20);
    assert!(ip(v6(IMDS6, DESTINATION_OPTIONS, &endless)));
}

proptest! {
    #[test]
    fn no_packet_to_another_address_is_dropped(
        mut packet in proptest::collection::vec(any::<u8>(), 0..120),
        version in prop::sample::select(std::vec![0x45_u8, 0x60]),
    ) {
        if let Some(first) = packet.first_mut() {
            *first = version;
        }
        let holds = |wanted: &[u8]| packet.windows(wanted.len()).any(|window| window == wanted);
        prop_assume!(!holds(&IMDS) && !holds(&IMDS6));
        for link_layer in [LinkLayer::Ethernet, LinkLayer::Ip] {
            prop_assert!(!drops(packet.clone(), link_layer));
        }
    }
}
