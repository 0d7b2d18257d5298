//! Heads of HTTP/1.1 messages: bytes in, a head and its framing out.

mod fields;
mod response;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use fields::{Connection, Lengths, MAX_NOMINATED, has_token, remove_nominated};
pub use fields::{end_head, strip_hop_by_hop};
use meltemi_filters::head::{HttpVersion, MAX_NAME, RequestHead};
pub use response::read_response;

/// How much of a head a peer may make us hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a whole head. Envoy: `max_request_headers_kb`, 60; of answers 80.
    pub head_bytes: usize,
    /// Field lines; Envoy: max_headers_count, 100.
    pub fields: usize,
    /// Whether HTTP/1.0 is served; Envoy: accept_http_10.
    pub http10: bool,
}

impl Default for Limits {
    /// Of requests.
    fn default() -> Self {
        Self {
            head_bytes: 60 * 1024,
            fields: 100,
            http10: false,
        }
    }
}

impl Limits {
    /// Of answers, of so many fields.
    pub fn of_answers(fields: u32) -> Self {
        Self {
            head_bytes: MAX_ANSWER_HEAD as usize,
            fields: fields as usize,
            ..Self::default()
        }
    }
}

/// Bytes of an answer's head, whatever carries it. Source: Envoy's default of
/// `max_response_headers_kb` for HTTP/1.1.
pub const MAX_ANSWER_HEAD: u32 = 80 * 1024;

/// Bytes of empty lines that may come before a head. RFC 9112 §2.2 asks for one at least; nobody
/// honest sends many.
const MAX_EMPTY: usize = 8;

/// The most field lines any limit can allow.
const MAX_FIELDS: usize = 256;

/// Why a head is refused, with the status that says so and Envoy's details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// For a request: the status of the answer. For a response it is always answered with 502.
    pub status: u16,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: &'static str,
}

const fn refuse(details: &'static str) -> Refusal {
    Refusal {
        status: 400,
        details,
    }
}

/// How long a message body is. RFC 9112 §6.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// As many bytes.
    Length(u64),
    /// Until the last chunk.
    Chunked,
    /// Until the connection ends; responses only.
    UntilClose,
}

/// What a request head says about its message and connection.
#[derive(Debug, Clone, Copy)]
pub struct RequestTerms {
    /// Its body.
    pub framing: Framing,
    /// Whether another request may follow.
    pub keep_alive: bool,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// The client asks for an upgrade (its protocol stays in the field `upgrade`).
    pub upgrade: bool,
}

/// What a response head says about its message and connection.
#[derive(Debug, Clone, Copy)]
pub struct ResponseTerms {
    /// Its body.
    pub framing: Framing,
    /// Whether the connection may carry another request.
    pub keep_alive: bool,
}

/// Where the first line begins, after empty ones, or the end of `bytes`.
fn first_line(bytes: &[u8]) -> Result<usize, Refusal> {
    let empty = bytes
        .iter()
        .take(MAX_EMPTY + 1)
        .take_while(|b| matches!(b, b'\r' | b'\n'))
        .count();

    if empty > MAX_EMPTY {
        Err(refuse("http1.codec_error"))
    } else {
        Ok(empty)
    }
}

/// Where a head ends in `bytes`, looking on from `from`; its first line begins at `start`. A line
/// that ends without CR is refused at once.
fn head_end(bytes: &[u8], start: usize, from: &mut usize) -> Result<Option<usize>, Refusal> {
    let mut at = *from;
    while let Some(step) = memchr::memchr(b'\n', &bytes[at..]) {
        let lf = at + step;
        if lf == 0 || bytes[lf - 1] != b'\r' {
            return Err(refuse("http1.codec_error"));
        }
        // An empty line ends the head, but for empty lines before the first.
        if lf >= 3 && bytes[lf - 2] == b'\n' && start < lf - 1 {
            return Ok(Some(lf + 1));
        }
        at = lf + 1;
    }

    *from = at;

    Ok(None)
}

/// Whether the beginning of a first line begins with a method. RFC 9110 §9.1.
fn could_be_request(line: &[u8]) -> bool {
    let method = line.iter().take_while(|b| **b != b' ');
    method
        .take(32)
        .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// RFC 9110 §15.5.15: 414 if the first line alone was too long.
fn too_large(bytes: &[u8], limits: &Limits) -> Refusal {
    let start = &bytes[..limits.head_bytes.min(bytes.len())];
    let status = if memchr::memchr(b'\n', start).is_none() {
        414
    } else {
        431
    };

    Refusal {
        status,
        details: "http1.headers_too_large",
    }
}

/// Where a whole request head ends in `bytes`; `None`: more bytes are needed.
fn whole_head(
    bytes: &[u8],
    scanned: &mut usize,
    limits: &Limits,
) -> Result<Option<usize>, Refusal> {
    let start = first_line(bytes)?;
    match head_end(bytes, start, scanned)? {
        Some(end) if end > limits.head_bytes => Err(too_large(bytes, limits)),
        Some(end) => Ok(Some(end)),
        None if bytes.len() >= limits.head_bytes => Err(too_large(bytes, limits)),
        None if could_be_request(&bytes[start..]) => Ok(None),
        // A peer that speaks another protocol need not be waited for.
        None => Err(refuse("http1.codec_error")),
    }
}

/// Method, target and minor version of a request's first line.
fn request_line<'b>(
    request: &httparse::Request<'_, 'b>,
    limits: &Limits,
) -> Result<(&'b str, &'b str, u8), Refusal> {
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(refuse("http1.codec_error"));
    };

    if minor == 0 && !limits.http10 {
        return Err(Refusal {
            status: 426,
            details: "low_version",
        });
    }
    if !target.bytes().all(|b| b > 0x20 && b < 0x7f) {
        return Err(refuse("http1.invalid_url"));
    }
    if !is_method(method) {
        return Err(refuse("http1.codec_error"));
    }

    Ok((method, target, minor))
}

/// What a request's fields say about its message and connection.
#[derive(Default)]
struct Seen<'b> {
    connection: Connection,
    body: Lengths,
    host: Option<&'b [u8]>,
    expects_continue: bool,
    upgrade: Option<&'b [u8]>,
}

impl<'b> Seen<'b> {
    /// Looks at one field. `false`: it is for this connection alone and does not stay in the head.
    fn field(
        &mut self,
        name: &[u8],
        value: &'b [u8],
        minor: u8,
        head: &mut RequestHead,
    ) -> Result<bool, Refusal> {
        // The name as it came; a switch on its length keeps this cheap for the many fields that are
        // of no interest here.
        match name.len() {
            2 if name.eq_ignore_ascii_case(b"te") => {
                if has_token(value, b"trailers") {
                    head.fields_mut().append("te", b"trailers");
                }
            }
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host.replace(value).is_some() {
                    return Err(refuse("http1.duplicate_host"));
                }
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal {
                        status: 417,
                        details: "http1.unknown_expectation",
                    });
                }
                self.expects_continue = minor == 1;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                // RFC 9113 §3.1: `h2c` is obsolete, and RFC 9110 §7.8 lets us ignore it. Passed on
                // it would be a way around every policy.
                self.upgrade = (!value.eq_ignore_ascii_case(b"h2c")).then_some(value);
            }
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection.read(value),
            10 if name.eq_ignore_ascii_case(b"keep-alive") => {}
            16 if name.eq_ignore_ascii_case(b"proxy-connection") => {}
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.body.length(value)?;
                return Ok(true);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.body.coding(value)?,
            // `max_request_headers_kb` may allow more than a head can hold.
            length if length > MAX_NAME => {
                return Err(Refusal {
                    status: 431,
                    details: "http1.headers_too_large",
                });
            }
            _ => return Ok(true),
        }

        Ok(false)
    }

    /// The terms of the whole head. An upgrade that the connection agrees to stays in the head.
    fn terms(self, minor: u8, head: &mut RequestHead) -> Result<RequestTerms, Refusal> {
        let (connection, body) = (self.connection, self.body);
        if body.chunked && minor == 0 {
            return Err(refuse("http1.transfer_encoding_in_http10"));
        }

        let upgrade = self.upgrade.filter(|_| connection.upgrade);
        if let Some(value) = upgrade {
            if body.chunked {
                return Err(refuse("http1.upgrade_with_body"));
            }
            head.fields_mut().append("upgrade", value);
        }

        Ok(RequestTerms {
            framing: body.framing(Framing::Empty),
            keep_alive: !connection.close && (minor == 1 || connection.keep_alive),
            expects_continue: self.expects_continue,
            upgrade: upgrade.is_some(),
        })
    }
}

/// Reads a request head from the beginning of `bytes`. `scanned` remembers how far earlier calls
/// looked; start with 0. `None`: more bytes are needed. Otherwise how many bytes the head takes.
pub fn read_request(
    bytes: &[u8],
    scanned: &mut usize,
    limits: &Limits,
    head: &mut RequestHead,
) -> Result<Option<(usize, RequestTerms)>, Refusal> {
    let Some(end) = whole_head(bytes, scanned, limits)? else {
        return Ok(None);
    };
    let bytes = &bytes[..end];
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let allowed = limits.fields.min(MAX_FIELDS);
    let mut request = httparse::Request::new(&mut []);

    match request.parse_with_uninit_headers(bytes, &mut fields[..allowed]) {
        Ok(httparse::Status::Complete(n)) if n == end => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal {
                status: 431,
                details: "http1.too_many_headers",
            });
        }
        Ok(_) | Err(_) => return Err(refuse("http1.codec_error")),
    }

    let (method, target, minor) = request_line(&request, limits)?;
    let at = |part: &[u8]| part.as_ptr() as usize - bytes.as_ptr() as usize;
    head.load(
        bytes,
        (at(method.as_bytes()), method.len()),
        (at(target.as_bytes()), target.len()),
    );
    head.version = match minor {
        0 => HttpVersion::Http10,
        _ => HttpVersion::Http11,
    };

    let mut seen = Seen::default();
    for field in request.headers.iter() {
        let (name, value) = (field.name.as_bytes(), field.value);
        if seen.field(name, value, minor, head)? {
            let fields = head.fields_mut();
            fields.push_loaded(at(name), name.len(), at(value), value.len());
        }
    }

    if seen.connection.nominated > MAX_NOMINATED {
        return Err(refuse("http1.connection_header_rejected"));
    }
    if seen.connection.nominated > 0 {
        for field in request.headers.iter() {
            if field.name.eq_ignore_ascii_case("connection") {
                remove_nominated(head.fields_mut(), field.value);
            }
        }
    }

    place(head, method, target, seen.host, minor)?;
    let terms = seen.terms(minor, head)?;

    Ok(Some((end, terms)))
}

/// Decides path and authority: RFC 9112 §3.2, with one host for everything that follows.
fn place(
    head: &mut RequestHead,
    method: &str,
    target: &str,
    host: Option<&[u8]>,
    minor: u8,
) -> Result<(), Refusal> {
    let host = match host {
        Some(host) => match std::str::from_utf8(host) {
            Ok(host) if is_authority(host) => host,
            _ => return Err(refuse("http1.invalid_host")),
        },
        None if minor == 1 => return Err(refuse("missing_host_header")),
        None => "",
    };

    if method == "CONNECT" {
        if !is_authority(target) || target.is_empty() {
            return Err(refuse("http1.invalid_url"));
        }
        head.set_authority(target);
        head.set_path("");
        return Ok(());
    }

    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        head.set_authority(host);
        return Ok(());
    }

    // Absolute form: its authority replaces Host, RFC 9112 §3.2.2.
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(refuse("http1.invalid_url"));
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(refuse("http1.invalid_scheme"));
    }
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    if authority.is_empty() || !is_authority(authority) {
        return Err(refuse("http1.invalid_url"));
    }
    head.set_authority(authority);
    if path.starts_with('/') {
        head.narrow_path(target.len() - path.len());
    } else {
        let path = format!("/{path}");
        head.set_path(&path);
    }

    Ok(())
}

/// RFC 9110 §4.2.1, as `host[:port]` without user information.
pub fn is_authority(text: &str) -> bool {
    text.len() <= 1024
        && text.bytes().all(|b| {
            b.is_ascii_alphanumeric()
                || matches!(
                    b,
                    b'.' | b'-'
                        | b'_'
                        | b'~'
                        | b':'
                        | b'['
                        | b']'
                        | b'%'
                        | b'!'
                        | b'$'
                        | b'&'
                        | b'\''
                )
                || matches!(b, b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
        })
}

/// Methods are of any letters but small ones: to some server `get` is GET, and no policy says so.
pub fn is_method(method: &str) -> bool {
    !method.bytes().any(|b| b.is_ascii_lowercase())
}
