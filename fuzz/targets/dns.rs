//! DNS: a query's answer repeats the question, fits the client's buffer and is no query; the answer
//! of another resolver is read.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use meltemi_dns::{
    Answer, Parsed, ResponseCode, ServiceTarget, Transport, addresses_of, error_for, parse,
};

/// More than fit into one UDP answer.
const ADDRESSES: [IpAddr; 100] = [IpAddr::V4(Ipv4Addr::LOCALHOST); 100];

fuzz_target!(|bytes: &[u8]| {
    if let Parsed::Query(query) = parse(bytes) {
        let targets = [("pod.real.example", 80), ("no name at all", 81)].map(|(host, port)| {
            let host = host.to_owned();
            ServiceTarget { host, port }
        });
        let answer = Answer {
            code: ResponseCode::NoError,
            authoritative: false,
            alias: Some("real.example"),
            addresses: &ADDRESSES,
            targets: &targets,
            ttl: 30,
        };
        let sent = query.respond(&answer, Transport::Udp);

        assert!(sent.len() <= 1232, "{}", sent.len());
        assert_eq!(sent[..2], bytes[..2], "the id comes back");
        assert_eq!(sent[12..17], bytes[12..17], "the question comes back");
        assert_eq!(
            parse(&sent),
            Parsed::Malformed(None),
            "an answer is no query"
        );
        assert!(addresses_of(&sent).is_some(), "a resolver reads the answer");

        if let Some(other) = query.about("real.example") {
            assert!(matches!(parse(&other), Parsed::Query(_)));
        }
    }

    if let Some(error) = error_for(bytes, ResponseCode::ServFail) {
        assert_eq!(error[..2], bytes[..2]);
    }
    let _ = addresses_of(bytes);
});
