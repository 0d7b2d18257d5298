//! Heads of responses.

use std::mem::MaybeUninit;

use meltemi_filters::head::{HttpVersion, MAX_NAME, ResponseHead};

use super::fields::{Connection, Lengths};
use super::{Framing, Limits, MAX_FIELDS, Refusal, ResponseTerms, first_line, refuse};

/// Reads a response head from the beginning of `bytes`; see [`super::read_request`]. `method` is
/// that of the request.
pub fn read_response(
    bytes: &[u8],
    scanned: &mut usize,
    limits: &Limits,
    method: &str,
    head: &mut ResponseHead,
) -> Result<Option<(usize, ResponseTerms)>, Refusal> {
    let start = first_line(bytes)?;
    let Some(end) = head_end(bytes, start, scanned) else {
        return match bytes.len() >= limits.head_bytes {
            true => Err(refuse("http1.headers_too_large")),
            false if could_be_response(&bytes[start..]) => Ok(None),
            false => Err(refuse("http1.codec_error")),
        };
    };

    if end > limits.head_bytes {
        return Err(refuse("http1.headers_too_large"));
    }
    let bytes = &bytes[..end];
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let allowed = limits.fields.min(MAX_FIELDS);
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut fields[..allowed],
    );

    match parsed {
        Ok(httparse::Status::Complete(n)) if n == end => {}
        Err(httparse::Error::TooManyHeaders) => return Err(refuse("http1.too_many_headers")),
        Ok(_) | Err(_) => return Err(refuse("http1.codec_error")),
    }

    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Err(refuse("http1.codec_error"));
    };
    if !(100..1000).contains(&status) {
        return Err(refuse("http1.invalid_status"));
    }
    let at = |part: &[u8]| part.as_ptr() as usize - bytes.as_ptr() as usize;
    head.load(bytes, status);
    head.version = if minor == 0 {
        HttpVersion::Http10
    } else {
        HttpVersion::Http11
    };

    let mut connection = Connection::default();
    let mut body = Lengths::default();
    for field in response.headers.iter() {
        let (name, value) = (field.name.as_bytes(), field.value);
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                connection.read(value);
                continue;
            }
            10 if name.eq_ignore_ascii_case(b"keep-alive") => continue,
            16 if name.eq_ignore_ascii_case(b"proxy-connection") => continue,
            7 if status != 101 && name.eq_ignore_ascii_case(b"upgrade") => continue,
            7 if name.eq_ignore_ascii_case(b"trailer") => continue,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                body.length(value)?;
                // RFC 9110 §8.6: there may be none; a peer that has none of both would misread what
                // follows.
                if status < 200 || status == 204 {
                    continue;
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                body.coding(value)?;
                continue;
            }
            length if length > MAX_NAME => return Err(refuse("http1.headers_too_large")),
            _ => {}
        }

        head.fields_mut()
            .push_loaded(at(name), name.len(), at(value), value.len());
    }

    let no_body = method == "HEAD" || status < 200 || status == 204 || status == 304;
    let framing = if no_body {
        Framing::Empty
    } else {
        body.framing(Framing::UntilClose)
    };

    // RFC 9112 §6.1: chunks of HTTP/1.0 are read, as Envoy does, and then the connection is done.
    let may_persist = if minor == 1 {
        true
    } else {
        connection.keep_alive && !body.chunked
    };

    // After a 101 the connection speaks another protocol.
    let persistent = may_persist && !connection.close && status != 101;

    Ok(Some((
        end,
        ResponseTerms {
            framing,
            keep_alive: persistent && framing != Framing::UntilClose,
        },
    )))
}

/// Where a head ends in `bytes`, looking on from `from`; its first line begins at `start`. Old
/// programs end lines without CR (RFC 9112 §2.2); what follows a response is its sender's own, so
/// that nothing can be smuggled in by it.
fn head_end(bytes: &[u8], start: usize, from: &mut usize) -> Option<usize> {
    let mut at = *from;
    while let Some(step) = memchr::memchr(b'\n', &bytes[at..]) {
        let line = bytes[..at + step]
            .strip_suffix(b"\r")
            .unwrap_or(&bytes[..at + step]);
        // An empty line ends the head, but for empty lines before the first.
        if line.last() == Some(&b'\n') && start < line.len() {
            return Some(at + step + 1);
        }
        at += step + 1;
    }

    *from = at;

    None
}

/// Whether the beginning of a first line begins with a version.
fn could_be_response(line: &[u8]) -> bool {
    line.iter()
        .zip(b"HTTP/1.")
        .all(|(byte, wanted)| byte == wanted)
}
