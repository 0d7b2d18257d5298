//! Heads of HTTP/1.1 messages: bytes in, a head and its framing out.

use std::mem::MaybeUninit;

use meltemi_filters::head::{HttpVersion, Known, RequestHead, ResponseHead};

/// How much of a head a peer may make us hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a whole head; Envoy: max_request_headers_kb, 60.
    pub head_bytes: usize,
    /// Field lines; Envoy: max_headers_count, 100.
    pub fields: usize,
    /// Whether HTTP/1.0 is served; Envoy: accept_http_10.
    pub http10: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes: 60 * 1024, fields: 100, http10: false }
    }
}

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
    Refusal { status: 400, details }
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

/// Where a head ends in `bytes`, looking on from `from`. A line that ends without CR is refused at once.
fn head_end(bytes: &[u8], from: &mut usize) -> Result<Option<usize>, Refusal> {
    let mut at = *from;
    while let Some(step) = memchr::memchr(b'\n', &bytes[at..]) {
        let lf = at + step;
        if lf == 0 || bytes[lf - 1] != b'\r' {
            return Err(refuse("http1.codec_error"));
        }
        // An empty line ends the head, but for empty lines before the first.
        if lf >= 3 && bytes[lf - 2] == b'\n' && !bytes[..lf - 1].iter().all(|b| matches!(b, b'\r' | b'\n')) {
            return Ok(Some(lf + 1));
        }
        at = lf + 1;
    }
    *from = at;
    Ok(None)
}

/// Whether the beginning of a head begins with a method. RFC 9110 §9.1, and empty lines before it: RFC 9112 §2.2.
fn could_be_request(bytes: &[u8]) -> bool {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let method = bytes[start..].iter().take_while(|b| **b != b' ');
    method.take(32).all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// Whether the beginning of a head begins with a version.
fn could_be_response(bytes: &[u8]) -> bool {
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    bytes[start..].iter().zip(b"HTTP/1.").all(|(byte, wanted)| byte == wanted)
}

/// RFC 9110 §15.5.15: 414 if the first line alone was too long.
fn too_large(bytes: &[u8], limits: &Limits) -> Refusal {
    let start = &bytes[..limits.head_bytes.min(bytes.len())];
    let status = if memchr::memchr(b'\n', start).is_none() { 414 } else { 431 };
    Refusal { status, details: "http1.headers_too_large" }
}

/// Reads a request head from the beginning of `bytes`. `scanned` remembers how far earlier calls looked; start with 0.
/// `None`: more bytes are needed. Otherwise how many bytes the head takes.
pub fn read_request(
    bytes: &[u8],
    scanned: &mut usize,
    limits: &Limits,
    head: &mut RequestHead,
) -> Result<Option<(usize, RequestTerms)>, Refusal> {
    let Some(end) = head_end(bytes, scanned)? else {
        return match bytes.len() >= limits.head_bytes {
            true => Err(too_large(bytes, limits)),
            false if could_be_request(bytes) => Ok(None),
            // Whoever speaks something else need not be waited for.
            false => Err(refuse("http1.codec_error")),
        };
    };
    if end > limits.head_bytes {
        return Err(too_large(bytes, limits));
    }
    let bytes = &bytes[..end];
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let allowed = limits.fields.min(MAX_FIELDS);
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut fields[..allowed]) {
        Ok(httparse::Status::Complete(n)) if n == end => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal { status: 431, details: "http1.too_many_headers" });
        }
        Ok(_) | Err(_) => return Err(refuse("http1.codec_error")),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(refuse("http1.codec_error"));
    };
    if minor == 0 && !limits.http10 {
        return Err(Refusal { status: 426, details: "low_version" });
    }
    if !target.bytes().all(|b| b > 0x20 && b < 0x7f) {
        return Err(refuse("http1.invalid_url"));
    }
    let at = |part: &[u8]| part.as_ptr() as usize - bytes.as_ptr() as usize;
    head.load(bytes, (at(method.as_bytes()), method.len()), (at(target.as_bytes()), target.len()));
    head.version = if minor == 0 { HttpVersion::Http10 } else { HttpVersion::Http11 };

    let mut connection = Connection::default();
    let mut body = Lengths::default();
    let (mut host, mut expects_continue, mut upgrade) = (None, false, None);
    for field in request.headers.iter() {
        let (name, value) = (field.name.as_bytes(), field.value);
        // The name as it came; a switch on its length keeps this cheap for the many that are of no interest.
        match name.len() {
            2 if name.eq_ignore_ascii_case(b"te") => {
                if has_token(value, b"trailers") {
                    head.fields_mut().append("te", b"trailers");
                }
                continue;
            }
            4 if name.eq_ignore_ascii_case(b"host") => {
                if host.replace(value).is_some() {
                    return Err(refuse("http1.duplicate_host"));
                }
                continue;
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal { status: 417, details: "http1.unknown_expectation" });
                }
                expects_continue = minor == 1;
                continue;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                upgrade = Some(value);
                continue;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                connection.read(value);
                continue;
            }
            10 if name.eq_ignore_ascii_case(b"keep-alive") => continue,
            16 if name.eq_ignore_ascii_case(b"proxy-connection") => continue,
            14 if name.eq_ignore_ascii_case(b"content-length") => body.length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                body.coding(value)?;
                continue;
            }
            _ => {}
        }
        head.fields_mut().push_loaded(at(name), name.len(), at(value), value.len());
    }
    place(head, method, target, host, minor)?;
    if body.chunked && minor == 0 {
        return Err(refuse("http1.transfer_encoding_in_http10"));
    }
    let upgrade = match upgrade {
        Some(value) if connection.upgrade => {
            head.fields_mut().append("upgrade", value);
            true
        }
        _ => false,
    };
    let terms = RequestTerms {
        framing: body.framing(Framing::Empty),
        keep_alive: if minor == 1 { !connection.close } else { connection.keep_alive && !connection.close },
        expects_continue,
        upgrade,
    };
    if upgrade && body.chunked {
        return Err(refuse("http1.upgrade_with_body"));
    }
    Ok(Some((end, terms)))
}

/// Decides path and authority: RFC 9112 §3.2, with one host for everything that follows.
fn place(head: &mut RequestHead, method: &str, target: &str, host: Option<&[u8]>, minor: u8) -> Result<(), Refusal> {
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
    let Some((scheme, rest)) = target.split_once("://") else { return Err(refuse("http1.invalid_url")) };
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
                || matches!(b, b'.' | b'-' | b'_' | b'~' | b':' | b'[' | b']' | b'%' | b'!' | b'$' | b'&' | b'\'')
                || matches!(b, b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
        })
}

/// Reads a response head from the beginning of `bytes`; see [`read_request`]. `method` is that of the request.
pub fn read_response(
    bytes: &[u8],
    scanned: &mut usize,
    limits: &Limits,
    method: &str,
    head: &mut ResponseHead,
) -> Result<Option<(usize, ResponseTerms)>, Refusal> {
    let Some(end) = head_end(bytes, scanned)? else {
        return match bytes.len() >= limits.head_bytes {
            true => Err(refuse("http1.headers_too_large")),
            false if could_be_response(bytes) => Ok(None),
            false => Err(refuse("http1.codec_error")),
        };
    };
    if end > limits.head_bytes {
        return Err(refuse("http1.headers_too_large"));
    }
    let bytes = &bytes[..end];
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut fields);
    match parsed {
        Ok(httparse::Status::Complete(n)) if n == end => {}
        Ok(_) | Err(_) => return Err(refuse("http1.codec_error")),
    }
    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Err(refuse("http1.codec_error"));
    };
    if !(100..600).contains(&status) {
        return Err(refuse("http1.invalid_status"));
    }
    let at = |part: &[u8]| part.as_ptr() as usize - bytes.as_ptr() as usize;
    head.load(bytes, status);
    head.version = if minor == 0 { HttpVersion::Http10 } else { HttpVersion::Http11 };
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
                // RFC 9110 §8.6: there may be none; a peer that has none of both would misread what follows.
                if status < 200 || status == 204 {
                    continue;
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                body.coding(value)?;
                continue;
            }
            _ => {}
        }
        head.fields_mut().push_loaded(at(name), name.len(), at(value), value.len());
    }
    let no_body = method == "HEAD" || status < 200 || status == 204 || status == 304;
    let framing = if no_body { Framing::Empty } else { body.framing(Framing::UntilClose) };
    let persistent = if minor == 1 { !connection.close } else { connection.keep_alive && !connection.close };
    Ok(Some((end, ResponseTerms { framing, keep_alive: persistent && framing != Framing::UntilClose })))
}

#[derive(Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Connection {
    // Fields that the peer nominates here are not removed: it could strip what proxies before us have set.
    fn read(&mut self, value: &[u8]) {
        self.close |= has_token(value, b"close");
        self.keep_alive |= has_token(value, b"keep-alive");
        self.upgrade |= has_token(value, b"upgrade");
    }
}

/// Whether a comma-separated list holds a token.
fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|b| *b == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

#[derive(Default)]
struct Lengths {
    length: Option<u64>,
    chunked: bool,
}

impl Lengths {
    fn length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let digits = !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit);
        let parsed = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        match (parsed, self.length, self.chunked) {
            (Some(length), None, false) => {
                self.length = Some(length);
                Ok(())
            }
            (_, _, true) => Err(refuse("http1.content_length_and_chunked_not_allowed")),
            _ => Err(refuse("http1.invalid_content_length")),
        }
    }

    fn coding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.length.is_some() {
            return Err(refuse("http1.content_length_and_chunked_not_allowed"));
        }
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal { status: 501, details: "http1.invalid_transfer_encoding" });
        }
        self.chunked = true;
        Ok(())
    }

    fn framing(&self, without: Framing) -> Framing {
        match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::Empty,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => without,
        }
    }
}

/// Writes the framing that a body of unknown length needs, and ends the head.
pub fn end_head(out: &mut Vec<u8>, chunked: bool, close: bool) {
    if chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Drops what must not cross from another protocol into an HTTP/1.1 head.
pub fn strip_hop_by_hop(fields: &mut meltemi_filters::head::Fields) {
    for known in [Known::Connection, Known::KeepAlive, Known::ProxyConnection, Known::TransferEncoding, Known::Upgrade]
    {
        fields.remove_known(known);
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!((head.method(), head.path(), head.authority()), ("GET", "/a?b", "reviews:9080"));
        assert!(terms.keep_alive && terms.framing == Framing::Empty);
        let mut out = Vec::new();
        head.write_h1(&mut out);
        assert_eq!(out, b"GET /a?b HTTP/1.1\r\nhost: reviews:9080\r\nuser-agent: x\r\nfoo: 1\r\n");
    }

    #[test]
    fn a_head_in_single_bytes_is_the_same_head() {
        let text = b"\r\nPOST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
        let (mut scanned, mut head, limits) = (0, RequestHead::new(), Limits::default());
        let mut got = None;
        for n in 1..=text.len() {
            if let Some(read) = read_request(&text[..n], &mut scanned, &limits, &mut head).expect("accepted") {
                got = Some(read);
                break;
            }
        }
        let (end, terms) = got.expect("whole");
        assert_eq!((end, terms.framing), (text.len() - 3, Framing::Length(3)));
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
    fn an_absolute_target_decides_the_one_host() {
        let (head, _) = request(b"GET http://b:80/x?y HTTP/1.1\r\nhost: a\r\n\r\n").expect("accepted").expect("whole");
        assert_eq!((head.authority(), head.path()), ("b:80", "/x?y"));
        let (head, _) = request(b"GET http://b HTTP/1.1\r\nhost: a\r\n\r\n").expect("accepted").expect("whole");
        assert_eq!((head.authority(), head.path()), ("b", "/"));
    }

    #[test]
    fn responses_are_read_as_strictly() {
        let read = |text: &[u8], method: &str| {
            let mut head = ResponseHead::default();
            read_response(text, &mut 0, &Limits::default(), method, &mut head)
                .map(|r| r.map(|(_, terms)| (head, terms)))
        };
        let (head, terms) =
            read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n", "GET").expect("ok").expect("whole");
        assert_eq!((head.status, terms.framing, terms.keep_alive), (200, Framing::Length(5), true));
        let framing = |text: &[u8], method: &str| read(text, method).expect("ok").expect("whole").1;
        assert_eq!(framing(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "HEAD").framing, Framing::Empty);
        assert_eq!(framing(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", "GET").framing, Framing::Empty);
        let until_close = framing(b"HTTP/1.1 200\r\n\r\n", "GET");
        assert!(until_close.framing == Framing::UntilClose && !until_close.keep_alive);
        assert!(!framing(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", "GET").keep_alive);
        for bad in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            b"HTTP/1.1 999 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\nx: y\n\n",
            b"HTTP/1.1 200 OK\r\nx: 1\r\n y\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"220 mail.example ESMTP",
        ] {
            assert!(read(bad, "GET").is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
