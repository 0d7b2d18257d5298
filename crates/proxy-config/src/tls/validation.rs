//! Compiling how the certificate of a peer is verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meltemi_filters::matcher::StringMatch;
use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::certificate_validation_context::TrustChainVerification;
use proto::subject_alt_name_matcher::SanType;

use super::secret::compile_data_source;
use super::{SanKind, SanMatch, Trust, Validation};
use crate::convert::{boolean, not_honoured};

impl Validation {
    /// No verification.
    pub(super) fn none() -> Self {
        Self {
            trust: Trust::None,
            san_matchers: Vec::new(),
            spki_pins: Vec::new(),
            certificate_pins: Vec::new(),
            crl: None,
        }
    }

    /// Whether any certificate is accepted.
    pub(super) fn verifies_nothing(&self) -> bool {
        self.trust == Trust::None && !self.is_pinned()
    }

    /// Compiles the message as it stands in a TLS context or in a secret.
    pub(super) fn compile(
        message: &proto::CertificateValidationContext,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        #[expect(deprecated, reason = "Istio sends match_subject_alt_names")]
        let proto::CertificateValidationContext {
            trusted_ca,
            ca_certificate_provider_instance,
            system_root_certs,
            watched_directory,
            verify_certificate_spki,
            verify_certificate_hash,
            match_typed_subject_alt_names,
            match_subject_alt_names,
            require_signed_certificate_timestamp,
            crl,
            allow_expired_certificate,
            trust_chain_verification,
            custom_validator_config,
            only_verify_leaf_cert_crl,
            max_verify_depth,
            suppress_client_ca_list,
        } = message;

        // Without these a peer would be accepted that is not meant.
        if custom_validator_config.is_some() || ca_certificate_provider_instance.is_some() {
            return scope.refuse("custom validators and certificate providers are unknown");
        }
        if boolean(require_signed_certificate_timestamp.as_ref(), false) {
            return scope.refuse("signed certificate timestamps are unknown");
        }
        if max_verify_depth.is_some() {
            return scope
                .refuse("max_verify_depth is unknown; chains have at most 10 certificates");
        }

        // Without these a peer is refused that is meant to be accepted, which is safe.
        not_honoured!(
            scope,
            watched_directory,
            allow_expired_certificate,
            only_verify_leaf_cert_crl,
            suppress_client_ca_list,
        );
        scope.unsupported(
            "trust_chain_verification",
            *trust_chain_verification == TrustChainVerification::AcceptUntrusted as i32,
        );

        let mut san_matchers = scope.each(
            "match_typed_subject_alt_names",
            match_typed_subject_alt_names,
            SanMatch::compile,
        )?;
        san_matchers.extend(scope.each(
            "match_subject_alt_names",
            match_subject_alt_names,
            |scope, value| {
                Ok(SanMatch {
                    kind: SanKind::Any,
                    value: StringMatch::compile(value, scope)?,
                })
            },
        )?);

        Ok(Self {
            trust: match (trusted_ca, system_root_certs) {
                (Some(source), _) => Trust::Inline(compile_data_source(source, scope)?),
                (None, Some(_)) => Trust::System,
                (None, None) => Trust::None,
            },
            san_matchers,
            spki_pins: scope.each(
                "verify_certificate_spki",
                verify_certificate_spki,
                |scope, pin| {
                    sha256_of_base64(pin)
                        .ok_or_else(|| scope.reject("not the SHA-256 of a public key in base64"))
                },
            )?,
            certificate_pins: scope.each(
                "verify_certificate_hash",
                verify_certificate_hash,
                |scope, pin| {
                    sha256_of_hex(pin).ok_or_else(|| {
                        scope.reject("not the SHA-256 of a certificate in hexadecimal")
                    })
                },
            )?,
            crl: match crl {
                Some(source) => Some(compile_data_source(source, scope)?),
                None => None,
            },
        })
    }

    /// Refuses conditions that prove nothing because nothing vouches for the certificate. Call it
    /// once `trust` is final: it may come from a secret.
    pub(super) fn check(&self, scope: &Scope) -> Result<(), Rejection> {
        if self.trust != Trust::None {
            return Ok(());
        }
        if !self.san_matchers.is_empty() {
            return scope.refuse(
                "names of certificates that nothing vouches for prove nothing: trusted_ca is missing",
            );
        }
        if self.crl.is_some() {
            return scope.refuse("a crl without trusted_ca");
        }

        Ok(())
    }
}

impl SanMatch {
    fn compile(
        scope: &mut Scope,
        message: &proto::SubjectAltNameMatcher,
    ) -> Result<Self, Rejection> {
        let proto::SubjectAltNameMatcher {
            san_type,
            matcher,
            // Belongs to OTHER_NAME, which is refused.
            oid: _,
        } = message;

        let kind = match SanType::try_from(*san_type) {
            Ok(SanType::Dns) => SanKind::Dns,
            Ok(SanType::Uri) => SanKind::Uri,
            Ok(SanType::IpAddress) => SanKind::Ip,
            Ok(SanType::Email) => SanKind::Email,
            _ => return scope.refuse("unknown san_type"),
        };
        let value = scope.required("matcher", matcher.as_ref())?;

        Ok(Self {
            kind,
            value: StringMatch::compile(value, scope)?,
        })
    }
}

fn sha256_of_base64(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// The digits may be separated by colons, and be in either case.
fn sha256_of_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.replace(':', "");
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }

    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}
