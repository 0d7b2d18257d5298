//! Compiling TLS contexts. A transport socket that is unknown, or verification that cannot be done,
//! refuses the resource: serving without it would be serving in plaintext, or to anybody.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meltemi_filters::matcher::StringMatch;
use meltemi_filters::{Rejection, Scope};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use meltemi_proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::common_tls_context::ValidationContextType;
use proto::tls_parameters::TlsProtocol;

use super::*;
use crate::convert::boolean;

/// How deep transports may be wrapped.
const MAX_DEPTH: usize = 4;

impl UpstreamTransport {
    /// Compiles the transport socket of a cluster; absent means plaintext.
    pub fn compile(
        message: Option<&core::TransportSocket>,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        match message {
            None => Ok(Self::Plaintext),
            Some(message) => scope.within("transport_socket", |scope| {
                Self::compile_socket(message, scope, 0)
            }),
        }
    }

    fn compile_socket(
        message: &core::TransportSocket,
        scope: &mut Scope,
        depth: usize,
    ) -> Result<Self, Rejection> {
        if depth > MAX_DEPTH {
            return scope.refuse("transport sockets are wrapped too often");
        }
        let any = config_of(message, scope)?;
        let inner = |socket: &Option<core::TransportSocket>, scope: &mut Scope| match socket {
            None => Ok(Self::Plaintext),
            Some(socket) => Self::compile_socket(socket, scope, depth + 1),
        };

        match type_name(any) {
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(Self::Plaintext),
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
                let context: proto::UpstreamTlsContext = scope.unpack(any)?;
                Ok(Self::Tls(Arc::new(UpstreamTls::compile(&context, scope)?)))
            }
            "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" =>
            {
                let config: ProxyProtocolUpstreamTransport = scope.unpack(any)?;
                let version = config.config.as_ref().map_or(0, |config| config.version);
                let version = if version == core::proxy_protocol_config::Version::V2 as i32 {
                    2
                } else {
                    1
                };

                Ok(Self::ProxyProtocol(
                    version,
                    Box::new(inner(&config.transport_socket, scope)?),
                ))
            }
            "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport" => {
                let config: InternalUpstreamTransport = scope.unpack(any)?;
                Ok(Self::Internal(Box::new(inner(
                    &config.transport_socket,
                    scope,
                )?)))
            }
            other => scope.refuse(format!("unknown transport socket {other:?}")),
        }
    }

    /// The terms of TLS, if there is TLS.
    pub fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            Self::Plaintext => None,
            Self::Tls(tls) => Some(tls),
            Self::ProxyProtocol(_, inner) | Self::Internal(inner) => inner.tls(),
        }
    }
}

impl DownstreamTransport {
    /// Compiles the transport socket of a filter chain; absent means plaintext.
    pub fn compile(
        message: Option<&core::TransportSocket>,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let Some(message) = message else {
            return Ok(Self::Plaintext);
        };
        scope.within("transport_socket", |scope| {
            let any = config_of(message, scope)?;
            match type_name(any) {
                "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(Self::Plaintext),
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
                    let context: proto::DownstreamTlsContext = scope.unpack(any)?;
                    Ok(Self::Tls(Arc::new(DownstreamTls::compile(
                        &context, scope,
                    )?)))
                }
                other => scope.refuse(format!("unknown transport socket {other:?}")),
            }
        })
    }
}

/// The full name in a type URL.
pub(crate) fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

fn config_of<'m>(message: &'m core::TransportSocket, scope: &Scope) -> Result<&'m Any, Rejection> {
    match &message.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => Ok(any),
        None => scope.refuse(format!(
            "transport socket {:?} without typed_config",
            message.name
        )),
    }
}

impl DownstreamTls {
    /// Compiles Envoy's message.
    pub fn compile(
        message: &proto::DownstreamTlsContext,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        use proto::downstream_tls_context::SessionTicketKeysType;

        let common = scope.required("common_tls_context", message.common_tls_context.as_ref())?;
        let common = scope.within("common_tls_context", |scope| {
            CommonTls::compile(common, scope)
        })?;
        let require_client_certificate =
            boolean(message.require_client_certificate.as_ref(), false);
        if common.certificates.is_empty() {
            return scope.refuse("a server needs a certificate");
        }
        if common.validation.is_pinned() && common.validation.trust == Trust::None {
            return scope.refuse("pins of clients need a trusted_ca");
        }
        if require_client_certificate && common.validation.verifies_nothing() {
            return scope.refuse("require_client_certificate without anything to verify it by");
        }
        if message.ocsp_staple_policy
            == proto::downstream_tls_context::OcspStaplePolicy::MustStaple as i32
        {
            return scope.refuse("OCSP stapling is unknown, so MUST_STAPLE cannot be kept");
        }

        scope.unsupported("session_timeout", message.session_timeout.is_some());
        let disable_tickets = match &message.session_ticket_keys_type {
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(disable)) => *disable,
            Some(_) => {
                scope.warn("session_ticket_keys", "keys are the proxy's own");
                false
            }
            None => false,
        };

        Ok(Self {
            common,
            require_client_certificate,
            require_sni: boolean(message.require_sni.as_ref(), false),
            disable_tickets,
            disable_sessions: message.disable_stateful_session_resumption,
        })
    }
}

impl UpstreamTls {
    /// Compiles Envoy's message.
    pub fn compile(
        message: &proto::UpstreamTlsContext,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let default = proto::CommonTlsContext::default();
        let common = message.common_tls_context.as_ref().unwrap_or(&default);
        let common = scope.within("common_tls_context", |scope| {
            CommonTls::compile(common, scope)
        })?;
        if message.auto_sni_san_validation && common.validation.trust == Trust::None {
            return scope.refuse(
                "auto_sni_san_validation without anything that vouches for the certificate",
            );
        }

        scope.unsupported("allow_renegotiation", message.allow_renegotiation);

        Ok(Self {
            common,
            sni: message.sni.as_str().into(),
            auto_host_sni: message.auto_host_sni,
            auto_sni_san_validation: message.auto_sni_san_validation,
        })
    }
}

impl CommonTls {
    fn compile(message: &proto::CommonTlsContext, scope: &mut Scope) -> Result<Self, Rejection> {
        if message.custom_handshaker.is_some() || message.custom_tls_certificate_selector.is_some()
        {
            return scope.refuse("custom handshakers and certificate selectors are unknown");
        }

        scope.unsupported("key_log", message.key_log.is_some());
        let mut certificates =
            scope.each("tls_certificates", &message.tls_certificates, certificate)?;
        certificates.extend(scope.each(
            "tls_certificate_sds_secret_configs",
            &message.tls_certificate_sds_secret_configs,
            |scope, config| secret(config, scope).map(CertificateSource::Secret),
        )?);

        let validation = match &message.validation_context_type {
            None => Validation::none(),
            Some(ValidationContextType::ValidationContext(context)) => scope
                .within("validation_context", |scope| {
                    Validation::compile(context, scope)
                })?,
            Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => Validation {
                trust: Trust::Secret(secret(config, scope)?),
                ..Validation::none()
            },
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                scope.within("combined_validation_context", |scope| {
                    let default = proto::CertificateValidationContext::default();
                    let context = combined
                        .default_validation_context
                        .as_ref()
                        .unwrap_or(&default);

                    let mut validation = Validation::compile(context, scope)?;
                    if let Some(config) = &combined.validation_context_sds_secret_config {
                        validation.trust = Trust::Secret(secret(config, scope)?);
                    }
                    Ok(validation)
                })?
            }
            Some(_) => return scope.refuse("certificate providers are unknown"),
        };

        validation.check(scope)?;
        let parameters = message.tls_params.clone().unwrap_or_default();
        let version = |value: i32, default: TlsVersion, lowest: bool, scope: &Scope| {
            match TlsProtocol::try_from(value) {
                Ok(TlsProtocol::TlsAuto) => Ok(default),
                Ok(TlsProtocol::TlSv12) => Ok(TlsVersion::V12),
                Ok(TlsProtocol::TlSv13) => Ok(TlsVersion::V13),
                // Older ones are never spoken; as a lower bound they mean 1.2.
                Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) if lowest => Ok(TlsVersion::V12),
                _ => scope.refuse("versions of TLS below 1.2 are not spoken"),
            }
        };

        let min_version = version(
            parameters.tls_minimum_protocol_version,
            TlsVersion::V12,
            true,
            scope,
        )?;

        let max_version = version(
            parameters.tls_maximum_protocol_version,
            TlsVersion::V13,
            false,
            scope,
        )?;

        if min_version > max_version {
            return scope.refuse("tls_minimum_protocol_version is above the maximum");
        }

        // Both narrow what may be agreed on: without them more would be accepted than is meant.
        if !parameters.signature_algorithms.is_empty() || !parameters.compliance_policies.is_empty()
        {
            return scope
                .refuse("tls_params.signature_algorithms and compliance_policies are unknown");
        }

        if message.tls_certificate_provider_instance.is_some() {
            return scope.refuse("certificate providers are unknown");
        }
        let cipher_suites = match min_version {
            // They have no say in TLS 1.3.
            TlsVersion::V13 => Box::default(),
            TlsVersion::V12 => algorithms::cipher_suites(&parameters.cipher_suites, scope)?,
        };

        Ok(Self {
            certificates,
            validation,
            alpn: message
                .alpn_protocols
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            min_version,
            max_version,
            cipher_suites,
            groups: algorithms::groups(&parameters.ecdh_curves, scope)?,
        })
    }
}

impl Validation {
    /// No verification.
    pub fn none() -> Self {
        Self {
            trust: Trust::None,
            san_matchers: Vec::new(),
            spki_pins: Vec::new(),
            certificate_pins: Vec::new(),
            crl: None,
        }
    }

    /// Whether any certificate would do.
    pub fn verifies_nothing(&self) -> bool {
        self.trust == Trust::None && !self.is_pinned()
    }

    /// Compiles Envoy's message, as it stands in a context or in a secret.
    pub fn compile(
        message: &proto::CertificateValidationContext,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        use proto::subject_alt_name_matcher::SanType;

        if message.custom_validator_config.is_some()
            || message.ca_certificate_provider_instance.is_some()
        {
            return scope.refuse("custom validators and certificate providers are unknown");
        }

        if boolean(message.require_signed_certificate_timestamp.as_ref(), false) {
            return scope.refuse("signed certificate timestamps are unknown");
        }
        if message.max_verify_depth.is_some() {
            return scope
                .refuse("max_verify_depth is unknown; chains have at most 10 certificates");
        }

        // Without these more is refused than is meant, which is safe.
        let untrusted =
            proto::certificate_validation_context::TrustChainVerification::AcceptUntrusted as i32;
        scope.unsupported(
            "allow_expired_certificate",
            message.allow_expired_certificate,
        );

        scope.unsupported(
            "trust_chain_verification",
            message.trust_chain_verification == untrusted,
        );

        scope.unsupported(
            "only_verify_leaf_cert_crl",
            message.only_verify_leaf_cert_crl,
        );

        let mut san_matchers = scope.each(
            "match_typed_subject_alt_names",
            &message.match_typed_subject_alt_names,
            |scope, san| {
                let kind = match SanType::try_from(san.san_type) {
                    Ok(SanType::Dns) => SanKind::Dns,
                    Ok(SanType::Uri) => SanKind::Uri,
                    Ok(SanType::IpAddress) => SanKind::Ip,
                    Ok(SanType::Email) => SanKind::Email,
                    _ => return scope.refuse("unknown san_type"),
                };

                let value = scope.required("matcher", san.matcher.as_ref())?;
                Ok(SanMatch {
                    kind,
                    value: StringMatch::compile(value, scope)?,
                })
            },
        )?;

        #[allow(deprecated)] // what Istio sends
        let untyped = &message.match_subject_alt_names;
        san_matchers.extend(
            scope.each("match_subject_alt_names", untyped, |scope, value| {
                Ok(SanMatch {
                    kind: SanKind::Any,
                    value: StringMatch::compile(value, scope)?,
                })
            })?,
        );

        let trust = match (&message.trusted_ca, &message.system_root_certs) {
            (Some(source), _) => Trust::Inline(data_source(source, scope)?),
            (None, Some(_)) => Trust::System,
            (None, None) => Trust::None,
        };

        let spki_pins = scope.each(
            "verify_certificate_spki",
            &message.verify_certificate_spki,
            |scope, pin| {
                let bytes = STANDARD
                    .decode(pin)
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok());
                bytes.ok_or_else(|| scope.reject("not the SHA-256 of a public key in base64"))
            },
        )?;

        let certificate_pins = scope.each(
            "verify_certificate_hash",
            &message.verify_certificate_hash,
            |scope, pin| {
                sha256_of_hex(pin)
                    .ok_or_else(|| scope.reject("not the SHA-256 of a certificate in hexadecimal"))
            },
        )?;

        Ok(Self {
            trust,
            san_matchers,
            spki_pins,
            certificate_pins,
            crl: match &message.crl {
                Some(source) => Some(data_source(source, scope)?),
                None => None,
            },
        })
    }

    /// What only makes sense once it is clear what vouches for the peer.
    fn check(&self, scope: &Scope) -> Result<(), Rejection> {
        if self.trust != Trust::None {
            return Ok(());
        }
        if !self.san_matchers.is_empty() {
            return scope.refuse("names of certificates that nothing vouches for prove nothing: trusted_ca is missing");
        }
        if self.crl.is_some() {
            return scope.refuse("a crl without trusted_ca");
        }

        Ok(())
    }
}

/// With or without colons, in either case.
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

fn certificate(
    scope: &mut Scope,
    message: &proto::TlsCertificate,
) -> Result<CertificateSource, Rejection> {
    if message.private_key_provider.is_some()
        || message.pkcs12.is_some()
        || message.password.is_some()
    {
        return scope.refuse("private key providers, PKCS #12 and encrypted keys are unknown");
    }

    scope.unsupported("ocsp_staple", message.ocsp_staple.is_some());
    let chain = scope.required("certificate_chain", message.certificate_chain.as_ref())?;
    let key = scope.required("private_key", message.private_key.as_ref())?;

    Ok(CertificateSource::Inline {
        chain: data_source(chain, scope)?,
        key: data_source(key, scope)?,
    })
}

/// Compiles a data source.
pub(crate) fn data_source(
    message: &core::DataSource,
    scope: &Scope,
) -> Result<DataSource, Rejection> {
    use core::data_source::Specifier;
    Ok(match &message.specifier {
        Some(Specifier::Filename(path)) => DataSource::File(path.as_str().into()),
        Some(Specifier::InlineBytes(bytes)) => DataSource::Inline(bytes.as_slice().into()),
        Some(Specifier::InlineString(text)) => DataSource::Inline(text.as_bytes().into()),
        Some(Specifier::EnvironmentVariable(name)) => DataSource::Environment(name.as_str().into()),
        None => return scope.refuse("a data source without data"),
    })
}

fn secret(message: &proto::SdsSecretConfig, scope: &Scope) -> Result<SecretRef, Rejection> {
    use core::config_source::ConfigSourceSpecifier;

    if message.name.is_empty() {
        return scope.refuse("a secret without name");
    }
    let source = match message
        .sds_config
        .as_ref()
        .and_then(|config| config.config_source_specifier.as_ref())
    {
        None | Some(ConfigSourceSpecifier::PathConfigSource(_)) => SecretSource::Static,
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => SecretSource::Ads,
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => match grpc_cluster(api) {
            Some(cluster) => SecretSource::Cluster(cluster.into()),
            None => {
                return scope.refuse(format!(
                    "secret {:?} comes from neither ADS nor an Envoy cluster",
                    message.name
                ));
            }
        },
        #[allow(deprecated)]
        Some(ConfigSourceSpecifier::Path(_)) => SecretSource::Static,
    };

    Ok(SecretRef {
        name: message.name.as_str().into(),
        source,
    })
}

/// The cluster of the first gRPC service of an API source.
pub(crate) fn grpc_cluster(message: &core::ApiConfigSource) -> Option<&str> {
    use core::grpc_service::TargetSpecifier;
    match message.grpc_services.first()?.target_specifier.as_ref()? {
        TargetSpecifier::EnvoyGrpc(grpc) => Some(&grpc.cluster_name),
        TargetSpecifier::GoogleGrpc(_) => None,
    }
}
