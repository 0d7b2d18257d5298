//! Laws of the codec: no bytes are a panic, how they are cut does not change what they mean, and
//! what was written is read back.

use proptest::prelude::*;
use proptest::sample::Index;

use super::codec::{Framing, Limits};
use super::replay::{body, naive_chunks, request, request_written_again, response};

/// Parts of messages, good and bad; put together at random they get further than noise does.
const PARTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"POST /a?b HTTP/1.1\r\n",
    b"GET http://b/c HTTP/1.1\r\n",
    b"CONNECT a:80 HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET / HTTP/1.0\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 304\r\n",
    b"HTTP/1.1 101 X\r\n",
    b"host: a\r\n",
    b"host:\r\n",
    b"Content-Length: 5\r\n",
    b"content-length: 0\r\n",
    b"content-length: +1\r\n",
    b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: gzip, chunked\r\n",
    b"connection: close\r\n",
    b"connection: keep-alive, x, upgrade\r\n",
    b"upgrade: websocket\r\n",
    b"expect: 100-continue\r\n",
    b"te: trailers\r\n",
    b"x: y\r\n",
    b"x : y\r\n",
    b" folded\r\n",
    b"x: \xff\r\n",
    b"x: \0\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b":",
    b"5\r\nhello\r\n",
    b"A;x=y\r\n0123456789\r\n",
    b"0\r\n",
    b"fffffffffffffff\r\n",
    b"hello",
];

fn message() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        8 => prop::sample::select(PARTS).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..10),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

/// A message that is well formed as far as its head goes.
fn whole_message() -> impl Strategy<Value = Vec<u8>> {
    let field = prop::sample::select(&PARTS[12..23]).prop_map(<[u8]>::to_vec);
    (
        prop::sample::select(&PARTS[..6]),
        prop::collection::vec(field, 0..5),
        message(),
    )
        .prop_map(|(line, fields, body)| {
            [line, b"host: a\r\n", &fields.concat(), b"\r\n", &body].concat()
        })
}

fn ends(length: usize, cuts: &[Index]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(length + 1)).collect();
    ends.push(length);
    ends.sort_unstable();
    ends
}

proptest! {
    #[test]
    fn a_request_is_the_same_however_it_is_cut(
        bytes in prop_oneof![message(), whole_message()],
        cuts in prop::collection::vec(any::<Index>(), 0..6),
    ) {
        let whole = request(&bytes, &[bytes.len()]);
        prop_assert_eq!(request(&bytes, &ends(bytes.len(), &cuts)), whole, "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_response_is_the_same_however_it_is_cut(
        bytes in message(),
        cuts in prop::collection::vec(any::<Index>(), 0..6),
        method in prop::sample::select(vec!["GET", "HEAD"]),
    ) {
        let whole = response(&bytes, &[bytes.len()], method);
        prop_assert_eq!(response(&bytes, &ends(bytes.len(), &cuts), method), whole);
    }

    #[test]
    fn a_body_is_the_same_however_it_is_cut(
        bytes in message(),
        cuts in prop::collection::vec(any::<Index>(), 0..6),
        framing in prop::sample::select(vec![Framing::Chunked, Framing::Length(20), Framing::UntilClose, Framing::Empty]),
    ) {
        let whole = body(&bytes, &[bytes.len()], framing);
        prop_assert_eq!(body(&bytes, &ends(bytes.len(), &cuts), framing), whole);
    }

    #[test]
    fn chunks_are_what_a_naive_parser_finds(
        parts in prop::collection::vec(prop::sample::select(&PARTS[27..]), 0..8),
    ) {
        let bytes = parts.concat();
        if let (payload, Ok(Some(left))) = body(&bytes, &[bytes.len()], Framing::Chunked) {
            prop_assert_eq!(naive_chunks(&bytes), Some((payload, left)));
        }
    }

    #[test]
    fn chunks_are_read_back_as_they_were_written(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..6),
        cuts in prop::collection::vec(any::<Index>(), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut bytes = Vec::new();
        for piece in &pieces {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes.extend_from_slice(&tail);
        let read = body(&bytes, &ends(bytes.len(), &cuts), Framing::Chunked);
        prop_assert_eq!(read, (pieces.concat(), Ok(Some(tail.len()))));
    }

    /// What was let in once is let in again, and means the same: nothing that we write can be read
    /// in two ways.
    #[test]
    fn a_head_that_was_written_is_read_back(bytes in whole_message()) {
        if let Some((first, again)) = request_written_again(&bytes) {
            prop_assert_eq!(again, first, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}

/// An HTTP/1.0 request may leave Host out; we write the field.
#[test]
fn a_head_with_as_many_fields_as_allowed_is_read_back_with_a_host_field_more() {
    let fields = "x: 1\r\n".repeat(Limits::default().fields);
    let bytes = format!("GET / HTTP/1.0\r\n{fields}\r\n");
    let (first, again) = request_written_again(bytes.as_bytes()).expect("accepted");
    assert_eq!(again, first);
}
