//! What a DestinationRule settles for one cluster: policy, transport security, hash keys.

use std::time::Duration;

use meltemi_model::{
    ClientTls, ClientTlsMode, ConnectionPool, HashAlgorithm, HashKey, Keepalive as ModelKeepalive,
    LbPolicy, LoadBalancer, OutlierDetection, PolicySettings, ProxyProtocol as ModelProxyProtocol,
};

use crate::cluster::{
    Breakers, ClusterPolicy, HttpPool, Keepalive, Lb, Outlier, ProxyProtocol, RetryBudget,
    UpstreamHttp, Warmup,
};
use crate::route::HashPolicy;
use crate::tls::{ForeignTls, MeshTls, SecretName, UpstreamTls};

/// What the mesh says where a DestinationRule does not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MeshDefaults {
    pub connect_timeout: Duration,
    pub keepalive: Option<Keepalive>,
}

/// The policy of a cluster.
pub(crate) fn cluster_policy(settings: &PolicySettings, mesh: MeshDefaults) -> ClusterPolicy {
    let PolicySettings {
        load_balancer,
        connection_pool,
        outlier,
        tls: _,
        tunnel: _,
        proxy_protocol,
        retry_budget,
    } = settings;

    let mut policy = ClusterPolicy::defaults(mesh.connect_timeout);
    policy.keepalive = mesh.keepalive;
    if let Some(load_balancer) = load_balancer {
        apply_load_balancer(&mut policy, load_balancer);
    }
    if let Some(pool) = connection_pool {
        apply_pool(&mut policy, pool);
    }
    if let Some(outlier) = outlier {
        policy.panic_percent = outlier.min_health_percent.min(100);
        policy.outlier = Some(outlier_of(outlier));
    }

    policy.proxy_protocol = proxy_protocol.map(|version| match version {
        ModelProxyProtocol::V1 => ProxyProtocol::V1,
        ModelProxyProtocol::V2 => ProxyProtocol::V2,
    });

    policy.breakers.retry_budget = retry_budget.map(|budget| RetryBudget {
        percent_permille: budget.percent.0 / 1000,
        min_concurrency: budget.min_retry_concurrency,
        interval: budget.interval,
    });

    policy
}

fn apply_load_balancer(policy: &mut ClusterPolicy, input: &LoadBalancer) {
    let LoadBalancer {
        policy: algorithm,
        locality: _,
        warmup,
    } = input;

    policy.lb = match algorithm {
        LbPolicy::Default | LbPolicy::LeastRequest => Lb::LeastRequest,
        LbPolicy::RoundRobin => Lb::RoundRobin,
        LbPolicy::Random => Lb::Random,
        LbPolicy::Passthrough => Lb::ClusterProvided,
        LbPolicy::ConsistentHash(hash) => match hash.algorithm {
            HashAlgorithm::Ring { minimum_size } => Lb::RingHash { minimum_size },
            HashAlgorithm::Maglev { table_size } => Lb::Maglev { table_size },
        },
    };

    policy.warmup = warmup.map(|warmup| Warmup {
        window: warmup.duration,
        minimum_percent: warmup.minimum.0 / 10_000,
        aggression_permille: warmup.aggression_thousandths,
    });
}

fn apply_pool(policy: &mut ClusterPolicy, input: &ConnectionPool) {
    let ConnectionPool {
        max_connections,
        connect_timeout,
        keepalive,
        max_connection_duration,
        tcp_idle_timeout,
        http1_max_pending_requests,
        http2_max_requests,
        max_requests_per_connection,
        max_retries,
        http_idle_timeout,
        // Decided with the port's protocol, in `upstream_http`.
        h2_upgrade: _,
        use_client_protocol: _,
        max_concurrent_streams,
        http2_keepalive,
    } = input;

    policy.breakers = Breakers {
        max_connections: *max_connections,
        max_pending_requests: *http1_max_pending_requests,
        max_requests: *http2_max_requests,
        max_retries: *max_retries,
        retry_budget: None,
    };

    if let Some(connect_timeout) = connect_timeout.filter(|timeout| !timeout.is_zero()) {
        policy.connect_timeout = connect_timeout;
    }
    if let Some(keepalive) = keepalive {
        // One by one over the mesh's. Source: Istio `applyTCPKeepalive`.
        let (own, mesh) = (
            keepalive_of(keepalive),
            policy.keepalive.unwrap_or_default(),
        );

        policy.keepalive = Some(Keepalive {
            probes: own.probes.or(mesh.probes),
            time: own.time.or(mesh.time),
            interval: own.interval.or(mesh.interval),
        });
    }

    policy.tcp_idle_timeout = *tcp_idle_timeout;
    policy.pool = HttpPool {
        // 0 is unlimited, which is Envoy's default and which it does not take as a value.
        max_requests_per_connection: max_requests_per_connection.filter(|limit| *limit > 0),
        idle_timeout: http_idle_timeout.or(*tcp_idle_timeout),
        max_connection_duration: *max_connection_duration,
        max_concurrent_streams: max_concurrent_streams.filter(|limit| *limit > 0),
        // Without a timeout of its own, as long as the interval.
        http2_keepalive: http2_keepalive
            .map(|(interval, timeout)| (interval, timeout.unwrap_or(interval))),
    };
}

pub(crate) fn keepalive_of(input: &ModelKeepalive) -> Keepalive {
    Keepalive {
        probes: input.probes,
        time: input.time,
        interval: input.interval,
    }
}

fn outlier_of(input: &OutlierDetection) -> Outlier {
    Outlier {
        consecutive_5xx: input.consecutive_5xx,
        consecutive_gateway: input.consecutive_gateway_errors,
        split_local_origin: input.split_local_origin,
        // Source: Istio; without the split Envoy counts local failures as 5xx.
        consecutive_local_origin: input
            .consecutive_local_origin_failures
            .filter(|count| input.split_local_origin && *count > 0),
        interval: input.interval,
        base_ejection: input.base_ejection_time,
        max_ejection_percent: Some(input.max_ejection_percent.min(100))
            .filter(|percent| *percent > 0),
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

/// What is known of a cluster's peers when its TLS is decided.
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
