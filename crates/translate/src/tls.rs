//! Transport security of a cluster and of a filter chain.

use meltemi_model::ProxyProtocol;
use meltemi_proto::pack;

use crate::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use crate::envoy::extensions::transport_sockets::tls::v3 as tls;
use crate::envoy::tls::{
    DEFAULT_SECRET, ROOT_SECRET, agent_secret, alpn, any_name, downstream_socket, file_secret,
    mesh_parameters, pushed_secret, raw_socket, upstream_socket, uri_name, uri_prefix, validation,
};
use crate::envoy::value::{boolv, text_struct, transport_socket};
use crate::envoy::{cluster, core, wkt};
use crate::filters::PEER_EXCHANGE;

/// What upstream connections of a cluster do about TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum UpstreamTls {
    /// Plaintext, always.
    Off,
    /// Mutual TLS to endpoints that have a proxy, plaintext to others.
    Auto(MeshTls),
    /// Mutual TLS of the mesh, asked for by a DestinationRule.
    Mesh(MeshTls),
    /// TLS that a DestinationRule describes.
    Foreign(ForeignTls),
}

/// The mesh's own mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MeshTls {
    pub sni: String,
    /// SPIFFE identities of which the server must show one; empty: any of the mesh.
    pub identities: Vec<String>,
    pub alpn: Vec<String>,
}

/// SIMPLE or MUTUAL TLS towards something outside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ForeignTls {
    pub sni: String,
    pub names: Vec<String>,
    /// Names of secrets: of the client certificate, and of the roots (`None`: nothing is verified).
    pub certificate: Option<SecretName>,
    pub roots: Option<SecretName>,
    pub alpn: Vec<String>,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SecretName {
    /// The agent: files, or the system's roots.
    Agent(String),
    /// The control plane, by credential name.
    Pushed(String),
}

impl SecretName {
    fn config(&self) -> tls::SdsSecretConfig {
        match self {
            Self::Agent(name) => file_secret(name),
            Self::Pushed(name) => pushed_secret(name),
        }
    }
}

impl UpstreamTls {
    /// Whether the TLS peer is outside the mesh.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign(_))
    }

    /// Whether it offers to exchange who both ends are.
    pub fn exchanges_peers(&self) -> bool {
        match self {
            Self::Auto(mesh) | Self::Mesh(mesh) => {
                mesh.alpn.iter().any(|protocol| protocol == PEER_EXCHANGE)
            }
            Self::Off | Self::Foreign(_) => false,
        }
    }

    /// Whether SNI comes from the request's host; then whether the certificate must name that host.
    /// Also on a port that is declared as HTTPS: routes lead HTTP there for TLS to be originated.
    /// Source: Istio `setAutoSniAndAutoSanValidation`.
    pub fn auto_sni(&self) -> Option<bool> {
        match self {
            Self::Foreign(foreign) if foreign.sni.is_empty() => {
                Some(foreign.names.is_empty() && foreign.roots.is_some())
            }
            _ => None,
        }
    }
}

fn mesh_upstream(input: &MeshTls) -> tls::UpstreamTlsContext {
    let names = input
        .identities
        .iter()
        .map(|identity| uri_name(identity))
        .collect();

    tls::UpstreamTlsContext {
        sni: input.sni.clone(),
        common_tls_context: Some(tls::CommonTlsContext {
            tls_params: Some(client_parameters()),
            tls_certificate_sds_secret_configs: vec![agent_secret(DEFAULT_SECRET)],
            validation_context_type: Some(validation(agent_secret(ROOT_SECRET), names)),
            alpn_protocols: alpn(&input.alpn),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn client_parameters() -> tls::TlsParameters {
    use tls::tls_parameters::TlsProtocol;
    // Envoy's clients stop at TLS 1.2 unless told.
    tls::TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
        tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
        ..Default::default()
    }
}

fn foreign_upstream(input: &ForeignTls) -> tls::UpstreamTlsContext {
    let ForeignTls {
        sni,
        names,
        certificate,
        roots,
        alpn: protocols,
    } = input;

    let names = names.iter().map(|name| any_name(name)).collect();
    tls::UpstreamTlsContext {
        sni: sni.clone(),
        common_tls_context: Some(tls::CommonTlsContext {
            tls_params: Some(client_parameters()),
            tls_certificate_sds_secret_configs: certificate
                .iter()
                .map(SecretName::config)
                .collect(),
            validation_context_type: roots
                .as_ref()
                .map(|roots| validation(roots.config(), names)),
            alpn_protocols: alpn(protocols),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn with_proxy_protocol(
    inner: core::TransportSocket,
    version: Option<ProxyProtocol>,
) -> core::TransportSocket {
    use core::proxy_protocol_config::Version;

    let Some(version) = version else { return inner };
    let version = match version {
        ProxyProtocol::V1 => Version::V1,
        ProxyProtocol::V2 => Version::V2,
    };

    let config = ProxyProtocolUpstreamTransport {
        config: Some(core::ProxyProtocolConfig {
            version: version as i32,
            ..Default::default()
        }),
        transport_socket: Some(inner),
        ..Default::default()
    };

    transport_socket(
        "envoy.transport_sockets.upstream_proxy_protocol",
        pack(&config),
    )
}

/// Gives a cluster its transport sockets.
pub(crate) fn apply_upstream_tls(
    message: &mut cluster::Cluster,
    input: &UpstreamTls,
    proxy_protocol: Option<ProxyProtocol>,
) {
    let socket_match =
        |name: &str, criteria: wkt::Struct, socket| cluster::cluster::TransportSocketMatch {
            name: name.to_owned(),
            r#match: Some(criteria),
            transport_socket: Some(socket),
        };

    match input {
        UpstreamTls::Off => {
            if proxy_protocol.is_some() {
                message.transport_socket = Some(with_proxy_protocol(raw_socket(), proxy_protocol));
            }
        }
        UpstreamTls::Auto(mesh) => {
            let secured =
                with_proxy_protocol(upstream_socket(&mesh_upstream(mesh)), proxy_protocol);
            let plain = with_proxy_protocol(raw_socket(), proxy_protocol);
            message.transport_socket_matches = vec![
                socket_match(
                    "tlsMode-istio",
                    text_struct([("tlsMode", "istio")]),
                    secured,
                ),
                socket_match("tlsMode-disabled", wkt::Struct::default(), plain),
            ];
        }
        UpstreamTls::Mesh(mesh) => {
            let secured = upstream_socket(&mesh_upstream(mesh));
            message.transport_socket = Some(with_proxy_protocol(secured, proxy_protocol));
        }
        UpstreamTls::Foreign(foreign) => {
            let secured = upstream_socket(&foreign_upstream(foreign));
            message.transport_socket = Some(with_proxy_protocol(secured, proxy_protocol));
        }
    }
}

/// What a filter chain does about TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum DownstreamTls {
    /// Nothing is terminated.
    Off,
    /// The mesh's mutual TLS.
    Mesh {
        alpn: Vec<String>,
        /// `spiffe://domain/` of each accepted trust domain; empty: whatever the roots vouch for.
        trust_domains: Vec<String>,
    },
    /// A gateway's server.
    Server(ServerTls),
}

/// A Gateway server that terminates TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ServerTls {
    pub certificates: Vec<SecretName>,
    pub client: ClientCertificate,
    pub alpn: Vec<String>,
    pub minimum: TlsVersion,
    pub maximum: TlsVersion,
    pub ciphers: Vec<String>,
    /// Acceptable names of the client's certificate.
    pub names: Vec<String>,
    pub spki_hashes: Vec<String>,
    pub certificate_hashes: Vec<String>,
}

/// What a Gateway server wants of its clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ClientCertificate {
    None,
    Optional(SecretName),
    Required(SecretName),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TlsVersion {
    Auto,
    V10,
    V11,
    V12,
    V13,
}

impl TlsVersion {
    fn message(self) -> i32 {
        use tls::tls_parameters::TlsProtocol;
        let version = match self {
            Self::Auto => TlsProtocol::TlsAuto,
            Self::V10 => TlsProtocol::TlSv10,
            Self::V11 => TlsProtocol::TlSv11,
            Self::V12 => TlsProtocol::TlSv12,
            Self::V13 => TlsProtocol::TlSv13,
        };
        version as i32
    }
}

/// The transport socket of a filter chain; `None` for plaintext.
pub(crate) fn downstream_transport(input: &DownstreamTls) -> Option<core::TransportSocket> {
    match input {
        DownstreamTls::Off => None,
        DownstreamTls::Mesh {
            alpn: protocols,
            trust_domains,
        } => {
            let names = trust_domains
                .iter()
                .map(|prefix| uri_prefix(prefix))
                .collect();

            Some(downstream_socket(&tls::DownstreamTlsContext {
                common_tls_context: Some(tls::CommonTlsContext {
                    tls_params: Some(mesh_parameters()),
                    tls_certificate_sds_secret_configs: vec![agent_secret(DEFAULT_SECRET)],
                    validation_context_type: Some(validation(agent_secret(ROOT_SECRET), names)),
                    alpn_protocols: alpn(protocols),
                    ..Default::default()
                }),
                require_client_certificate: boolv(true),
                ..Default::default()
            }))
        }
        DownstreamTls::Server(server) => Some(downstream_socket(&server_context(server))),
    }
}

fn server_context(input: &ServerTls) -> tls::DownstreamTlsContext {
    let ServerTls {
        certificates,
        client,
        alpn: protocols,
        minimum,
        maximum,
        ciphers,
        names,
        spki_hashes,
        certificate_hashes,
    } = input;

    let (roots, is_required) = match client {
        ClientCertificate::None => (None, false),
        ClientCertificate::Optional(roots) => (Some(roots), false),
        ClientCertificate::Required(roots) => (Some(roots), true),
    };

    let validation = roots.map(|roots| {
        use tls::common_tls_context::{
            CombinedCertificateValidationContext, ValidationContextType,
        };

        ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(tls::CertificateValidationContext {
                match_typed_subject_alt_names: names.iter().map(|name| any_name(name)).collect(),
                verify_certificate_spki: spki_hashes.clone(),
                verify_certificate_hash: certificate_hashes.clone(),
                ..Default::default()
            }),
            validation_context_sds_secret_config: Some(roots.config()),
            ..Default::default()
        })
    });

    tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_params: Some(tls::TlsParameters {
                tls_minimum_protocol_version: minimum.message(),
                tls_maximum_protocol_version: maximum.message(),
                cipher_suites: ciphers.clone(),
                ..Default::default()
            }),
            tls_certificate_sds_secret_configs: certificates
                .iter()
                .map(SecretName::config)
                .collect(),
            validation_context_type: validation,
            alpn_protocols: alpn(protocols),
            ..Default::default()
        }),
        require_client_certificate: boolv(is_required),
        ..Default::default()
    }
}
