//! Heads of requests and responses: one flat byte arena and a small index of fields.
//!
//! A head is read once, changed by filters, and written once, so nothing here is a map. Names are
//! lower case in the arena (as Envoy forwards them), values are bytes. Removing a field drops its
//! index entry; setting one writes the new bytes at the arena's end. Fields that nobody touched are
//! written out in runs, a whole stretch of the arena at a time. Heads are pooled: [`Fields::clear`]
//! keeps the memory.
//!
//! `:method`, `:path`, `:authority`, `:scheme` and `:status` are answered by [`RequestHead::get`]
//! and [`ResponseHead::get`] like any field, because configuration names them so. There is never a
//! `host` field: the authority is the one host for routing, authorization and forwarding.

mod fields;
mod known;
mod reason;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use fields::{Fields, MAX_NAME};
pub use known::Known;
pub use reason::reason;
pub use request::RequestHead;
pub use response::ResponseHead;

/// The protocol version of a head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HttpVersion {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
}

impl HttpVersion {
    /// As access logs print it: `HTTP/1.1`, `HTTP/2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Http3 => "HTTP/3",
        }
    }
}

/// `application/grpc`, alone or followed by `+` or `;`. `application/grpc-web` is another protocol.
fn is_grpc_content_type(value: &[u8]) -> bool {
    value
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
