//! Fields that are about the connection and the length of a body, not about the message.

use meltemi_filters::head::{Fields, Known};

use super::{Framing, Refusal, refuse};

/// The most names in `connection`; no real client comes near it.
pub(super) const MAX_NOMINATED: usize = 32;

/// What `connection` says.
#[derive(Default)]
pub(super) struct Connection {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// How many other fields it names.
    pub nominated: usize,
}

impl Connection {
    pub fn read(&mut self, value: &[u8]) {
        for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            match token.len() {
                0 => {}
                5 if token.eq_ignore_ascii_case(b"close") => self.close = true,
                10 if token.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                7 if token.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                _ => self.nominated += 1,
            }
        }
    }
}

/// Removes the fields that `connection` names, RFC 9110 §7.6.1. Fields of the mesh stay: a client
/// could otherwise take away what proxies have set, or what policies match.
pub(super) fn remove_nominated(fields: &mut Fields, value: &[u8]) {
    for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
        let name = token.to_ascii_lowercase();
        let ours = name.starts_with(b"x-envoy-") || name.starts_with(b"x-forwarded-");
        if let (Known::Other, false, Ok(name)) =
            (Known::of(&name), ours, std::str::from_utf8(&name))
        {
            fields.remove(name);
        }
    }
}

/// Whether a comma-separated list holds a token.
pub(super) fn has_token(value: &[u8], token: &[u8]) -> bool {
    value
        .split(|b| *b == b',')
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

/// What `content-length` and `transfer-encoding` say. RFC 9112 §6.3.
#[derive(Default)]
pub(super) struct Lengths {
    length: Option<u64>,
    pub chunked: bool,
}

impl Lengths {
    pub fn length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let digits = !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit);
        let parsed = std::str::from_utf8(value)
            .ok()
            .filter(|_| digits)
            .and_then(|text| text.parse().ok());

        match (parsed, self.length, self.chunked) {
            (Some(length), None, false) => {
                self.length = Some(length);
                Ok(())
            }
            (_, _, true) => Err(refuse("http1.content_length_and_chunked_not_allowed")),
            _ => Err(refuse("http1.invalid_content_length")),
        }
    }

    pub fn coding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.length.is_some() {
            return Err(refuse("http1.content_length_and_chunked_not_allowed"));
        }
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal {
                status: 501,
                details: "http1.invalid_transfer_encoding",
            });
        }

        self.chunked = true;

        Ok(())
    }

    pub fn framing(&self, without: Framing) -> Framing {
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
pub fn strip_hop_by_hop(fields: &mut Fields) {
    for known in [
        Known::Connection,
        Known::KeepAlive,
        Known::ProxyConnection,
        Known::TransferEncoding,
        Known::Upgrade,
    ] {
        fields.remove_known(known);
    }
}
