//! The facts of a downstream connection, for logs and headers.

use std::net::SocketAddr;

use super::Fact;
use crate::conn::ConnInfo;
use crate::digits;

/// Writes a fact of a connection, or of the request's client `remote`. Returns `Some(false)` if it
/// is unknown, and `None` for a fact that is not of the connection.
pub fn connection_fact(
    conn: &ConnInfo,
    remote: SocketAddr,
    fact: Fact,
    out: &mut Vec<u8>,
) -> Option<bool> {
    let tls = conn.tls.as_deref();
    let text = |value: &str, out: &mut Vec<u8>| {
        out.extend_from_slice(value.as_bytes());
        !value.is_empty()
    };

    let joined = |names: &[String], out: &mut Vec<u8>| text(&names.join(","), out);
    let mut known = true;
    match fact {
        Fact::DownstreamRemoteAddress => digits::address(remote, out),
        Fact::DownstreamRemoteAddressWithoutPort => digits::ip(remote.ip(), out),
        Fact::DownstreamRemotePort => digits::integer(remote.port(), out),
        Fact::DownstreamDirectRemoteAddress => digits::address(conn.direct_remote, out),
        Fact::DownstreamDirectRemoteAddressWithoutPort => digits::ip(conn.direct_remote.ip(), out),
        Fact::DownstreamDirectRemotePort => digits::integer(conn.direct_remote.port(), out),
        Fact::DownstreamLocalAddress => digits::address(conn.local, out),
        Fact::DownstreamLocalAddressWithoutPort => digits::ip(conn.local.ip(), out),
        Fact::DownstreamLocalPort => digits::integer(conn.local.port(), out),
        Fact::RequestedServerName => {
            known = conn
                .server_name
                .as_ref()
                .is_some_and(|name| text(name, out))
        }
        Fact::DownstreamTlsCipher => known = tls.is_some_and(|tls| text(&tls.cipher, out)),
        Fact::DownstreamTlsVersion => known = tls.is_some_and(|tls| text(tls.version, out)),
        Fact::DownstreamPeerSubject => known = tls.is_some_and(|tls| text(&tls.subject, out)),
        Fact::DownstreamPeerIssuer => known = tls.is_some_and(|tls| text(&tls.issuer, out)),
        Fact::DownstreamPeerUriSan => known = tls.is_some_and(|tls| joined(&tls.uri_sans, out)),
        Fact::DownstreamPeerDnsSan => known = tls.is_some_and(|tls| joined(&tls.dns_sans, out)),
        Fact::DownstreamPeerFingerprint256 => {
            known = tls.is_some_and(|tls| text(&tls.fingerprint, out))
        }
        Fact::DownstreamLocalUriSan => {
            known = tls.is_some_and(|tls| joined(&tls.local_uri_sans, out))
        }
        _ => return None,
    }

    Some(known)
}
