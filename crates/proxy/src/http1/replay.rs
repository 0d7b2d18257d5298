//! Runs the codec over bytes that arrive in pieces: the laws and the fuzz targets compare what it
//! makes of the same bytes cut in different places.

use meltemi_filters::head::{RequestHead, ResponseHead};
use meltemi_net::Buffers;

use super::body::BodyReader;
use super::codec::{self, Framing, Limits, Refusal};
use super::input::Input;

/// How long a head is, its terms, and the head as we would write it.
pub type Read = Result<Option<(usize, String, Vec<u8>)>, Refusal>;

/// Reads a request's head from pieces of `bytes` that end at `ends`.
pub fn request(bytes: &[u8], ends: &[usize]) -> Read {
    let limits = Limits {
        http10: true,
        ..Limits::default()
    };

    in_pieces(bytes, ends, |bytes, scanned| {
        let mut head = RequestHead::new();
        let read = codec::read_request(bytes, scanned, &limits, &mut head)?;
        Ok(read.map(|(n, terms)| {
            let mut written = Vec::new();
            head.write_h1(&mut written);
            (n, format!("{terms:?}"), written)
        }))
    })
}

/// Reads the head of the response to `method`.
pub fn response(bytes: &[u8], ends: &[usize], method: &str) -> Read {
    let limits = Limits::default();
    in_pieces(bytes, ends, |bytes, scanned| {
        let mut head = ResponseHead::default();
        let read = codec::read_response(bytes, scanned, &limits, method, &mut head)?;
        Ok(read.map(|(n, terms)| {
            let mut written = Vec::new();
            head.write_h1(&mut written);
            (n, format!("{terms:?}"), written)
        }))
    })
}

/// Stops at the first piece that settles the head.
fn in_pieces<T>(
    bytes: &[u8],
    ends: &[usize],
    mut read: impl FnMut(&[u8], &mut usize) -> Result<Option<T>, Refusal>,
) -> Result<Option<T>, Refusal> {
    let mut scanned = 0;
    for end in ends {
        if let Some(decided) = read(&bytes[..*end], &mut scanned)? {
            return Ok(Some(decided));
        }
    }

    Ok(None)
}

/// What an upstream relies on: the framing, the method, the path and the authority.
pub type Meaning = (Framing, String, String, String);

/// What an accepted request means, and what it means after we wrote it and read it again, which
/// must be the same: else our upstream would read another request than the filters saw. `None` if
/// the request is not accepted; the second is `Err` if we would refuse what we wrote.
pub fn request_written_again(
    bytes: &[u8],
) -> Option<(Result<Meaning, String>, Result<Meaning, String>)> {
    let limits = Limits {
        http10: true,
        ..Limits::default()
    };
    let mut head = RequestHead::new();
    let (_, terms) = codec::read_request(bytes, &mut 0, &limits, &mut head).ok()??;

    let mut written = Vec::new();
    head.write_h1(&mut written);
    codec::end_head(&mut written, terms.framing == Framing::Chunked, false);

    // A head at the limits of the first reader may grow beyond them: by a Host field that HTTP/1.0
    // left out, and by the blank after each colon.
    let wider = Limits {
        head_bytes: 2 * limits.head_bytes,
        fields: limits.fields + 1,
        http10: false,
    };
    let mut again = RequestHead::new();
    let read = codec::read_request(&written, &mut 0, &wider, &mut again);
    let second = match read {
        Ok(Some((n, terms))) if n == written.len() => Ok(meaning(&again, terms.framing)),
        other => Err(format!(
            "{other:?} of {}",
            String::from_utf8_lossy(&written)
        )),
    };

    Some((Ok(meaning(&head, terms.framing)), second))
}

fn meaning(head: &RequestHead, framing: Framing) -> Meaning {
    (
        framing,
        head.method().to_owned(),
        head.path().to_owned(),
        head.authority().to_owned(),
    )
}

/// A body's payload and how it ended: with so many bytes left over, broken, or wanting more.
pub fn body(
    bytes: &[u8],
    ends: &[usize],
    framing: Framing,
) -> (Vec<u8>, Result<Option<usize>, String>) {
    let reader = BodyReader::new(framing);
    let (mut payload, mut waiting, mut from) = (Vec::new(), Vec::new(), 0);
    for end in ends {
        waiting.extend_from_slice(&bytes[from..*end]);
        from = *end;
        let mut input = Input::new(Buffers::new(64), std::mem::take(&mut waiting));
        loop {
            match reader.advance(&mut input) {
                Err(error) => return (payload, Err(error.to_string())),
                Ok(Some(0)) => {
                    return (payload, Ok(Some(input.bytes().len() + bytes.len() - from)));
                }
                Ok(Some(n)) => {
                    payload.extend_from_slice(&input.bytes()[..n]);
                    reader.consume(&mut input, n);
                }
                Ok(None) => break,
            }
        }

        waiting = input.take();
    }

    (payload, Ok(None))
}

/// A chunked body read without state or limits (RFC 9112 §7.1): the payload, and how many bytes
/// follow the body. `None` if it is broken or unfinished.
pub fn naive_chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut payload = Vec::new();
    loop {
        let (line, rest) = line(bytes)?;
        let digits = line.split(|byte| *byte == b';').next()?;
        let digits = std::str::from_utf8(digits.trim_ascii_end()).ok()?;
        let size = usize::from_str_radix(digits, 16).ok()?;
        bytes = rest;
        if size == 0 {
            break;
        }

        payload.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }

    // The trailer section ends with an empty line.
    loop {
        let (trailer, rest) = line(bytes)?;
        bytes = rest;
        if trailer.is_empty() {
            return Some((payload, bytes.len()));
        }
    }
}

/// The bytes before the first CRLF and those after it.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], &bytes[end + 2..]))
}
