//! Single heads, good and bad; see [`crate::http1`]'s laws for all others.

use meltemi_filters::head::{RequestHead, ResponseHead};

use super::*;

fn request(text: &[u8]) -> Result<Option<(RequestHead, RequestTerms)>, Refusal> {
    let mut head = RequestHead::new();
    let limits = Limits::default();
    read_request(text, &mut 0, &limits, &mut head).map(|read| read.map(|(_, terms)| (head, terms)))
}

fn status(text: &[u8]) -> u16 {
    match request(text) {
        Err(refusal) => refusal.status,
        Ok(Some(_)) => 200,
        Ok(None) => 0,
    }
}

#[test]
fn an_ordinary_request_passes_with_its_fields_in_order() {
    let text = b"GET /a?b HTTP/1.1\r\nHost: reviews:9080\r\nUser-Agent: x\r\nConnection: keep-alive, foo\r\nFoo: 1\r\n\r\nrest";
    let (head, terms) = request(text).expect("accepted").expect("whole");
    assert_eq!(
        (head.method(), head.path(), head.authority()),
        ("GET", "/a?b", "reviews:9080")
    );

    assert!(terms.keep_alive && terms.framing == Framing::Empty);
    let mut out = Vec::new();
    head.write_h1(&mut out);
    assert_eq!(
        out,
        b"GET /a?b HTTP/1.1\r\nhost: reviews:9080\r\nuser-agent: x\r\n"
    );
}

#[test]
fn a_head_in_single_bytes_is_the_same_head() {
    let text = b"\r\nPOST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
    let (mut scanned, mut head, limits) = (0, RequestHead::new(), Limits::default());
    let mut got = None;

    for n in 1..=text.len() {
        if let Some(read) =
            read_request(&text[..n], &mut scanned, &limits, &mut head).expect("accepted")
        {
            got = Some(read);
            break;
        }
    }

    let (end, terms) = got.expect("whole");
    assert_eq!((end, terms.framing), (text.len() - 3, Framing::Length(3)));
}

#[test]
fn a_few_empty_lines_may_come_first_and_no_more() {
    let (mut head, mut response, limits) = (
        RequestHead::new(),
        ResponseHead::default(),
        Limits::default(),
    );

    for lines in [1, 2] {
        let empty = "\r\n".repeat(lines);
        assert_eq!(
            status(format!("{empty}GET / HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()),
            200
        );

        let answer = format!("{empty}HTTP/1.1 200 OK\r\n\r\n");
        assert!(
            read_response(answer.as_bytes(), &mut 0, &limits, "GET", &mut response)
                .is_ok_and(|read| read.is_some())
        );
    }

    // Whoever sends nothing else is refused long before the limit of a head, and looked at no
    // further.
    for pieces in [&["\r\n"; 10][..], &["\n"; 30], &["\r\n\r\n"; 5]] {
        let (mut sent, mut scanned, mut scanned_response) = (String::new(), 0, 0);
        let (mut refused, mut refused_response) = (false, false);
        for piece in pieces {
            sent.push_str(piece);
            refused |= read_request(sent.as_bytes(), &mut scanned, &limits, &mut head).is_err();
            let read = read_response(
                sent.as_bytes(),
                &mut scanned_response,
                &limits,
                "GET",
                &mut response,
            );

            refused_response |= read.is_err();
        }

        assert!(refused && refused_response, "{pieces:?}");
    }
}

#[test]
fn what_is_ambiguous_is_refused() {
    for (text, wanted) in [
        (&b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"[..], 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 5,5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nhost: a\r\n\r\n", 426),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx : 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: 1\ry\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nhost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", 400),
        (b"GET http:/// HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nexpect: coffee\r\n\r\n", 417),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET", 0),
        (b"\r\n", 0),
    ] {
        assert_eq!(status(text), wanted, "{}", String::from_utf8_lossy(text));
    }
}

#[test]
fn long_heads_end_with_414_or_431() {
    let mut line = b"GET /".to_vec();
    line.resize(70_000, b'a');
    assert_eq!(status(&line), 414);
    let mut many = b"GET / HTTP/1.1\r\nhost: a\r\n".to_vec();
    for _ in 0..200 {
        many.extend_from_slice(b"x: y\r\n");
    }
    many.extend_from_slice(b"\r\n");
    assert_eq!(status(&many), 431);
    let mut large = b"GET / HTTP/1.1\r\nhost: a\r\nx: ".to_vec();
    large.resize(70_000, b'a');
    assert_eq!(status(&large), 431);
}

#[test]
fn a_name_that_a_head_cannot_hold_is_refused() {
    // `max_request_headers_kb: 8192` lets it through; cut to 16 bits it would be `authorization`.
    let limits = Limits {
        head_bytes: 8192 * 1024,
        ..Limits::default()
    };
    let mut name = b"authorization".to_vec();
    name.resize(name.len() + (1 << 16), b'a');

    let mut text = b"GET / HTTP/1.1\r\nhost: a\r\n".to_vec();
    text.extend_from_slice(&name);
    text.extend_from_slice(b": x\r\n\r\n");
    let refusal = read_request(&text, &mut 0, &limits, &mut RequestHead::new()).err();
    assert_eq!(refusal.map(|refusal| refusal.status), Some(431));

    let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
    text.extend_from_slice(&name);
    text.extend_from_slice(b": x\r\n\r\n");
    let mut head = ResponseHead::default();
    assert!(read_response(&text, &mut 0, &limits, "GET", &mut head).is_err());
}

#[test]
fn an_absolute_target_decides_the_one_host() {
    let (head, _) = request(b"GET http://b:80/x?y HTTP/1.1\r\nhost: a\r\n\r\n")
        .expect("accepted")
        .expect("whole");
    assert_eq!((head.authority(), head.path()), ("b:80", "/x?y"));
    let (head, _) = request(b"GET http://b HTTP/1.1\r\nhost: a\r\n\r\n")
        .expect("accepted")
        .expect("whole");
    assert_eq!((head.authority(), head.path()), ("b", "/"));
}

#[test]
fn responses_are_read_as_strictly() {
    let read = |text: &[u8], method: &str| {
        let mut head = ResponseHead::default();
        read_response(text, &mut 0, &Limits::default(), method, &mut head)
            .map(|r| r.map(|(_, terms)| (head, terms)))
    };

    let (head, terms) = read(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n",
        "GET",
    )
    .expect("ok")
    .expect("whole");

    assert_eq!(
        (head.status, terms.framing, terms.keep_alive),
        (200, Framing::Length(5), true)
    );

    let framing = |text: &[u8], method: &str| read(text, method).expect("ok").expect("whole").1;
    assert_eq!(
        framing(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "HEAD").framing,
        Framing::Empty
    );

    assert_eq!(
        framing(
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
            "GET"
        )
        .framing,
        Framing::Empty
    );

    assert_eq!(
        framing(
            b"HTTP/1.1 200 OK\ncontent-length: 5\r\nx: y\n\nhello",
            "GET"
        )
        .framing,
        Framing::Length(5)
    );

    let until_close = framing(b"HTTP/1.1 200\r\n\r\n", "GET");
    assert!(until_close.framing == Framing::UntilClose && !until_close.keep_alive);
    assert!(!framing(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", "GET").keep_alive);
    let alive = framing(
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n",
        "GET",
    );

    assert!(alive.keep_alive);
    let chunks = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunked = framing(chunks, "GET");
    assert!(
        chunked.framing == Framing::Chunked && !chunked.keep_alive,
        "RFC 9112 §6.1"
    );

    let fields = |n: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(n)).into_bytes();
    assert!(read(&fields(100), "GET").is_ok());
    assert_eq!(
        read(&fields(101), "GET").expect_err("too many").details,
        "http1.too_many_headers"
    );

    for bad in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: 1\r\n y\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"220 mail.example ESMTP",
    ] {
        assert!(
            read(bad, "GET").is_err(),
            "{}",
            String::from_utf8_lossy(bad)
        );
    }
}
