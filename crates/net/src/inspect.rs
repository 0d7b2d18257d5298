//! Recognises TLS and HTTP by the first bytes of a connection. The caller passes the bytes as they
//! arrive; this module reads no socket.

use rustls::server::{Accepted, Acceptor};

/// Maximum size of a ClientHello in bytes. A client may send it in many small writes, so the
/// sniffer must not buffer without a limit.
pub const MAX_HELLO: usize = 16 * 1024;
/// Maximum length of the first line that the HTTP sniffer waits for, in bytes.
pub const MAX_FIRST_LINE: usize = 8 * 1024;
/// Maximum number of protocols read from one ALPN list.
const MAX_ALPN: usize = 32;

/// Result of the TLS sniffer.
pub enum TlsSniff {
    /// The bytes may be the beginning of a ClientHello.
    NeedMore,
    /// The bytes are not TLS.
    NotTls,
    /// A complete ClientHello. Its `accepted` continues the handshake and has consumed the bytes.
    Hello(Box<Hello>),
    /// The bytes begin like TLS but are malformed or too long.
    Broken(&'static str),
}

/// A complete ClientHello.
pub struct Hello {
    /// SNI in lower case.
    pub server_name: Option<String>,
    /// The client's ALPN list, without entries that are not UTF-8.
    pub alpn: Vec<String>,
    /// rustls' state, which continues the handshake.
    pub accepted: Accepted,
}

/// Sniffs TLS with rustls' own parser, so that detection and termination never disagree.
#[derive(Default)]
pub struct TlsSniffer {
    acceptor: Acceptor,
    fed: usize,
}

impl TlsSniffer {
    /// Inspects `bytes`, which must be everything received so far from the first byte on.
    pub fn feed(&mut self, bytes: &[u8]) -> TlsSniff {
        // RFC 8446 §5.1: a handshake record, and a legacy version of 3.x.
        match bytes {
            [] | [0x16] => return TlsSniff::NeedMore,
            [0x16, 0x03, ..] => {}
            _ => return TlsSniff::NotTls,
        }

        let mut rest = &bytes[self.fed..];
        while !rest.is_empty() {
            match self.acceptor.read_tls(&mut rest) {
                Ok(0) => break,
                Ok(n) => self.fed += n,
                Err(_) => return TlsSniff::Broken("ClientHello too long"),
            }

            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return TlsSniff::Hello(Box::new(Hello::read(accepted))),
                Err(_) => return TlsSniff::Broken("malformed ClientHello"),
            }
        }

        if self.fed >= MAX_HELLO {
            TlsSniff::Broken("ClientHello too long")
        } else {
            TlsSniff::NeedMore
        }
    }

    /// Number of bytes that [`Hello::accepted`] has consumed. The caller must pass the remaining
    /// bytes to the handshake.
    pub fn taken(&self) -> usize {
        self.fed
    }
}

impl Hello {
    fn read(accepted: Accepted) -> Self {
        let hello = accepted.client_hello();
        let server_name = hello.server_name().map(str::to_ascii_lowercase);
        let alpn = hello
            .alpn()
            .map(|list| {
                list.take(MAX_ALPN)
                    .filter_map(|p| std::str::from_utf8(p).ok().map(str::to_owned))
                    .collect()
            })
            .unwrap_or_default();

        Self {
            server_name,
            alpn,
            accepted,
        }
    }
}

/// Result of the HTTP sniffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpSniff {
    /// The bytes may be the beginning of HTTP.
    NeedMore,
    /// An HTTP/1.0 request line.
    Http10,
    /// An HTTP/1.1 request line.
    Http11,
    /// The HTTP/2 connection preface.
    Http2,
    /// The bytes are not HTTP.
    Other,
}

impl HttpSniff {
    /// The application protocol that filter chains match, as Envoy's `http_inspector` sets it.
    pub fn alpn(self) -> Option<&'static str> {
        match self {
            Self::Http10 => Some("http/1.0"),
            Self::Http11 => Some("http/1.1"),
            Self::Http2 => Some("h2c"),
            Self::NeedMore | Self::Other => None,
        }
    }
}

/// The connection preface of HTTP/2, RFC 9113 §3.4.
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Inspects `bytes`, which must be everything received so far from the first byte on.
pub fn sniff_http(bytes: &[u8]) -> HttpSniff {
    let common = bytes.len().min(H2_PREFACE.len());
    if bytes[..common] == H2_PREFACE[..common] {
        return if common == H2_PREFACE.len() {
            HttpSniff::Http2
        } else {
            HttpSniff::NeedMore
        };
    }

    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
        return if bytes.len() < MAX_FIRST_LINE && could_be_request_line(bytes) {
            HttpSniff::NeedMore
        } else {
            HttpSniff::Other
        };
    };

    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    if !could_be_request_line(line) {
        return HttpSniff::Other;
    }
    let mut words = line.split(|b| *b == b' ');

    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(_), Some(target), Some(b"HTTP/1.1"), None) if !target.is_empty() => HttpSniff::Http11,
        (Some(_), Some(target), Some(b"HTTP/1.0"), None) if !target.is_empty() => HttpSniff::Http10,
        _ => HttpSniff::Other,
    }
}

/// Whether `line` may be the beginning of a request line: a method, then printable bytes. RFC 9110
/// §9.1 allows any token as method; like Envoy's `http_inspector` this accepts only upper-case
/// letters, `-` and `_`, at most 32. A stricter check fails early, so that other protocols are not
/// delayed until a line feed arrives.
fn could_be_request_line(line: &[u8]) -> bool {
    let method = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    method > 0
        && method <= 32
        && line[..method]
            .iter()
            .all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'))
        && line[method..].iter().all(|b| *b >= 0x20 || *b == b'\r')
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_versions_are_recognised_however_the_bytes_are_split() {
        for (line, wanted) in [
            (&b"GET / HTTP/1.1\r\n"[..], HttpSniff::Http11),
            (b"GET / HTTP/1.0\r\n", HttpSniff::Http10),
            (H2_PREFACE, HttpSniff::Http2),
            (b"PING\r\n", HttpSniff::Other),
            (b"GET / HTTP/3.1\r\n", HttpSniff::Other),
        ] {
            for cut in 1..line.len() {
                let sniffed = sniff_http(&line[..cut]);
                assert!(
                    sniffed == HttpSniff::NeedMore || sniffed == wanted,
                    "{line:?} cut at {cut}: {sniffed:?}"
                );
            }
            assert_eq!(sniff_http(line), wanted, "{line:?}");
        }

        assert_eq!(sniff_http(b"\x00\x01"), HttpSniff::Other);
        assert_eq!(
            sniff_http(b"hello"),
            HttpSniff::Other,
            "who speaks without line feeds is not kept waiting"
        );

        assert_eq!(sniff_http(b"*1\r\n$4\r\n"), HttpSniff::Other);
    }

    #[test]
    fn a_client_hello_in_single_bytes_is_recognised() {
        let config = rustls::ClientConfig::builder_with_provider(meltemi_tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();

        let mut config = config;
        config.alpn_protocols = vec![b"istio-http/1.1".to_vec(), b"istio".to_vec()];
        let name = "Reviews.Default".to_owned().try_into().expect("a name");
        let mut client =
            rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("to memory");
        let mut sniffer = TlsSniffer::default();
        for cut in 1..hello.len() {
            assert!(
                matches!(sniffer.feed(&hello[..cut]), TlsSniff::NeedMore),
                "at {cut}"
            );
        }

        let TlsSniff::Hello(read) = sniffer.feed(&hello) else {
            panic!("a whole hello")
        };
        assert_eq!(read.server_name.as_deref(), Some("reviews.default"));
        assert_eq!(read.alpn, ["istio-http/1.1", "istio"]);
        assert_eq!(sniffer.taken(), hello.len());
    }

    #[test]
    fn other_bytes_are_not_tls_and_a_malformed_hello_is_broken() {
        assert!(matches!(
            TlsSniffer::default().feed(b"GET"),
            TlsSniff::NotTls
        ));

        let mut junk = vec![0x16, 0x03, 0x01, 0x00, 0x05];
        junk.extend_from_slice(&[0xff; 5]);
        assert!(matches!(
            TlsSniffer::default().feed(&junk),
            TlsSniff::Broken(_)
        ));
    }
}
