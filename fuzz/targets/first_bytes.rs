//! The first bytes of a connection, a ClientHello or a line of HTTP: recognised alike however they
//! are cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meltemi_net::{HttpSniff, TlsSniff, TlsSniffer, sniff_http};

fuzz_target!(|bytes: &[u8]| {
    let one_by_one: Vec<usize> = (1..=bytes.len()).collect();
    assert_eq!(tls(bytes, &one_by_one), tls(bytes, &[bytes.len()]));

    let whole = sniff_http(bytes);
    for end in one_by_one {
        let part = sniff_http(&bytes[..end]);
        assert!(part == HttpSniff::NeedMore || part == whole, "{end}");
    }
});

/// What the sniffer says once it has decided, in words that can be compared.
fn tls(bytes: &[u8], ends: &[usize]) -> String {
    let mut sniffer = TlsSniffer::default();
    for end in ends {
        match sniffer.feed(&bytes[..*end]) {
            TlsSniff::NeedMore => {}
            TlsSniff::NotTls => return "not TLS".to_owned(),
            TlsSniff::Broken(reason) => return reason.to_owned(),
            TlsSniff::Hello(hello) => return format!("{:?} {:?}", hello.server_name, hello.alpn),
        }
    }

    "more".to_owned()
}
