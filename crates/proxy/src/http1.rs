//! HTTP/1.1, strict by RFC 9112: ambiguous messages are refused, on both sides.
//!
//! [`codec`] reads heads, [`body`] reads bodies, [`input`] holds bytes that were read and not used,
//! [`server`] serves a downstream connection, [`client`] speaks to an upstream.

pub mod body;
pub mod client;
pub mod codec;
pub mod input;
#[cfg(test)]
mod laws;
#[cfg(any(test, feature = "fuzzing"))]
pub mod replay;
pub mod server;
