//! What a DestinationRule settles for one cluster: policy, transport security, hash keys.

use meltemi_model::{ClientTls, ClientTlsMode, HashKey, LbPolicy, MeshSettings, PolicySettings};

use crate::cluster::{ClusterPolicy, UpstreamHttp};
use crate::route::HashPolicy;
use crate::tls::{ForeignTls, MeshTls, SecretName, UpstreamTls};

/// The policy of a cluster: what a DestinationRule says, over the mesh's settings.
pub(crate) fn cluster_policy(settings: &PolicySettings, mesh: &MeshSettings) -> ClusterPolicy {
    let PolicySettings {
        load_balancer,
        connection_pool,
        outlier,
        // Decided with the endpoints' identities, in `upstream_tls`.
        tls: _,
        // Analysis warns that it is not supported.
        tunnel: _,
        proxy_protocol,
        retry_budget,
    } = settings;

    let (lb, warmup) = load_balancer
        .as_ref()
        .map(|lb| (lb.policy.clone(), lb.warmup))
        .unwrap_or_default();

    let mut pool = connection_pool.clone().unwrap_or_default();
    pool.connect_timeout = pool
        .connect_timeout
        .filter(|timeout| !timeout.is_zero())
        .or(Some(mesh.connect_timeout));

    // Field by field over the mesh's. Source: Istio `applyTCPKeepalive`.
    pool.keepalive = match (pool.keepalive, mesh.keepalive) {
        (Some(own), Some(mesh)) => Some(own.or(mesh)),
        (own, mesh) => own.or(mesh),
    };

    ClusterPolicy {
        lb,
        locality_weighted: false,
        warmup,
        pool,
        outlier: outlier.clone(),
        proxy_protocol: *proxy_protocol,
        retry_budget: *retry_budget,
    }
}

/// The dialect towards a port: as the client if asked, upgrades as asked, declared HTTP/2 and gRPC;
/// sniffed ports by what the client spoke. Source: Istio `shouldH2Upgrade`, `applyConnectionPool`.
pub(crate) fn upstream_http(
    protocol: meltemi_types::Protocol,
    settings: &PolicySettings,
    mesh_upgrades: bool,
) -> UpstreamHttp {
    let pool = settings.connection_pool.as_ref();
    let written = pool.and_then(|pool| pool.h2_upgrade);
    if !protocol.is_http() && !protocol.is_sniffed() {
        return UpstreamHttp::Default;
    }
    if pool.is_some_and(|pool| pool.use_client_protocol) {
        return UpstreamHttp::UseDownstream;
    }

    // Whoever writes an upgrade for a sniffed port knows what it speaks; the mesh's setting is for
    // declared ones.
    if protocol.is_http2() || written == Some(true) {
        return UpstreamHttp::Http2;
    }

    match protocol.is_sniffed() {
        true => UpstreamHttp::UseDownstream,
        false if written.unwrap_or(mesh_upgrades) => UpstreamHttp::Http2,
        false => UpstreamHttp::Default,
    }
}

/// Facts about a cluster's endpoints that decide on its TLS.
#[derive(Debug, Clone)]
pub(crate) struct TlsContext<'a> {
    /// Whether the mesh's mutual TLS is used where a DestinationRule says nothing, and how.
    pub auto: AutoTls,
    pub default_sni: String,
    /// Names of which the service's endpoints show one: their identities, and
    /// ServiceEntry.subjectAltNames.
    pub identities: &'a [String],
    /// The same where TLS is not the mesh's own: a ServiceEntry's.
    pub foreign_names: &'a [String],
    pub alpn: Vec<String>,
    pub http: UpstreamHttp,
    /// Gateways read credentials from secrets of their namespace.
    pub credential: Option<String>,
}

/// What happens where no DestinationRule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AutoTls {
    /// Plaintext: outside the mesh, or switched off.
    Off,
    /// By endpoint.
    PerEndpoint,
    /// Every endpoint has a proxy, and the cluster cannot tell them apart.
    Always,
}

/// The transport security of a cluster.
pub(crate) fn upstream_tls(tls: Option<&ClientTls>, context: TlsContext<'_>) -> UpstreamTls {
    let TlsContext {
        auto,
        default_sni,
        identities,
        foreign_names,
        alpn,
        http,
        credential,
    } = context;

    let names = |written: &[String], fallback: &[String]| {
        if written.is_empty() {
            fallback.to_vec()
        } else {
            written.to_vec()
        }
    };

    let Some(tls) = tls else {
        let mesh = MeshTls {
            sni: default_sni,
            identities: identities.to_vec(),
            alpn,
        };

        return match auto {
            AutoTls::Off => UpstreamTls::Off,
            AutoTls::PerEndpoint => UpstreamTls::Auto(mesh),
            AutoTls::Always => UpstreamTls::Mesh(mesh),
        };
    };

    let ClientTls {
        mode,
        client_certificate,
        private_key,
        ca_certificates,
        ca_crl: _,
        credential_name,
        subject_alt_names: written_names,
        sni,
        insecure_skip_verify,
    } = tls;

    let skip = *insecure_skip_verify == Some(true);
    let foreign_alpn = if http == UpstreamHttp::Http2 {
        vec!["h2".to_owned()]
    } else {
        Vec::new()
    };

    let foreign = |certificate: Option<SecretName>| {
        let roots = match (&credential, ca_certificates.as_str()) {
            _ if skip => None,
            (Some(name), _) => Some(SecretName::Pushed(format!("{name}-cacert"))),
            (None, "") => Some(SecretName::Agent("file-root:system".to_owned())),
            (None, file) => Some(SecretName::Agent(format!("file-root:{file}"))),
        };

        UpstreamTls::Foreign(ForeignTls {
            sni: sni.clone(),
            names: names(written_names, foreign_names),
            certificate,
            roots,
            alpn: foreign_alpn.clone(),
        })
    };

    match mode {
        ClientTlsMode::Disable => UpstreamTls::Off,
        ClientTlsMode::IstioMutual => UpstreamTls::Mesh(MeshTls {
            sni: if sni.is_empty() {
                default_sni
            } else {
                sni.clone()
            },
            identities: names(written_names, identities),
            alpn,
        }),
        ClientTlsMode::Simple => foreign(None),
        ClientTlsMode::Mutual => foreign(Some(match (&credential, credential_name.as_str()) {
            (Some(name), _) => SecretName::Pushed(name.clone()),
            (None, _) => SecretName::Agent(format!("file-cert:{client_certificate}~{private_key}")),
        })),
    }
}

/// What a route hashes where the destination's policy asks for a consistent hash.
pub(crate) fn hash_policies(settings: &PolicySettings) -> Vec<HashPolicy> {
    let Some(LbPolicy::ConsistentHash(hash)) = settings.load_balancer.as_ref().map(|lb| &lb.policy)
    else {
        return Vec::new();
    };

    vec![match &hash.key {
        HashKey::Header(name) => HashPolicy::Header(name.clone()),
        HashKey::Cookie {
            name,
            path,
            ttl,
            attributes,
        } => HashPolicy::Cookie {
            name: name.clone(),
            path: path.clone(),
            ttl: *ttl,
            attributes: attributes.clone(),
        },
        HashKey::SourceIp => HashPolicy::SourceIp,
        HashKey::QueryParameter(name) => HashPolicy::Query(name.clone()),
    }]
}

/// Whether TCP connections of one source go to one endpoint.
pub(crate) fn hashes_source(settings: &PolicySettings) -> bool {
    hash_policies(settings).contains(&HashPolicy::SourceIp)
}
