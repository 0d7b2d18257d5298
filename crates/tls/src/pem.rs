//! Reads and writes certificates and keys as PEM. Keys may be PKCS#8, PKCS#1 or SEC1, since plug-in
//! CA certificates come in all three forms.

use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::TlsError;

/// Parses all certificates of a PEM text, in order; other blocks are skipped.
///
/// # Errors
/// When there is no certificate, or one is truncated.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem_error("certificates", &error))?;
    match certificates.is_empty() {
        true => Err(pem_error("certificates", &PemError::NoItemsFound)),
        false => Ok(certificates),
    }
}

/// Parses the first private key of a PEM text.
pub fn key_from_pem(text: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| pem_error("private key", &error))
}

/// Certificates as PEM text, each block ending in a line feed.
pub fn certificates_to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates
        .iter()
        .map(|certificate| block("CERTIFICATE", certificate))
        .collect()
}

/// A key as PEM text. For the local SDS socket and key files only; never log it.
pub fn key_to_pem(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    block(label, key.secret_der())
}

fn pem_error(what: &'static str, error: &PemError) -> TlsError {
    TlsError::Pem {
        what,
        reason: error.to_string(),
    }
}

/// RFC 7468: base64 in lines of 64.
fn block(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    let mut out = format!("-----BEGIN {label}-----\n");

    // 48 bytes are one line of 64 characters.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let word = group
                .iter()
                .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
                << (8 * (3 - group.len()));

            for position in 0..4 {
                out.push(match position <= group.len() {
                    true => char::from(ALPHABET[(word >> (18 - 6 * position)) as usize & 63]),
                    false => '=',
                });
            }
        }

        out.push('\n');
    }

    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");

    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_survives_the_round_trip_at_every_padding() {
        for length in [1usize, 2, 3, 47, 48, 49, 500] {
            let der = CertificateDer::from((0..length).map(|i| i as u8).collect::<Vec<_>>());
            let text = certificates_to_pem(&[der.clone(), der.clone()]);
            assert_eq!(
                certificates_from_pem(text.as_bytes()).expect("own PEM"),
                vec![der.clone(), der],
                "{length} bytes"
            );
        }
    }

    #[test]
    fn text_without_certificates_is_an_error() {
        assert!(certificates_from_pem(b"hello").is_err());
        assert!(certificates_from_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n").is_err());
        assert!(key_from_pem(b"").is_err());
    }
}
