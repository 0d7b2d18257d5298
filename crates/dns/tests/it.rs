//! Queries and answers byte by byte, and bytes of anybody.

use std::net::IpAddr;

use meltemi_dns::{
    Answer, Parsed, Query, RecordType, ResponseCode, Transport, addresses_of, error_for, is_name,
    parse,
};
use proptest::prelude::*;

const A: u16 = 1;
const AAAA: u16 = 28;
const TYPE_OPT: [u8; 3] = [0, 0, 41];

/// A query as clients send it, written by hand.
fn query(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut out: Vec<u8> = [0x1234u16, 0x0100, 1, 0, 0, u16::from(edns.is_some())]
        .into_iter()
        .flat_map(u16::to_be_bytes)
        .collect();

    for label in name.split('.') {
        out.push(u8::try_from(label.len()).expect("a short label"));
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend(1u16.to_be_bytes());

    if let Some(size) = edns {
        out.extend(TYPE_OPT);
        out.extend(size.to_be_bytes());
        out.extend([0; 6]);
    }
    out
}

fn parsed(bytes: &[u8]) -> Query {
    match parse(bytes) {
        Parsed::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

fn known<'a>(alias: Option<&'a str>, addresses: &'a [IpAddr]) -> Answer<'a> {
    Answer {
        alias,
        addresses,
        ttl: 30,
        ..Answer::empty(ResponseCode::NoError)
    }
}

fn many(count: u8) -> Vec<IpAddr> {
    (0..count).map(|i| IpAddr::from([10, 45, 0, i])).collect()
}

#[test]
fn names_are_folded_but_come_back_as_they_were() {
    let bytes = query("ReViews.Default", A, None);
    let query = parsed(&bytes);
    assert_eq!(
        (query.name.as_str(), query.record),
        ("reviews.default", RecordType::A)
    );

    let addresses = ["10.45.0.7".parse().expect("an address")];
    let answer = query.respond(&known(None, &addresses), Transport::Udp);
    assert_eq!(
        answer[12..bytes.len()],
        bytes[12..],
        "the question comes back byte by byte"
    );
    assert_eq!(answer[..8], [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1]);
    assert_eq!(
        answer[bytes.len()..][..2],
        [0xc0, 12],
        "a pointer to the question"
    );
    assert_eq!(
        answer[bytes.len() + 2..],
        [0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 45, 0, 7]
    );

    let authoritative = Answer {
        authoritative: true,
        ..Answer::empty(ResponseCode::NXDomain)
    };
    assert_eq!(
        query.respond(&authoritative, Transport::Udp)[2..4],
        [0x85, 0x83]
    );
}

#[test]
fn odd_bytes_in_a_label_do_not_make_two_names_look_alike() {
    let mut dotted = query("axb.c", A, None);
    dotted[14] = b'.';
    assert_eq!(parsed(&dotted).name, "a\\.b.c");
    dotted[14] = 0xff;
    assert_eq!(parsed(&dotted).name, "a\\255b.c");
}

#[test]
fn addresses_that_do_not_fit_are_truncated_over_udp_and_whole_over_tcp() {
    let addresses = many(200);
    let plain = parsed(&query("a.b", A, None));
    let udp = plain.respond(&known(None, &addresses), Transport::Udp);
    assert!(
        udp.len() <= 512 && udp.len() > 480 && udp[2] & 2 == 2,
        "{} bytes",
        udp.len()
    );

    let edns = parsed(&query("a.b", A, Some(4096)));
    let edns = edns.respond(&known(None, &addresses), Transport::Udp);
    assert!(edns.len() > 1200 && edns.len() <= 1232 && edns[2] & 2 == 2);
    let opt = &edns[edns.len() - 11..];
    assert_eq!(
        (&opt[..3], &opt[3..5], edns[11]),
        (&TYPE_OPT[..], &1232u16.to_be_bytes()[..], 1),
        "the OPT record stays"
    );

    let tcp = plain.respond(&known(None, &addresses), Transport::Tcp);
    assert_eq!((u16::from_be_bytes([tcp[6], tcp[7]]), tcp[2] & 2), (200, 0));

    let endless = vec![IpAddr::from([10, 0, 0, 1]); 70_000];
    let tcp = plain.respond(&known(None, &endless), Transport::Tcp);
    assert!(tcp.len() <= 65_535 && tcp[2] & 2 == 2);
}

#[test]
fn an_alias_comes_before_its_addresses() {
    let asked = parsed(&query("ext.default.svc", A, Some(1232)));
    let addresses = many(1);
    let answer = asked.respond(&known(Some("www.example.org"), &addresses), Transport::Udp);
    assert_eq!(answer[6..8], [0, 2]);
    assert_eq!(
        addresses_of(&answer),
        Some((ResponseCode::NoError, addresses.clone()))
    );

    // Cut anywhere before the OPT record, the answer is not read by half.
    for end in 0..answer.len() - 11 {
        assert_eq!(addresses_of(&answer[..end]), None, "{end}");
    }

    let without = asked.respond(&known(Some("a..b"), &addresses), Transport::Udp);
    assert_eq!(without[6..8], [0, 1], "no alias that is no name");
}

#[test]
fn another_name_is_asked_about_without_what_the_client_appended() {
    let asked = parsed(&query("ext.default.svc", AAAA, Some(4096)));
    assert_eq!(
        asked.about("www.example.org"),
        Some(query("www.example.org", AAAA, None))
    );

    for wrong in ["", "a..b", &"a".repeat(64), &["a"; 128].join(".")] {
        assert!(!is_name(wrong) && asked.about(wrong).is_none(), "{wrong:?}");
    }
}

#[test]
fn odd_messages_are_sorted_out() {
    let good = query("a.b", A, None);
    assert_eq!(parse(&good[..11]), Parsed::Malformed(None));
    for end in 12..good.len() {
        assert_eq!(
            parse(&good[..end]),
            Parsed::Malformed(Some(0x1234)),
            "{end}"
        );
    }

    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(
        parse(&response),
        Parsed::Malformed(None),
        "responses are never answered"
    );

    let mut chaos = good.clone();
    let end = chaos.len();
    chaos[end - 1] = 3;
    assert_eq!(parse(&chaos), Parsed::Foreign);

    let mut notify = good.clone();
    notify[2] |= 4 << 3;
    assert_eq!(parse(&notify), Parsed::Foreign);

    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(parse(&two), Parsed::Malformed(Some(0x1234)));

    // To itself, to a zero in the header, beyond the end.
    for to in [12, 4, 200] {
        let mut pointer = good.clone();
        pointer[12..14].copy_from_slice(&[0xc0, to]);
        assert_eq!(
            parse(&pointer),
            Parsed::Malformed(Some(0x1234)),
            "a pointer to {to}"
        );
    }

    let mut long: Vec<u8> = query("a", A, None)[..12].to_vec();
    long.extend(std::iter::repeat_n([63u8; 64], 5).flatten());
    assert_eq!(parse(&long), Parsed::Malformed(Some(0x1234)));

    let mut cut = query("a.b", A, Some(4096));
    cut.truncate(cut.len() - 1);
    let answer = parsed(&cut).respond(&known(None, &many(100)), Transport::Udp);
    assert!(
        answer.len() <= 512,
        "an OPT record that cannot be read is absent"
    );
}

#[test]
fn errors_carry_the_id_of_the_query() {
    let good = query("a.b", A, None);
    let answer = error_for(&good, ResponseCode::ServFail).expect("an answer");
    assert_eq!(answer[..6], [0x12, 0x34, 0x81, 0x82, 0, 1]);
    assert_eq!(answer[12..], good[12..]);

    let answer = error_for(&good[..14], ResponseCode::FormErr).expect("an answer");
    assert_eq!(answer, [0x12, 0x34, 0x80, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(error_for(&good[..5], ResponseCode::FormErr), None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes);
    }

    #[test]
    fn no_bytes_after_a_good_header_make_it_panic(
        rest in prop::collection::vec(any::<u8>(), 0..300),
        answers in 0..3_u8,
        additionals in 0..3_u8,
    ) {
        let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, answers, 0, 0, 0, additionals];
        bytes.extend(rest);
        check(&bytes);
    }

    #[test]
    fn no_bytes_after_a_good_question_make_it_panic(
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = query("reviews.default", A, Some(1232));
        bytes.extend(rest);
        check(&bytes);
    }
}

/// Every answer to a query keeps to the limit of UDP and has its id.
fn check(bytes: &[u8]) {
    if let Parsed::Query(query) = parse(bytes) {
        for answer in [
            known(Some("real.example"), &many(100)),
            Answer::empty(ResponseCode::NXDomain),
        ] {
            let answer = query.respond(&answer, Transport::Udp);
            assert!(answer.len() <= 1232);
            assert_eq!(answer[..2], bytes[..2]);
        }
        query.about("real.example");
    }

    error_for(bytes, ResponseCode::ServFail);
    addresses_of(bytes);
}
