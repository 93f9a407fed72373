extern crate std;
use super::*;
use crate::address::{Address, Port};
use proptest::prelude::*;
use std::vec::Vec;

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (any::<[u32; 4]>(), any::<u16>())
        .prop_map(|(words, port)| Endpoint::new(Address::from_v6_words(words), Port::new(port)))
}

fn connection() -> impl Strategy<Value = Connection> {
    (endpoint(), endpoint(), any::<u32>(), any::<u32>()).prop_map(
        |(client, listener, client_isn, listener_isn)| Connection {
            client,
            listener,
            client_isn,
            listener_isn,
        },
    )
}

fn key() -> impl Strategy<Value = Key> {
    any::<[u8; 16]>().prop_map(Key::from_bytes)
}

/// Returns all connections that differ in one property from this one: those with the same address and port of the
/// client, and those with another.
fn altered(of: &Connection) -> (Vec<Connection>, Vec<Connection>) {
    let endpoint = |of: &Endpoint, word: usize, port: u16| {
        let mut words = of.address.v6_words();
        words[word % 4] ^= u32::from(word < 4);
        Endpoint::new(Address::from_v6_words(words), Port::new(of.port.get() ^ port))
    };
    let others = (0..4)
        .map(|word| Connection {
            listener: endpoint(&of.listener, word, 0),
            ..*of
        })
        .chain([
            Connection {
                listener: endpoint(&of.listener, 4, 1),
                ..*of
            },
            Connection {
                client_isn: of.client_isn ^ 1,
                ..*of
            },
            Connection {
                listener_isn: of.listener_isn ^ (1 << 31),
                ..*of
            },
        ])
        .collect();
    let clients = (0..4)
        .map(|word| (word, 0))
        .chain([(4, 1)])
        .map(|(word, port)| Connection {
            client: endpoint(&of.client, word, port),
            ..*of
        })
        .collect();
    (others, clients)
}

#[test]
fn the_wire_format_is_stable_across_versions() {
    let key = Key::from_bytes(*b"0123456789abcdef");
    let connection = Connection {
        client: Endpoint::from_socket("10.244.1.2:40000".parse().unwrap()),
        listener: Endpoint::from_socket("10.200.0.1:20000".parse().unwrap()),
        client_isn: 0x0102_0304,
        listener_isn: 0x0506_0708,
    };
    let option = caller_option(&key, &connection, 0x11_2233_4455, 0x0a_0b0c);
    assert_eq!(option[..9], [253, 23, b'M', b'P', 0x55, 0x44, 0x33, 0x22, 0x11]);
    assert_eq!(claimed_cgroup(&option), 0x11_2233_4455);
    let option = listener_option(&key, &connection);
    assert_eq!(option[..4], [253, 12, b'M', b'P']);
}

#[test]
fn windows_last_four_seconds_and_wrap_around_after_years() {
    assert_eq!(window(0), window((1 << 32) - 1));
    assert_eq!(window(1 << 32), 1);
    assert_eq!(window(1 << 56), 0);
}

proptest! {
    #[test]
    fn an_option_proves_its_caller_on_its_connection_in_its_window_and_the_next(
        key in key(), connection in connection(), id in 0..=MAX_CGROUP_ID, now: u64,
    ) {
        let made = window(now);
        let option = caller_option(&key, &connection, id, made);
        prop_assert_eq!(claimed_cgroup(&option), id);
        let next = window(now.wrapping_add(1 << 32));
        for (at, proof) in [
            (made, Proof::CALLER),
            (next, Proof::CALLER),
            (window(now.wrapping_add(2 << 32)), Proof::NONE),
            (window(now.wrapping_sub(1 << 32)), Proof::NONE),
        ] {
            prop_assert_eq!(verify_caller(&key, &connection, &option, at), proof);
        }
    }

    #[test]
    fn an_option_proves_nothing_on_another_connection_unless_only_the_client_differs(
        key in key(), connection in connection(), id in 0..=MAX_CGROUP_ID, at in 0..=WINDOW_MASK,
    ) {
        let option = caller_option(&key, &connection, id, at);
        let (others, clients) = altered(&connection);
        prop_assert_eq!((others.len(), clients.len()), (7, 5));
        for other in others {
            prop_assert_eq!(verify_caller(&key, &other, &option, at), Proof::NONE);
        }
        for other in clients {
            prop_assert_eq!(verify_caller(&key, &other, &option, at), Proof::CALLER_BEHIND_NAT);
        }
    }

    #[test]
    fn a_changed_bit_invalidates_every_tag_that_covers_it(
        key in key(), connection in connection(), id in 0..=MAX_CGROUP_ID, at in 0..=WINDOW_MASK, bit in 0..(23 * 8_usize),
    ) {
        let mut option = caller_option(&key, &connection, id, at);
        option[bit / 8] ^= 1 << (bit % 8);
        let proof = verify_caller(&key, &connection, &option, at);
        // Each of the two tags is valid without the other one.
        let expected = match bit / 8 {
            0..=8 => Proof::NONE,
            9..=15 => Proof::CALLER_BEHIND_NAT,
            _ => Proof::CALLER,
        };
        prop_assert_eq!(proof, expected);
    }

    #[test]
    fn another_key_or_another_id_proves_nothing(
        key in key(), other in key(), connection in connection(), id in 0..=MAX_CGROUP_ID, at in 0..=WINDOW_MASK,
    ) {
        prop_assume!(key != other);
        let option = caller_option(&key, &connection, id, at);
        prop_assert_eq!(verify_caller(&other, &connection, &option, at), Proof::NONE);
        let forged = caller_option(&key, &connection, id ^ 1, at);
        let mut mixed = option;
        mixed[4..9].copy_from_slice(&forged[4..9]);
        prop_assert_eq!(verify_caller(&key, &connection, &mixed, at), Proof::NONE);
    }

    #[test]
    fn arbitrary_bytes_prove_nothing(
        key in key(), connection in connection(), bytes: [u8; CALLER_OPTION_LEN], at in 0..=WINDOW_MASK,
    ) {
        let mut option = bytes;
        prop_assert_eq!(verify_caller(&key, &connection, &option, at), Proof::NONE);
        option[..4].copy_from_slice(&[OPTION_KIND, CALLER_OPTION_LEN as u8, EXPERIMENT_ID[0], EXPERIMENT_ID[1]]);
        prop_assert_eq!(verify_caller(&key, &connection, &option, at), Proof::NONE);
    }

    #[test]
    fn only_the_answer_of_the_listener_is_accepted(
        key in key(), other in key(), connection in connection(),
    ) {
        prop_assume!(key != other);
        let option = listener_option(&key, &connection);
        prop_assert!(is_answered_by_listener(&key, &connection, &option));
        prop_assert!(!is_answered_by_listener(&other, &connection, &option));
        let (others, clients) = altered(&connection);
        for other in others {
            prop_assert!(!is_answered_by_listener(&key, &other, &option));
        }
        for through_nat in clients {
            prop_assert!(is_answered_by_listener(&key, &through_nat, &option));
        }
    }

    /// A recorded tag of one purpose is not valid for another purpose.
    #[test]
    fn tags_of_different_purposes_differ(key in key(), connection in connection()) {
        let purposes = [Purpose::Caller, Purpose::CallerAnyClient, Purpose::Listener];
        let tags: Vec<u64> = purposes.map(|purpose| hash(&key, &message(&connection, 0, 0, purpose))).to_vec();
        for (index, tag) in tags.iter().enumerate() {
            prop_assert!(!tags[index + 1..].contains(tag));
        }
    }
}
