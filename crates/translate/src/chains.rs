//! The matrix of inbound filter chains: mode of mutual TLS by protocol of the port. Pure data, in
//! Istio's order.

use meltemi_model::MtlsMode;
use meltemi_types::Protocol;

use crate::filters::PEER_EXCHANGE;
use crate::listener::{ChainMatch, Transport};

/// The ALPN that a meshed client offers in addition to its ordinary protocols.
const MESH: &[&str] = &[
    "istio",
    "istio-peer-exchange",
    "istio-http/1.0",
    "istio-http/1.1",
    "istio-h2",
];
const MESH_HTTP: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2"];
const MESH_TCP: &[&str] = &["istio-peer-exchange", "istio"];
const PLAIN_HTTP: &[&str] = &["http/1.1", "h2c"];

/// How a chain reads its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    Http,
    Tcp,
}

/// One cell's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub matched: ChainMatch,
    pub reads: Reads,
    /// Whether the mesh's mutual TLS is terminated.
    pub terminates: bool,
}

/// The chains of one port, or of every port that has none of its own (`port` is `None`).
pub(crate) fn inbound(mode: MtlsMode, protocol: Protocol, port: Option<u16>) -> Vec<Chain> {
    use Reads::{Http, Tcp};

    let chain = |reads, terminates, transport, alpn: &[&str]| Chain {
        matched: ChainMatch {
            destination_port: port,
            transport,
            alpn: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
            ..ChainMatch::default()
        },
        reads,
        terminates,
    };

    let (tls, raw) = (Some(Transport::Tls), Some(Transport::Raw));
    if protocol.is_sniffed() {
        return match mode {
            MtlsMode::Strict => vec![
                chain(Http, true, tls, MESH_HTTP),
                chain(Tcp, true, tls, &[]),
            ],
            MtlsMode::Permissive => vec![
                chain(Http, true, tls, MESH_HTTP),
                chain(Http, false, raw, PLAIN_HTTP),
                chain(Tcp, true, tls, MESH_TCP),
                chain(Tcp, false, raw, &[]),
                chain(Tcp, false, tls, &[]),
            ],
            MtlsMode::Disable => vec![
                chain(Http, false, raw, PLAIN_HTTP),
                chain(Tcp, false, raw, &[]),
                // The application's own TLS. Envoy does not go back from "raw" to "any", so it is
                // named.
                chain(Tcp, false, tls, &[]),
            ],
        };
    }

    let reads = if protocol.is_http() { Http } else { Tcp };

    match (mode, reads) {
        (MtlsMode::Strict, _) => vec![chain(reads, true, tls, &[])],
        (MtlsMode::Permissive, Http) => {
            vec![chain(Http, true, tls, MESH), chain(Http, false, raw, &[])]
        }
        (MtlsMode::Permissive, Tcp) => {
            vec![
                chain(Tcp, true, tls, MESH),
                chain(Tcp, false, tls, &[]),
                chain(Tcp, false, raw, &[]),
            ]
        }
        // Without an inspector there is no transport to match: everything is what it is.
        (MtlsMode::Disable, _) => vec![chain(reads, false, None, &[])],
    }
}

/// What a terminating chain selects of the client's ALPN. `istio-peer-exchange` comes first where
/// the chain `exchanges`: it promises a preamble of both sides. `istio` is not among them: it says
/// nothing about the bytes, and once it is selected nobody can tell that the client, whose port is
/// TCP, speaks HTTP/2. Source: Istio `BuildInboundTLS`.
pub(crate) fn server_alpn(exchanges: bool) -> Vec<String> {
    let first = exchanges.then_some(PEER_EXCHANGE);
    first
        .into_iter()
        .chain(["h2", "http/1.1"])
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(mode: MtlsMode, protocol: Protocol) -> Vec<String> {
        inbound(mode, protocol, Some(80))
            .into_iter()
            .map(|chain| {
                let transport = match chain.matched.transport {
                    Some(Transport::Tls) => "tls",
                    Some(Transport::Raw) => "raw",
                    None => "any",
                };

                let reads = if chain.reads == Reads::Http {
                    "http"
                } else {
                    "tcp"
                };

                let tls = if chain.terminates { "+mtls" } else { "" };
                format!("{} {transport} -> {reads}{tls}", chain.matched.alpn.len())
            })
            .collect()
    }

    #[test]
    fn strict_takes_mutual_tls_alone() {
        for protocol in [
            Protocol::Http,
            Protocol::Tcp,
            Protocol::Unsupported,
            Protocol::Https,
        ] {
            for chain in inbound(MtlsMode::Strict, protocol, Some(80)) {
                assert!(
                    chain.terminates && chain.matched.transport == Some(Transport::Tls),
                    "{protocol}"
                );
            }
        }
    }

    #[test]
    fn the_matrix_is_istios() {
        use MtlsMode::{Disable, Permissive, Strict};

        assert_eq!(
            summary(Permissive, Protocol::Http),
            ["5 tls -> http+mtls", "0 raw -> http"]
        );

        assert_eq!(
            summary(Permissive, Protocol::Tcp),
            ["5 tls -> tcp+mtls", "0 tls -> tcp", "0 raw -> tcp"]
        );

        assert_eq!(
            summary(Strict, Protocol::Unsupported),
            ["3 tls -> http+mtls", "0 tls -> tcp+mtls"]
        );

        assert_eq!(
            summary(Permissive, Protocol::Unsupported),
            [
                "3 tls -> http+mtls",
                "2 raw -> http",
                "2 tls -> tcp+mtls",
                "0 raw -> tcp",
                "0 tls -> tcp"
            ]
        );

        assert_eq!(
            summary(Disable, Protocol::Unsupported),
            ["2 raw -> http", "0 raw -> tcp", "0 tls -> tcp"]
        );
    }

    #[test]
    fn no_two_chains_of_a_port_match_the_same() {
        for mode in [MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disable] {
            for protocol in [
                Protocol::Http,
                Protocol::Tcp,
                Protocol::Unsupported,
                Protocol::Tls,
            ] {
                let chains = inbound(mode, protocol, None);
                for (index, one) in chains.iter().enumerate() {
                    assert!(
                        chains[..index]
                            .iter()
                            .all(|other| other.matched != one.matched),
                        "{mode:?} {protocol}"
                    );
                }
            }
        }
    }
}
