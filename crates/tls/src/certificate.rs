//! Parses certificates: names, serial, validity, fingerprint. Refuses certificates whose names
//! another parser could read differently.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use meltemi_types::SpiffeId;
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Oid, Utf8String};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::PeerError;
use crate::xfcc::rfc2253;

/// The extension that holds the name of the pod whose token the certificate was issued for, as a
/// DER UTF8String. The mesh's CA writes it, its control plane reads it, and everybody else ignores
/// it, since it is not critical. Its identifier is in the arc for UUIDs (ITU-T X.667), which needs
/// no registration.
pub const POD_EXTENSION: [u64; 3] = [2, 25, 4_611_317_580_902_147_663];

/// The longest pod name, as in Kubernetes.
pub const MAX_POD_NAME: usize = 253;

/// The parsed fields of a certificate, for `/certs`, access logs, `x-forwarded-client-cert` and
/// policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Subject in the format of RFC 2253; empty for workload certificates.
    pub subject: String,
    /// Issuer in the format of RFC 2253.
    pub issuer: String,
    /// Lower-case hexadecimal without separators.
    pub serial: String,
    /// URI alternative names, in the certificate's order.
    pub uri_sans: Vec<String>,
    /// DNS alternative names, in the certificate's order.
    pub dns_sans: Vec<String>,
    /// IP alternative names, in the certificate's order.
    pub ip_sans: Vec<IpAddr>,
    /// Number of alternative names of a kind that the mesh never issues (otherName, e-mail,
    /// directory name, ...) or that cannot be parsed.
    pub foreign_sans: usize,
    /// The pod that it was issued for; see [`POD_EXTENSION`].
    pub pod: Option<String>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub sha256: String,
}

impl CertificateInfo {
    /// The SPIFFE ID. The certificate must have exactly one URI name, which is a valid SPIFFE ID,
    /// and no name of a foreign kind.
    pub fn spiffe(&self) -> Result<SpiffeId, PeerError> {
        let [uri] = self.uri_sans.as_slice() else {
            return Err(PeerError::UriCount {
                presented: self.names(),
            });
        };

        if self.foreign_sans > 0 {
            return Err(PeerError::Malformed(format!(
                "{} subject alternative names beside {uri:?} are of a kind that a workload certificate never has",
                self.foreign_sans
            )));
        }

        uri.parse()
            .map_err(|error: meltemi_types::SpiffeError| PeerError::NotSpiffe {
                presented: uri.clone(),
                reason: error.to_string(),
            })
    }

    /// Refuses a SPIFFE ID beside another URI name: of two identities either one could be believed.
    /// SPIFFE X.509-SVID §2: exactly one URI name. Other certificates may have several.
    pub(crate) fn check_uris(&self) -> Result<(), PeerError> {
        let is_spiffe = |uri: &String| {
            let scheme = uri.split_once("://").map_or("", |(scheme, _)| scheme);
            scheme.eq_ignore_ascii_case("spiffe")
        };
        match self.uri_sans.len() > 1 && self.uri_sans.iter().any(is_spiffe) {
            true => Err(PeerError::UriCount {
                presented: self.names(),
            }),
            false => Ok(()),
        }
    }

    /// The alternative names in one line, for messages. At most eight, since a hostile certificate
    /// may hold thousands.
    pub fn names(&self) -> String {
        const SHOWN: usize = 8;

        let uris = self.uri_sans.iter().map(|name| format!("URI:{name}"));
        let dns = self.dns_sans.iter().map(|name| format!("DNS:{name}"));
        let ips = self.ip_sans.iter().map(|name| format!("IP:{name}"));
        let total =
            self.uri_sans.len() + self.dns_sans.len() + self.ip_sans.len() + self.foreign_sans;
        let mut shown: Vec<String> = uris
            .chain(dns)
            .chain(ips)
            .take(SHOWN)
            .map(|name| name.chars().take(256).collect::<String>())
            .collect();

        let rest = total - shown.len();
        match (total, rest) {
            (0, _) => return "no subject alternative name".to_owned(),
            (_, 0) => {}
            _ => shown.push(format!("{rest} more")),
        }

        shown.join(", ")
    }

    /// Whole days until the end of validity, 0 after it. Source: Envoy `days_until_expiration`.
    pub fn days_until_expiration(&self, now: SystemTime) -> u64 {
        self.not_after
            .duration_since(now)
            .map_or(0, |left| left.as_secs() / 86_400)
    }
}

/// Parses a certificate.
///
/// # Errors
/// When the certificate is malformed or its names are ambiguous.
pub fn info_of(certificate: &CertificateDer<'_>) -> Result<CertificateInfo, PeerError> {
    let malformed = |error: String| PeerError::Malformed(error);
    let (rest, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!(
            "{} bytes follow the certificate",
            rest.len()
        )));
    }

    let mut info = CertificateInfo {
        subject: rfc2253(parsed.subject()),
        issuer: rfc2253(parsed.issuer()),
        serial: hex(parsed.raw_serial()),
        uri_sans: Vec::new(),
        dns_sans: Vec::new(),
        ip_sans: Vec::new(),
        foreign_sans: 0,
        pod: None,
        not_before: system_time(parsed.validity().not_before.timestamp()),
        not_after: system_time(parsed.validity().not_after.timestamp()),
        sha256: sha256_hex(certificate),
    };

    let mut extensions = 0;
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                extensions += 1;
                for name in &names.general_names {
                    read_name(name, &mut info)?;
                }
            }
            // A list of names that cannot be parsed must not count as an empty list.
            ParsedExtension::ParseError { .. }
                if extension.oid == x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME =>
            {
                return Err(malformed(
                    "its subject alternative names cannot be read".to_owned(),
                ));
            }
            _ if is_pod_extension(&extension.oid) => {
                let name = Utf8String::from_der(extension.value);
                let (_, name) = name.map_err(|error| malformed(error.to_string()))?;
                if info.pod.replace(name.string()).is_some() {
                    return Err(malformed("it names two pods".to_owned()));
                }
            }
            _ => {}
        }
    }

    match extensions {
        0 | 1 => Ok(info),
        more => Err(malformed(format!(
            "it has {more} extensions for subject alternative names"
        ))),
    }
}

fn is_pod_extension(oid: &Oid<'_>) -> bool {
    oid.iter().is_some_and(|arcs| arcs.eq(POD_EXTENSION))
}

fn read_name(name: &GeneralName<'_>, info: &mut CertificateInfo) -> Result<(), PeerError> {
    // Some parsers end a name at a NUL or another control character: refuse such names.
    let plain = |text: &str| match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err(PeerError::Malformed(format!(
            "its name {text:?} holds a character that no name has"
        ))),
    };

    match name {
        GeneralName::URI(text) => info.uri_sans.push(plain(text)?),
        GeneralName::DNSName(text) => info.dns_sans.push(plain(text)?),
        GeneralName::IPAddress(bytes) => {
            match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => info.ip_sans.push(v4.into()),
                (_, Ok(v6)) => info.ip_sans.push(v6.into()),
                _ => info.foreign_sans += 1,
            }
        }
        _ => info.foreign_sans += 1,
    }

    Ok(())
}

/// The SPIFFE ID of a peer, from the chain that the peer presented. Call this only after the
/// handshake has verified the chain.
pub fn peer_spiffe(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
    info_of(chain.first().ok_or(PeerError::None)?)?.spiffe()
}

/// SHA-256 of a certificate and of its SubjectPublicKeyInfo, to compare with configured pins.
pub fn pin_digests(certificate: &CertificateDer<'_>) -> Result<([u8; 32], [u8; 32]), PeerError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| PeerError::Malformed(error.to_string()))?;
    Ok((sha256(certificate), sha256(parsed.public_key().raw)))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 as lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// A short name for a certificate or a public key in logs: the first 16 digits of its SHA-256.
pub fn fingerprint(bytes: &[u8]) -> String {
    let mut digits = sha256_hex(bytes);
    digits.truncate(16);
    digits
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

fn system_time(unix_seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(unix_seconds.unsigned_abs());
    match unix_seconds < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(distance),
        false => SystemTime::UNIX_EPOCH.checked_add(distance),
    }
    .unwrap_or(SystemTime::UNIX_EPOCH)
}
