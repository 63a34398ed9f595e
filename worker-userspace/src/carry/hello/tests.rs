//! Real hellos of rustls, whole and in pieces, and what must never be taken for one.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

fn client(versions: &[&'static rustls::SupportedProtocolVersion], names: &[&[u8]]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
    let mut client =
        ClientConnection::new(config.into(), "vcenter.corp.example".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// The hello of every kind of client that rustls can be.
fn hellos() -> Vec<Vec<u8>> {
    [&[&TLS12, &TLS13][..], &[&TLS12], &[&TLS13]]
        .into_iter()
        .flat_map(|versions| [client(versions, &[]), client(versions, &[b"h2", b"http/1.1"])])
        .collect()
}

/// The same message in records of at most `size` bytes.
fn cut_up(hello: &[u8], size: usize) -> Vec<u8> {
    let mut cut = Vec::new();
    for part in hello[5..].chunks(size) {
        cut.extend_from_slice(&hello[..3]);
        cut.extend_from_slice(&(part.len() as u16).to_be_bytes());
        cut.extend_from_slice(part);
    }
    cut
}

pub(crate) fn body(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
    let list: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, value)| {
            [&kind.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
        })
        .collect();
    body.extend_from_slice(&(list.len() as u16).to_be_bytes());
    body.extend_from_slice(&list);
    body
}

pub(crate) fn record(body: &[u8]) -> Vec<u8> {
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
    record.extend_from_slice(&(0x0100_0000 | body.len() as u32).to_be_bytes());
    record.extend_from_slice(body);
    record
}

#[test]
fn real_hellos_are_known_whole_and_by_their_beginning() {
    for hello in hellos() {
        for end in 11..=hello.len() {
            assert!(is_plain_hello(&hello[..end]), "{end} of {} bytes", hello.len());
        }
        for end in 0..11 {
            assert!(!is_plain_hello(&hello[..end]), "{end} bytes may be anything");
        }
        for size in [1, 3, 6, 100] {
            assert!(is_plain_hello(&cut_up(&hello, size)), "in records of {size} bytes");
        }
    }
}

#[test]
fn a_hello_without_extensions_is_one() {
    let mut short = body(&[]);
    short.truncate(short.len() - 2);
    assert!(is_plain_hello(&record(&short)));
    assert!(is_plain_hello(&record(&body(&[]))));
}

#[test]
fn early_data_is_never_taken_for_a_plain_hello() {
    let early = record(&body(&[(0, b"name"), (EARLY_DATA, &[]), (41, &[0; 40])]));
    let announced = early.windows(4).position(|w| w == [0, 42, 0, 0]).unwrap();
    for end in announced + 2..=early.len() {
        assert!(!is_plain_hello(&early[..end]), "{end}");
    }
    assert!(is_plain_hello(&record(&body(&[(0, b"name"), (41, &[0; 40])]))));
}

#[test]
fn other_protocols_are_not_hellos() {
    let mut server = record(&body(&[]));
    server[5] = 2;
    let mut ssl = record(&body(&[]));
    ssl[9] = 2;
    let mut alert = record(&body(&[]));
    alert[0] = 21;
    for other in
        [&server[..], &ssl, &alert, b"GET / HTTP/1.1\r\n\r\n", b"\x16T\r", b"SSH-2.0-OpenSSH_9.2\r\n", b""]
    {
        assert!(!is_plain_hello(other), "{other:02x?}");
    }
}

proptest! {
    #[test]
    fn bytes_behind_a_hello_are_never_taken_for_a_part_of_it(
        which in 0..6usize, size in 1..2000usize, behind in prop::collection::vec(any::<u8>(), 1..50),
    ) {
        let hello = &hellos()[which];
        prop_assert!(!is_plain_hello(&[&hello[..], &behind].concat()));
        // In its record, too.
        let longer = ((hello.len() - 5 + behind.len()) as u16).to_be_bytes();
        let inside = [&hello[..3], &longer, &hello[5..], &behind].concat();
        prop_assert!(!is_plain_hello(&inside));
        prop_assert!(!is_plain_hello(&inside[..hello.len()]), "announced only");
        prop_assert!(!is_plain_hello(&[&cut_up(hello, size)[..], &behind].concat()));
    }

    #[test]
    fn an_extension_list_with_early_data_is_refused_wherever_it_stands(
        kinds in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..40)), 0..12),
        at in any::<prop::sample::Index>(), size in 1..400usize,
    ) {
        let mut extensions: Vec<(u16, &[u8])> =
            kinds.iter().filter(|(kind, _)| *kind != EARLY_DATA).map(|(kind, value)| (*kind, &value[..])).collect();
        let plain = record(&body(&extensions));
        prop_assert!(is_plain_hello(&plain));
        prop_assert!(is_plain_hello(&cut_up(&plain, size)));
        extensions.insert(at.index(extensions.len() + 1), (EARLY_DATA, &[]));
        let early = record(&body(&extensions));
        prop_assert!(!is_plain_hello(&early));
        prop_assert!(!is_plain_hello(&cut_up(&early, size)));
    }

    #[test]
    fn a_changed_length_is_never_a_whole_hello_and_nothing_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..4usize, value in any::<u8>(),
    ) {
        is_plain_hello(&bytes);
        let mut hello = record(&body(&[(0, b"name"), (43, &[2, 3, 4])]));
        // Those of all extensions and of the last one: with any other, something is missing or left at the end.
        let at = [50, 51, 62, 63][at];
        prop_assume!(hello[at] != value);
        hello[at] = value;
        // A hello that is whole by its own account and has wrong lengths inside is none.
        prop_assert!(!is_plain_hello(&hello), "{at} {value}");
    }
}
