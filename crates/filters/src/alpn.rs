//! Istio's `istio.alpn`: the ALPN list that a request offers to its upstream, by the protocol that
//! it will speak there.

use meltemi_proto::istio::AlpnConfig;

use crate::finding::{Rejection, Scope};

/// ALPN lists by upstream protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlpnOverrides {
    /// For requests that go up as HTTP/1.0.
    pub http10: Box<[Box<str>]>,
    /// For requests that go up as HTTP/1.1.
    pub http11: Box<[Box<str>]>,
    /// For requests that go up as HTTP/2.
    pub http2: Box<[Box<str>]>,
}

impl AlpnOverrides {
    /// Compiles Istio's message; an unknown upstream protocol is warned of.
    pub fn compile(message: &AlpnConfig, scope: &mut Scope) -> Result<Self, Rejection> {
        let mut overrides = Self::default();
        for entry in &message.alpn_override {
            let list = entry
                .alpn_override
                .iter()
                .map(|name| name.as_str().into())
                .collect();

            match entry.upstream_protocol {
                0 => overrides.http10 = list,
                1 => overrides.http11 = list,
                2 => overrides.http2 = list,
                other => scope.warn(
                    "alpn_override",
                    format!("unknown upstream protocol {other}"),
                ),
            }
        }

        Ok(overrides)
    }
}
