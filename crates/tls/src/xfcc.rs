//! Renders the header `x-forwarded-client-cert` (source: Envoy) and distinguished names (RFC 2253).

use x509_parser::x509::X509Name;

/// The optional parts of an element. `Hash`, and `By` if known, are always written.
/// Source: Envoy `set_current_client_cert_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XfccFields {
    /// `Subject="..."`.
    pub subject: bool,
    /// `URI=...`, one for each URI name.
    pub uri: bool,
    /// `DNS=...`, one for each DNS name.
    pub dns: bool,
}

/// The parts of a client's certificate that an element can name.
#[derive(Debug, Clone, Copy)]
pub struct XfccPeer<'a> {
    /// SHA-256 of the certificate, in hexadecimal digits.
    pub sha256: &'a str,
    /// The subject as RFC 2253 writes it.
    pub subject: &'a str,
    /// URI names.
    pub uri_sans: &'a [String],
    /// DNS names.
    pub dns_sans: &'a [String],
}

/// The element that a proxy adds for the client in front of it. `local` is the URI name of the
/// proxy's own certificate.
pub fn xfcc_element(local: Option<&str>, peer: XfccPeer<'_>, fields: XfccFields) -> String {
    let XfccFields { subject, uri, dns } = fields;
    let mut parts = Vec::with_capacity(5);
    if let Some(local) = local {
        parts.push(format!("By={}", plain(local)));
    }
    parts.push(format!("Hash={}", peer.sha256));
    if subject {
        parts.push(format!(
            "Subject=\"{}\"",
            peer.subject.replace('\\', "\\\\").replace('"', "\\\"")
        ));
    }

    if uri {
        parts.extend(
            peer.uri_sans
                .iter()
                .map(|name| format!("URI={}", plain(name))),
        );
    }

    if dns {
        parts.extend(
            peer.dns_sans
                .iter()
                .map(|name| format!("DNS={}", plain(name))),
        );
    }

    parts.join(";")
}

/// Quotes a value that contains a separator, so that a peer's name cannot add a field or an
/// element.
fn plain(value: &str) -> String {
    match value.contains([',', ';', '=', '"', '\\']) {
        true => format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")),
        false => value.to_owned(),
    }
}

/// Formats a distinguished name: most significant part last, separated by commas, special
/// characters escaped.
pub(crate) fn rfc2253(name: &X509Name<'_>) -> String {
    let sets: Vec<String> = name
        .iter_rdn()
        .map(|set| {
            let pairs: Vec<String> = set
                .iter()
                .map(|attribute| {
                    let oid = attribute.attr_type().to_id_string();
                    let key = short_name(&oid).unwrap_or(&oid);
                    format!("{key}={}", escape(attribute.as_str().unwrap_or("?")))
                })
                .collect();
            pairs.join("+")
        })
        .collect();

    sets.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

fn escape(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (position, c) in value.chars().enumerate() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', c]),
            '#' if position == 0 => out.push_str("\\#"),
            ' ' if position == 0 || position == last => out.push_str("\\ "),
            // Control characters are not allowed in a header.
            c if c.is_control() => c
                .to_string()
                .bytes()
                .for_each(|byte| out.push_str(&format!("\\{byte:02X}"))),
            c => out.push(c),
        }
    }

    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertificateInfo;
    use crate::testing::{Authority, LeafSpec};

    fn peer(info: &CertificateInfo) -> XfccPeer<'_> {
        XfccPeer {
            sha256: &info.sha256,
            subject: &info.subject,
            uri_sans: &info.uri_sans,
            dns_sans: &info.dns_sans,
        }
    }

    #[test]
    fn an_element_has_the_identities_of_both_sides() {
        let authority = Authority::new("cluster.local");
        let leaf = authority.leaf(LeafSpec {
            uris: &["spiffe://cluster.local/ns/a/sa/b"],
            dns: &["b.a"],
            common_name: Some("x,\"y\""),
            ..LeafSpec::default()
        });

        let info = leaf.info().clone();
        let element = xfcc_element(
            Some("spiffe://cluster.local/ns/c/sa/d"),
            peer(&info),
            XfccFields {
                subject: true,
                uri: true,
                dns: true,
            },
        );

        let expected = format!(
            "By=spiffe://cluster.local/ns/c/sa/d;Hash={};Subject=\"CN=x\\\\,\\\\\\\"y\\\\\\\"\";URI=spiffe://cluster.local/ns/a/sa/b;DNS=b.a",
            info.sha256
        );

        assert_eq!(element, expected);
    }

    #[test]
    fn a_name_with_separators_cannot_add_a_field() {
        let authority = Authority::new("cluster.local");
        let leaf = authority.leaf(LeafSpec {
            uris: &["spiffe://x/a,By=evil;URI=b"],
            ..LeafSpec::default()
        });

        let element = xfcc_element(
            None,
            peer(leaf.info()),
            XfccFields {
                uri: true,
                ..XfccFields::default()
            },
        );

        assert!(
            element.ends_with(";URI=\"spiffe://x/a,By=evil;URI=b\""),
            "{element}"
        );
    }
}
