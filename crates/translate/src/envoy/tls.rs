//! TLS contexts and their sockets.

use meltemi_proto::pack;

use super::core::TransportSocket;
use super::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use super::extensions::transport_sockets::tls::v3 as tls;
use super::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use super::matcher;
use super::value::{ads, sds_grpc, transport_socket};

/// The workload's own certificate and key.
pub(crate) const DEFAULT_SECRET: &str = "default";
/// The mesh's roots.
pub(crate) const ROOT_SECRET: &str = "ROOTCA";

/// A secret that the agent holds.
pub(crate) fn agent_secret(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: sds_grpc(0),
    }
}

/// Seconds that a listener or cluster waits for a secret from files.
const FILE_WAIT: u64 = 5;

/// A secret that the agent reads from files. The files may be missing for ever, and Envoy takes no
/// other cluster while it waits for one.
pub(crate) fn file_secret(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: sds_grpc(FILE_WAIT),
    }
}

/// A secret that the control plane hands out by its credential name.
pub(crate) fn pushed_secret(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: ads(),
    }
}

/// Validation against a secret's roots, with a list of acceptable names (any of them) on top.
pub(crate) fn validation(
    secret: tls::SdsSecretConfig,
    names: Vec<tls::SubjectAltNameMatcher>,
) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: names,
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret),
        ..Default::default()
    })
}

/// SPIFFE identities, as URI names.
pub(crate) fn uri_name(text: &str) -> tls::SubjectAltNameMatcher {
    tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri as i32,
        matcher: Some(matcher::exact(text)),
        oid: String::new(),
    }
}

/// A trust domain's identities, all of them.
pub(crate) fn uri_prefix(text: &str) -> tls::SubjectAltNameMatcher {
    tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri as i32,
        matcher: Some(matcher::prefix(text)),
        oid: String::new(),
    }
}

/// A name as a user writes it into `subjectAltNames`: a URI or a DNS name.
pub(crate) fn any_name(text: &str) -> tls::SubjectAltNameMatcher {
    use tls::subject_alt_name_matcher::SanType;

    let san_type = match () {
        () if text.contains("://") => SanType::Uri,
        () if text.parse::<std::net::IpAddr>().is_ok() => SanType::IpAddress,
        () => SanType::Dns,
    };

    tls::SubjectAltNameMatcher {
        san_type: san_type as i32,
        matcher: Some(matcher::exact(text)),
        oid: String::new(),
    }
}

pub(crate) fn alpn<S: AsRef<str>>(protocols: &[S]) -> Vec<String> {
    protocols
        .iter()
        .map(|protocol| protocol.as_ref().to_owned())
        .collect()
}

/// The mesh's cipher suites for TLS 1.2. Source: Istio `security.DefaultCiphers` plus its RSA
/// fall-backs.
pub(crate) fn mesh_parameters() -> tls::TlsParameters {
    use tls::tls_parameters::TlsProtocol;

    let suites = [
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "AES128-GCM-SHA256",
    ];

    tls::TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
        tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
        cipher_suites: suites.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

pub(crate) fn upstream_socket(context: &tls::UpstreamTlsContext) -> TransportSocket {
    transport_socket("envoy.transport_sockets.tls", pack(context))
}

pub(crate) fn downstream_socket(context: &tls::DownstreamTlsContext) -> TransportSocket {
    transport_socket("envoy.transport_sockets.tls", pack(context))
}

pub(crate) fn raw_socket() -> TransportSocket {
    transport_socket("envoy.transport_sockets.raw_buffer", pack(&RawBuffer {}))
}
