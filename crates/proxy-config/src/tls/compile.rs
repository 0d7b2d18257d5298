//! Compiling transport sockets and TLS contexts. A transport socket that is unknown, or
//! verification that cannot be done, refuses the resource: serving without it would be serving in
//! plaintext, or to anybody.

use std::sync::Arc;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::Any;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use meltemi_proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::common_tls_context::ValidationContextType;
use proto::downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType};
use proto::tls_parameters::TlsProtocol;

use super::secret::{compile_certificate, compile_secret_ref};
use super::*;
use crate::any::type_name;
use crate::convert::{boolean, not_honoured};

/// How often a transport socket may be wrapped in another.
const MAX_DEPTH: usize = 4;

impl UpstreamTransport {
    /// Compiles the transport socket of a cluster; absent means plaintext.
    pub(crate) fn compile(
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
            None => Ok(Box::new(Self::Plaintext)),
            Some(socket) => Self::compile_socket(socket, scope, depth + 1).map(Box::new),
        };

        match type_name(any) {
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(Self::Plaintext),
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
                let context = scope.unpack(any)?;
                Ok(Self::Tls(Arc::new(UpstreamTls::compile(&context, scope)?)))
            }
            "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" =>
            {
                let ProxyProtocolUpstreamTransport {
                    config,
                    transport_socket,
                    allow_unspecified_address,
                    tlv_as_pool_key,
                } = &scope.unpack(any)?;
                not_honoured!(scope, allow_unspecified_address, tlv_as_pool_key);

                let version = compile_proxy_protocol(config.as_ref(), scope);
                Ok(Self::ProxyProtocol(
                    version,
                    inner(transport_socket, scope)?,
                ))
            }
            "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport" => {
                let InternalUpstreamTransport {
                    passthrough_metadata,
                    transport_socket,
                } = &scope.unpack(any)?;
                not_honoured!(scope, passthrough_metadata);

                Ok(Self::Internal(inner(transport_socket, scope)?))
            }
            other => scope.refuse(format!("unknown transport socket {other:?}")),
        }
    }

    /// The terms of TLS, if the endpoint is spoken to in TLS.
    pub fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            Self::Plaintext => None,
            Self::Tls(tls) => Some(tls),
            Self::ProxyProtocol(_, inner) | Self::Internal(inner) => inner.tls(),
        }
    }
}

/// The version of the PROXY protocol, 1 or 2.
fn compile_proxy_protocol(message: Option<&core::ProxyProtocolConfig>, scope: &mut Scope) -> u8 {
    let Some(core::ProxyProtocolConfig {
        version,
        pass_through_tlvs,
        added_tlvs,
    }) = message
    else {
        return 1;
    };
    not_honoured!(scope, pass_through_tlvs, added_tlvs);

    match *version == core::proxy_protocol_config::Version::V2 as i32 {
        true => 2,
        false => 1,
    }
}

impl DownstreamTransport {
    /// Compiles the transport socket of a filter chain; absent means plaintext.
    pub(crate) fn compile(
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
                    let context = scope.unpack(any)?;
                    let terms = DownstreamTls::compile(&context, scope)?;
                    Ok(Self::Tls(Arc::new(terms)))
                }
                other => scope.refuse(format!("unknown transport socket {other:?}")),
            }
        })
    }
}

fn config_of<'m>(message: &'m core::TransportSocket, scope: &Scope) -> Result<&'m Any, Rejection> {
    let core::TransportSocket { name, config_type } = message;

    match config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => Ok(any),
        None => scope.refuse(format!("transport socket {name:?} without typed_config")),
    }
}

impl DownstreamTls {
    pub(crate) fn compile(
        message: &proto::DownstreamTlsContext,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::DownstreamTlsContext {
            common_tls_context,
            require_client_certificate,
            require_sni,
            disable_stateful_session_resumption,
            session_timeout,
            ocsp_staple_policy,
            full_scan_certs_on_sni_mismatch,
            prefer_client_ciphers,
            session_ticket_keys_type,
        } = message;

        let common = scope.required("common_tls_context", common_tls_context.as_ref())?;
        let common = scope.within("common_tls_context", |scope| {
            CommonTls::compile(common, scope)
        })?;
        let require_client_certificate = boolean(require_client_certificate.as_ref(), false);

        if common.certificates.is_empty() {
            return scope.refuse("a server needs a certificate");
        }
        if common.validation.is_pinned() && common.validation.trust == Trust::None {
            return scope.refuse("pins of clients need a trusted_ca");
        }
        if require_client_certificate && common.validation.verifies_nothing() {
            return scope.refuse("require_client_certificate without anything to verify it by");
        }
        if *ocsp_staple_policy == OcspStaplePolicy::MustStaple as i32 {
            return scope.refuse("OCSP stapling is unknown, so MUST_STAPLE cannot be kept");
        }

        not_honoured!(
            scope,
            session_timeout,
            full_scan_certs_on_sni_mismatch,
            prefer_client_ciphers,
        );
        let disable_tickets = match session_ticket_keys_type {
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
            require_sni: boolean(require_sni.as_ref(), false),
            disable_tickets,
            disable_sessions: *disable_stateful_session_resumption,
        })
    }
}

impl UpstreamTls {
    fn compile(message: &proto::UpstreamTlsContext, scope: &mut Scope) -> Result<Self, Rejection> {
        #[expect(deprecated, reason = "enforce_rsa_key_usage is read to be warned of")]
        let proto::UpstreamTlsContext {
            common_tls_context,
            sni,
            auto_host_sni,
            auto_sni_san_validation,
            allow_renegotiation,
            max_session_keys,
            enforce_rsa_key_usage,
        } = message;

        let default = proto::CommonTlsContext::default();
        let common = common_tls_context.as_ref().unwrap_or(&default);
        let common = scope.within("common_tls_context", |scope| {
            CommonTls::compile(common, scope)
        })?;
        if *auto_sni_san_validation && common.validation.trust == Trust::None {
            return scope.refuse(
                "auto_sni_san_validation without anything that vouches for the certificate",
            );
        }

        not_honoured!(
            scope,
            allow_renegotiation,
            max_session_keys,
            enforce_rsa_key_usage,
        );

        Ok(Self {
            common,
            sni: sni.as_str().into(),
            auto_host_sni: *auto_host_sni,
            auto_sni_san_validation: *auto_sni_san_validation,
        })
    }
}

impl CommonTls {
    fn compile(message: &proto::CommonTlsContext, scope: &mut Scope) -> Result<Self, Rejection> {
        #[expect(
            deprecated,
            reason = "older certificate providers are refused like the newer"
        )]
        let proto::CommonTlsContext {
            tls_params,
            tls_certificates,
            tls_certificate_sds_secret_configs,
            tls_certificate_provider_instance,
            custom_tls_certificate_selector,
            tls_certificate_certificate_provider,
            tls_certificate_certificate_provider_instance,
            alpn_protocols,
            custom_handshaker,
            key_log,
            validation_context_type,
        } = message;

        if custom_handshaker.is_some() || custom_tls_certificate_selector.is_some() {
            return scope.refuse("custom handshakers and certificate selectors are unknown");
        }
        if tls_certificate_provider_instance.is_some()
            || tls_certificate_certificate_provider.is_some()
            || tls_certificate_certificate_provider_instance.is_some()
        {
            return scope.refuse("certificate providers are unknown");
        }
        not_honoured!(scope, key_log);

        let mut certificates =
            scope.each("tls_certificates", tls_certificates, |scope, message| {
                let (chain, key) = compile_certificate(message, scope)?;
                Ok(CertificateSource::Inline { chain, key })
            })?;
        certificates.extend(scope.each(
            "tls_certificate_sds_secret_configs",
            tls_certificate_sds_secret_configs,
            |scope, config| compile_secret_ref(config, scope).map(CertificateSource::Secret),
        )?);

        let validation = compile_validation(validation_context_type.as_ref(), scope)?;
        validation.check(scope)?;
        let parameters = Parameters::compile(tls_params.as_ref(), scope)?;

        Ok(Self {
            certificates,
            validation,
            alpn: alpn_protocols
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            min_version: parameters.min_version,
            max_version: parameters.max_version,
            cipher_suites: parameters.cipher_suites,
            groups: parameters.groups,
        })
    }
}

fn compile_validation(
    message: Option<&ValidationContextType>,
    scope: &mut Scope,
) -> Result<Validation, Rejection> {
    match message {
        None => Ok(Validation::none()),
        Some(ValidationContextType::ValidationContext(context)) => scope
            .within("validation_context", |scope| {
                Validation::compile(context, scope)
            }),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => Ok(Validation {
            trust: Trust::Secret(compile_secret_ref(config, scope)?),
            ..Validation::none()
        }),
        Some(ValidationContextType::CombinedValidationContext(combined)) => scope
            .within("combined_validation_context", |scope| {
                compile_combined(combined, scope)
            }),
        Some(_) => scope.refuse("certificate providers are unknown"),
    }
}

/// A validation context whose roots come from a secret.
fn compile_combined(
    message: &proto::common_tls_context::CombinedCertificateValidationContext,
    scope: &mut Scope,
) -> Result<Validation, Rejection> {
    #[expect(deprecated, reason = "certificate providers are read to be refused")]
    let proto::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
        validation_context_certificate_provider,
        validation_context_certificate_provider_instance,
    } = message;

    // The roots of a provider would be missing, and any certificate would do.
    if validation_context_certificate_provider.is_some()
        || validation_context_certificate_provider_instance.is_some()
    {
        return scope.refuse("certificate providers are unknown");
    }

    let default = proto::CertificateValidationContext::default();
    let context = default_validation_context.as_ref().unwrap_or(&default);
    let mut validation = Validation::compile(context, scope)?;
    if let Some(config) = validation_context_sds_secret_config {
        validation.trust = Trust::Secret(compile_secret_ref(config, scope)?);
    }

    Ok(validation)
}

/// `tls_params`, compiled.
struct Parameters {
    min_version: TlsVersion,
    max_version: TlsVersion,
    cipher_suites: Box<[u16]>,
    groups: Box<[u16]>,
}

impl Parameters {
    fn compile(
        message: Option<&proto::TlsParameters>,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::TlsParameters {
            tls_minimum_protocol_version,
            tls_maximum_protocol_version,
            cipher_suites,
            ecdh_curves,
            signature_algorithms,
            compliance_policies,
        } = message.cloned().unwrap_or_default();

        // Both narrow what may be agreed on: without them more would be accepted than is meant.
        if !signature_algorithms.is_empty() || !compliance_policies.is_empty() {
            return scope
                .refuse("tls_params.signature_algorithms and compliance_policies are unknown");
        }

        let min_version = match TlsProtocol::try_from(tls_minimum_protocol_version) {
            // Older versions are never spoken; as a lower bound they mean 1.2.
            Ok(
                TlsProtocol::TlsAuto
                | TlsProtocol::TlSv10
                | TlsProtocol::TlSv11
                | TlsProtocol::TlSv12,
            ) => TlsVersion::V12,
            Ok(TlsProtocol::TlSv13) => TlsVersion::V13,
            Err(_) => return scope.refuse("unknown tls_minimum_protocol_version"),
        };
        let max_version = match TlsProtocol::try_from(tls_maximum_protocol_version) {
            Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => TlsVersion::V13,
            Ok(TlsProtocol::TlSv12) => TlsVersion::V12,
            _ => return scope.refuse("versions of TLS below 1.2 are not spoken"),
        };
        if min_version > max_version {
            return scope.refuse("tls_minimum_protocol_version is above the maximum");
        }

        Ok(Self {
            min_version,
            max_version,
            cipher_suites: match min_version {
                // The list has no say in TLS 1.3.
                TlsVersion::V13 => Box::default(),
                TlsVersion::V12 => algorithms::cipher_suites(&cipher_suites, scope)?,
            },
            groups: algorithms::groups(&ecdh_curves, scope)?,
        })
    }
}
