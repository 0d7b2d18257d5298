//! Secrets: those that resources name, and those that arrive over SDS or stand in the bootstrap.
//! The one compiler of both.

use std::sync::Arc;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::secret::Type;

use super::{DataSource, SecretRef, SecretSource, Trust, Validation};
use crate::convert::not_honoured;
use crate::memo::Compiled;

/// The content of a secret, from the bootstrap or over SDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretContent {
    /// A certificate and its key.
    Certificate {
        /// The chain in PEM, leaf first.
        chain: DataSource,
        /// The private key in PEM.
        key: DataSource,
    },
    /// Trust roots.
    Roots {
        /// The roots in PEM.
        trusted_ca: DataSource,
        /// Revoked certificates in PEM.
        crl: Option<DataSource>,
    },
}

impl SecretContent {
    /// Compiles a secret. No reason and no warning has a byte of it.
    pub fn compile(message: &proto::Secret) -> Compiled<Self> {
        let mut scope = Scope::new();
        let content = Self::compile_scoped(message, &mut scope)?;
        Ok((content, scope.into_warnings()))
    }

    pub(crate) fn compile_scoped(
        message: &proto::Secret,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::Secret {
            r#type,
            // The caller knows the secret by it.
            name: _,
        } = message;

        match scope.required("type", r#type.as_ref())? {
            Type::TlsCertificate(certificate) => {
                let (chain, key) = compile_certificate(certificate, scope)?;
                Ok(Self::Certificate { chain, key })
            }
            Type::ValidationContext(context) => {
                let validation = Validation::compile(context, scope)?;
                Self::compile_roots(validation, scope)
            }
            Type::SessionTicketKeys(_) => scope.refuse("session ticket keys are the proxy's own"),
            Type::GenericSecret(_) => {
                scope.refuse("only certificates and validation contexts are known")
            }
        }
    }

    /// A resource that names the secret takes over its roots and its revocation list, and nothing
    /// else: any other condition on the peer would be lost.
    fn compile_roots(validation: Validation, scope: &Scope) -> Result<Self, Rejection> {
        let Validation {
            trust,
            san_matchers,
            spki_pins,
            certificate_pins,
            crl,
        } = validation;

        if !(san_matchers.is_empty() && spki_pins.is_empty() && certificate_pins.is_empty()) {
            return scope
                .refuse("of a validation context only trusted_ca and crl may come in a secret");
        }

        match trust {
            Trust::Inline(trusted_ca) => Ok(Self::Roots { trusted_ca, crl }),
            Trust::None | Trust::System | Trust::Secret(_) => {
                scope.refuse("a validation context in a secret needs a trusted_ca")
            }
        }
    }
}

/// The chain and the private key of a certificate.
pub(super) fn compile_certificate(
    message: &proto::TlsCertificate,
    scope: &mut Scope,
) -> Result<(DataSource, DataSource), Rejection> {
    let proto::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory,
        private_key_provider,
        password,
        ocsp_staple,
        tls_params,
        // Envoy does not implement it either.
        signed_certificate_timestamp: _,
    } = message;

    if private_key_provider.is_some() || pkcs12.is_some() || password.is_some() {
        return scope.refuse("private key providers, PKCS #12 and encrypted keys are unknown");
    }
    if tls_params.is_some() {
        return scope.refuse("tls_params of a single certificate are unknown");
    }
    not_honoured!(scope, watched_directory, ocsp_staple);

    let chain = scope.required("certificate_chain", certificate_chain.as_ref())?;
    let key = scope.required("private_key", private_key.as_ref())?;

    Ok((
        compile_data_source(chain, scope)?,
        compile_data_source(key, scope)?,
    ))
}

pub(super) fn compile_data_source(
    message: &core::DataSource,
    scope: &mut Scope,
) -> Result<DataSource, Rejection> {
    use core::data_source::Specifier;

    let core::DataSource {
        watched_directory,
        specifier,
    } = message;
    not_honoured!(scope, watched_directory);

    match specifier {
        Some(Specifier::Filename(path)) => Ok(DataSource::File(path.as_str().into())),
        Some(Specifier::InlineBytes(bytes)) => Ok(DataSource::Inline(bytes.as_slice().into())),
        Some(Specifier::InlineString(text)) => Ok(DataSource::Inline(text.as_bytes().into())),
        Some(Specifier::EnvironmentVariable(name)) => {
            Ok(DataSource::Environment(name.as_str().into()))
        }
        None => scope.refuse("a data source without data"),
    }
}

/// A secret that a resource names.
pub(super) fn compile_secret_ref(
    message: &proto::SdsSecretConfig,
    scope: &Scope,
) -> Result<SecretRef, Rejection> {
    use core::config_source::ConfigSourceSpecifier;

    let proto::SdsSecretConfig { name, sds_config } = message;
    if name.is_empty() {
        return scope.refuse("a secret without name");
    }

    let specifier = sds_config
        .as_ref()
        .and_then(|config| config.config_source_specifier.as_ref());
    #[expect(
        deprecated,
        reason = "the older form of a path means the same as the newer one"
    )]
    let source = match specifier {
        None
        | Some(ConfigSourceSpecifier::PathConfigSource(_) | ConfigSourceSpecifier::Path(_)) => {
            SecretSource::Static
        }
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => SecretSource::Ads,
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
            let Some((cluster, delta)) = grpc_source(api) else {
                return scope.refuse(format!(
                    "secret {name:?} comes from neither ADS nor a gRPC service with envoy_grpc"
                ));
            };
            SecretSource::Cluster {
                cluster: cluster.into(),
                delta,
            }
        }
    };

    Ok(SecretRef {
        name: Arc::from(name.as_str()),
        source,
    })
}

/// The cluster of the first gRPC service of an API source, and whether its streams speak the delta
/// variant. `None` where the source is not an Envoy cluster over gRPC.
pub(crate) fn grpc_source(message: &core::ApiConfigSource) -> Option<(&str, bool)> {
    use core::api_config_source::ApiType;
    use core::grpc_service::TargetSpecifier;

    let delta = match ApiType::try_from(message.api_type) {
        Ok(ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc) => true,
        Ok(ApiType::Grpc | ApiType::AggregatedGrpc) => false,
        _ => return None,
    };
    match message.grpc_services.first()?.target_specifier.as_ref()? {
        TargetSpecifier::EnvoyGrpc(grpc) => Some((&grpc.cluster_name, delta)),
        TargetSpecifier::GoogleGrpc(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(text: &str) -> Option<core::DataSource> {
        Some(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(text.into())),
            ..Default::default()
        })
    }

    fn context(
        change: impl FnOnce(&mut proto::CertificateValidationContext),
    ) -> Compiled<SecretContent> {
        let mut context = proto::CertificateValidationContext {
            trusted_ca: inline("roots"),
            ..Default::default()
        };
        change(&mut context);

        SecretContent::compile(&proto::Secret {
            name: "ROOTCA".into(),
            r#type: Some(Type::ValidationContext(context)),
        })
    }

    #[test]
    fn a_context_that_narrows_whom_to_trust_is_refused() {
        use meltemi_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};

        assert!(context(|_| {}).is_ok());
        assert!(context(|context| context.crl = inline("list")).is_ok());

        let name = StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::Exact("a".into())),
            ..Default::default()
        };
        let typed = proto::SubjectAltNameMatcher {
            san_type: proto::subject_alt_name_matcher::SanType::Dns as i32,
            matcher: Some(name),
            ..Default::default()
        };
        for refused in [
            context(|context| context.verify_certificate_hash = vec!["00".repeat(32)]),
            context(|context| {
                context.verify_certificate_spki =
                    vec!["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into()]
            }),
            context(|context| context.match_typed_subject_alt_names = vec![typed]),
            context(|context| {
                context.trusted_ca = None;
                context.system_root_certs = Some(Default::default());
            }),
        ] {
            let rejection = refused.expect_err("refused");
            assert!(rejection.reason.contains("trusted_ca"), "{rejection}");
        }
    }

    #[test]
    fn debug_shows_no_byte_of_a_secret() {
        let (content, _) = context(|_| {}).expect("compiles");
        assert!(!format!("{content:?}").contains("roots"), "{content:?}");
    }
}
