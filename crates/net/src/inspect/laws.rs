//! Property tests of the sniffers: no input panics, and splitting the input does not change the
//! result.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Random bytes, some of which begin like one of the protocols.
fn first_bytes() -> impl Strategy<Value = Vec<u8>> {
    let start = prop::sample::select(vec![
        &b""[..],
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.0\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"\x16\x03\x01",
        b"\x16\x03\x01\x00\x10\x01\x00\x00\x0c\x03\x03",
        b"\x16\x03\x03\xff\xff",
    ]);

    (start, prop::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(start, more)| [start, &more].concat())
}

/// The ends of the pieces into which `cuts` split the input.
fn ends(length: usize, cuts: &[Index]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(length + 1)).collect();
    ends.push(length);
    ends.sort_unstable();
    ends
}

/// The final result of the TLS sniffer for input in pieces.
fn tls_in_pieces(bytes: &[u8], ends: &[usize]) -> String {
    let mut sniffer = TlsSniffer::default();
    for end in ends {
        match sniffer.feed(&bytes[..*end]) {
            TlsSniff::NeedMore => {}
            TlsSniff::NotTls => return "not TLS".to_owned(),
            TlsSniff::Broken(reason) => return reason.to_owned(),
            TlsSniff::Hello(hello) => {
                return format!(
                    "{:?} {:?} {}",
                    hello.server_name,
                    hello.alpn,
                    sniffer.taken()
                );
            }
        }
    }

    "more".to_owned()
}

fn hello(name: &str, protocols: Vec<Vec<u8>>) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(meltemi_tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();

    config.alpn_protocols = protocols;
    let name = name.to_owned().try_into().expect("a name");
    let mut client =
        rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("to memory");

    hello
}

proptest! {
    #[test]
    fn splitting_does_not_change_the_http_result(bytes in first_bytes(), cuts in prop::collection::vec(any::<Index>(), 0..5)) {
        let whole = sniff_http(&bytes);
        for end in ends(bytes.len(), &cuts) {
            let part = sniff_http(&bytes[..end]);
            prop_assert!(part == HttpSniff::NeedMore || part == whole, "{end}: {part:?}, {whole:?}");
        }
    }

    #[test]
    fn splitting_does_not_change_the_tls_result(bytes in first_bytes(), cuts in prop::collection::vec(any::<Index>(), 0..5)) {
        let whole = tls_in_pieces(&bytes, &[bytes.len()]);
        prop_assert_eq!(tls_in_pieces(&bytes, &ends(bytes.len(), &cuts)), whole);
    }

    #[test]
    fn splitting_does_not_change_a_hello(
        name in "[a-zA-Z]{1,20}(\\.[a-z]{1,20}){0,3}",
        protocols in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..40),
        cuts in prop::collection::vec(any::<Index>(), 0..5),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut bytes = hello(&name, protocols);
        let length = bytes.len();
        let whole = tls_in_pieces(&bytes, &[length]);
        prop_assert!(whole.starts_with(&format!("Some({:?})", name.to_ascii_lowercase())), "{whole}");
        prop_assert_eq!(tls_in_pieces(&bytes, &ends(length, &cuts)), whole);
        // Bytes after the hello are part of the handshake and must not panic either.
        bytes.extend(tail);
        tls_in_pieces(&bytes, &[bytes.len()]);
    }

    #[test]
    fn a_corrupted_hello_gives_the_same_result_in_pieces(changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..8), cut in any::<Index>()) {
        let mut bytes = hello("a.example", vec![b"h2".to_vec()]);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let ends = ends(bytes.len(), &[cut]);
        prop_assert_eq!(tls_in_pieces(&bytes, &ends), tls_in_pieces(&bytes, &[bytes.len()]));
    }
}
