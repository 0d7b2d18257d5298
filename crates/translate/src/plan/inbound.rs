//! What a sidecar accepts for its application: one virtual listener with the chains of every served
//! port.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use meltemi_model::{
    CaptureMode, ConnectionPool, InboundRetries, IngressEndpoint, IngressListener, LbPolicy,
    MtlsMode, PolicySettings, ServerTlsMode, Sidecar, WorkloadMode,
};
use meltemi_types::{Locality, Protocol};

use super::cluster::{BLACK_HOLE, INBOUND_PASSTHROUGH, inbound_source};
use super::{Plan, View, gateway};
use crate::authz::AuthzInput;
use crate::chains::{self, Reads};
use crate::cluster::{ClusterInput, Discovery, ServiceRef, UpstreamHttp};
use crate::endpoint::{EndpointAddress, EndpointInput, Health, LocalityGroup};
use crate::filters::{Direction, HttpInput, RouteSource, TcpInput, TcpTarget};
use crate::listener::{ChainFilters, ChainInput, ChainMatch, Inspect, ListenerInput, Transport};
use crate::route::{RouteInput, RouteTableInput, VirtualHostInput};
use crate::tls::{DownstreamTls, UpstreamTls};
use crate::traffic_policy::cluster_policy;

/// One port that is served.
struct Served {
    port: u16,
    protocol: Protocol,
    cluster: String,
    /// A Sidecar's own TLS instead of the mesh's.
    tls: Option<DownstreamTls>,
}

/// What every chain of the listener shares.
struct Shared<'a, 'v> {
    view: &'a View<'v>,
    authz: AuthzInput,
    logs: Vec<meltemi_model::AccessLog>,
    retries: Option<InboundRetries>,
}

pub(super) fn plan(view: &View<'_>, plan: &mut Plan) {
    let sidecar = view.scope.sidecar.clone();
    let ingress = sidecar
        .as_deref()
        .map(|sidecar| sidecar.ingress.as_slice())
        .unwrap_or_default();

    let pool = sidecar
        .as_deref()
        .and_then(|sidecar| sidecar.inbound_connection_pool.as_ref());
    let served = if ingress.is_empty() {
        of_services(view, pool, plan)
    } else {
        of_ingress(view, ingress, pool, &sidecar, plan)
    };

    plan.listeners.push(virtual_inbound(view, &served));
}

/// The ports of the services that select the workload; of two that share a target port the older
/// decides.
fn of_services(view: &View<'_>, pool: Option<&ConnectionPool>, plan: &mut Plan) -> Vec<Served> {
    let targets =
        view.snapshot
            .service_targets(&view.proxy.namespace, view.labels(), &view.proxy.ips);
    let mut served: Vec<Served> = Vec::new();
    for target in targets.iter().filter(|target| !target.port.is_udp()) {
        if served
            .last()
            .is_some_and(|last| last.port == target.target_port)
        {
            continue;
        }

        let services: Vec<ServiceRef> = targets
            .iter()
            .filter(|other| other.target_port == target.target_port)
            .map(|other| super::cluster::service_ref(&other.service))
            .collect();

        let cluster = format!("inbound|{}||", target.target_port);
        plan.clusters.push(application(
            view,
            &cluster,
            target.port.protocol,
            Discovery::OriginalDst,
            services,
            pool,
        ));

        served.push(Served {
            port: target.target_port,
            protocol: target.port.protocol,
            cluster,
            tls: None,
        });
    }

    served
}

/// The ports that a Sidecar lists, instead of what services say.
fn of_ingress(
    view: &View<'_>,
    ingress: &[IngressListener],
    shared_pool: Option<&ConnectionPool>,
    sidecar: &Option<Arc<Sidecar>>,
    plan: &mut Plan,
) -> Vec<Served> {
    let mut served: Vec<Served> = Vec::new();
    for listener in ingress {
        let IngressListener {
            port,
            port_name: _,
            protocol,
            bind: _,
            capture,
            default_endpoint,
            tls: _,
            connection_pool,
        } = listener;

        if *capture == CaptureMode::None
            && let Some(sidecar) = sidecar
        {
            plan.diagnostics.push(view.warning(
                &sidecar.origin.object,
                "MEL0503",
                "spec.ingress",
                "an ingress listener with captureMode NONE is served for captured traffic only",
                "leave captureMode away",
            ));
        }

        if served.iter().any(|held| held.port == *port) {
            continue;
        }
        let cluster = format!("inbound|{port}||");
        let discovery = match default_endpoint {
            None => Discovery::OriginalDst,
            Some(IngressEndpoint::Loopback(at)) => {
                fixed(EndpointAddress::Socket(at.ip().to_string(), at.port()))
            }
            Some(IngressEndpoint::Instance(number)) => match view.proxy.ips.first() {
                Some(ip) => fixed(EndpointAddress::Socket(ip.to_string(), *number)),
                None => Discovery::OriginalDst,
            },
            Some(IngressEndpoint::Unix(path)) => fixed(EndpointAddress::Pipe(path.clone())),
        };

        let own_tls = own_tls(view, listener, sidecar, plan);

        // The application is sent what the Sidecar's TLS has carried.
        let protocol = match own_tls {
            Some(_) => protocol.after_tls_termination(),
            None => *protocol,
        };

        let pool = connection_pool.as_ref().or(shared_pool);
        plan.clusters.push(application(
            view,
            &cluster,
            protocol,
            discovery,
            Vec::new(),
            pool,
        ));

        served.push(Served {
            port: *port,
            protocol,
            cluster,
            tls: own_tls,
        });
    }

    served.sort_by_key(|one| one.port);

    served
}

/// The TLS that a Sidecar's listener terminates itself. It counts only where the mesh's mutual TLS
/// is switched off: otherwise any client could come without a certificate of the mesh.
fn own_tls(
    view: &View<'_>,
    listener: &IngressListener,
    sidecar: &Option<Arc<Sidecar>>,
    plan: &mut Plan,
) -> Option<DownstreamTls> {
    let tls = listener.tls.as_ref().filter(|tls| {
        matches!(
            tls.mode,
            ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual
        )
    })?;

    if view.peer_authentication().of_port(listener.port) != MtlsMode::Disable {
        if let Some(sidecar) = sidecar {
            let message = format!(
                "tls of port {} has no effect: a PeerAuthentication does not disable the mesh's mutual TLS on this port",
                listener.port
            );
            plan.diagnostics.push(view.warning(
                &sidecar.origin.object,
                "MEL0506",
                "spec.ingress",
                &message,
                "add a PeerAuthentication with portLevelMtls DISABLE for the port, or remove tls",
            ));
        }
        return None;
    }

    let is_http = listener.protocol.after_tls_termination().is_http();
    Some(gateway::downstream_tls(view, tls, is_http, plan))
}

fn fixed(address: EndpointAddress) -> Discovery {
    Discovery::Static(vec![LocalityGroup {
        locality: Locality::default(),
        priority: 0,
        weight: 1,
        endpoints: vec![EndpointInput {
            address,
            weight: 1,
            health: Health::Healthy,
            mesh_tls: false,
            workload: String::new(),
        }],
    }])
}

/// The cluster of the application itself.
fn application(
    view: &View<'_>,
    name: &str,
    protocol: Protocol,
    discovery: Discovery,
    services: Vec<ServiceRef>,
    pool: Option<&ConnectionPool>,
) -> ClusterInput {
    let settings = PolicySettings {
        connection_pool: pool.cloned(),
        ..PolicySettings::default()
    };

    let mut policy = cluster_policy(&settings, view.mesh());
    let is_original = discovery == Discovery::OriginalDst;
    policy.lb = if is_original {
        LbPolicy::Passthrough
    } else {
        LbPolicy::RoundRobin
    };

    ClusterInput {
        name: name.to_owned(),
        discovery,
        policy,
        http: match protocol {
            protocol if protocol.is_http2() => UpstreamHttp::Http2,
            protocol if protocol.is_sniffed() => UpstreamHttp::UseDownstream,
            _ => UpstreamHttp::Default,
        },
        tls: UpstreamTls::Off,
        services,
        subset: None,
        bind_source: is_original.then(|| inbound_source(view.proxy.ips.first())),
    }
}

fn virtual_inbound(view: &View<'_>, served: &[Served]) -> ListenerInput {
    let own_port = view.mesh().inbound_port;

    let accepted = view.peer_authentication();
    let shared = Shared {
        view,
        authz: view.authz(),
        logs: view.access_logs(WorkloadMode::Server),
        retries: view.mesh().inbound_retries.clone(),
    };

    let mut chains = vec![ChainInput {
        name: "virtualInbound-blackhole".to_owned(),
        // Someone calls the capture port itself: to forward that would be a loop.
        matched: ChainMatch {
            destination_port: Some(own_port),
            ..ChainMatch::default()
        },
        tls: DownstreamTls::Off,
        filters: ChainFilters::Tcp(Box::new(TcpInput {
            stat_prefix: BLACK_HOLE.to_owned(),
            direction: Direction::Inbound,
            target: TcpTarget::Cluster(BLACK_HOLE.to_owned()),
            authz: AuthzInput::default(),
            abilities: view.abilities,
            logs: shared.logs.clone(),
            idle_timeout: None,
            hash_source: false,
            upstream_alpn: Vec::new(),
        })),
    }];

    // What no service claims: every port, and those for which a policy says something else.
    shared.add_passthrough(&mut chains, None, accepted.mode);
    for (port, mode) in &accepted.ports {
        if !served.iter().any(|one| one.port == *port) {
            shared.add_passthrough(&mut chains, Some(*port), *mode);
        }
    }

    let mut not_tls_on = Vec::new();
    let mut not_http_on = Vec::new();
    for one in served {
        let mode = accepted.of_port(one.port);
        if !one.protocol.is_sniffed() {
            not_http_on.push(one.port);
            if mode == MtlsMode::Disable && one.tls.is_none() {
                not_tls_on.push(one.port);
            }
        }
        shared.add_served(&mut chains, one, mode);
    }

    ListenerInput {
        name: "virtualInbound".to_owned(),
        address: wildcard(view.proxy.ips.first()),
        port: own_port,
        bind_to_port: true,
        use_original_dst: false,
        direction: Direction::Inbound,
        inspect: Inspect {
            original_destination: true,
            tls: true,
            http: true,
            not_tls_on,
            not_http_on,
        },
        chains,
        default_chain: None,
        logs: view.listener_logs(WorkloadMode::Server),
    }
}

fn wildcard(ip: Option<&IpAddr>) -> String {
    match ip {
        Some(IpAddr::V6(_)) => "::".to_owned(),
        _ => "0.0.0.0".to_owned(),
    }
}

impl Shared<'_, '_> {
    fn mesh_tls(&self, reads: Reads) -> DownstreamTls {
        let unique: BTreeSet<_> = self
            .view
            .trust_domains
            .iter()
            .map(|domain| format!("spiffe://{domain}/"))
            .collect();

        let exchanges = reads == Reads::Tcp && self.view.abilities.peer_exchange;
        DownstreamTls::Mesh {
            alpn: chains::server_alpn(exchanges),
            trust_domains: unique.into_iter().collect(),
        }
    }

    fn add_passthrough(&self, chains: &mut Vec<ChainInput>, port: Option<u16>, mode: MtlsMode) {
        for chain in chains::inbound(mode, Protocol::Unsupported, port) {
            let name = match chain.reads {
                Reads::Http => "virtualInbound-catchall-http",
                Reads::Tcp => "virtualInbound",
            };

            chains.push(ChainInput {
                name: name.to_owned(),
                tls: if chain.terminates {
                    self.mesh_tls(chain.reads)
                } else {
                    DownstreamTls::Off
                },
                filters: self.filters(chain.reads, INBOUND_PASSTHROUGH, Protocol::Unsupported, 0),
                matched: chain.matched,
            });
        }
    }

    fn add_served(&self, chains: &mut Vec<ChainInput>, served: &Served, mode: MtlsMode) {
        let name = format!("0.0.0.0_{}", served.port);
        if let Some(tls) = &served.tls {
            let reads = if served.protocol.is_http() {
                Reads::Http
            } else {
                Reads::Tcp
            };

            chains.push(ChainInput {
                name,
                matched: ChainMatch {
                    destination_port: Some(served.port),
                    transport: Some(Transport::Tls),
                    ..ChainMatch::default()
                },
                tls: tls.clone(),
                filters: self.filters(reads, &served.cluster, served.protocol, served.port),
            });

            return;
        }

        for chain in chains::inbound(mode, served.protocol, Some(served.port)) {
            chains.push(ChainInput {
                name: name.clone(),
                tls: if chain.terminates {
                    self.mesh_tls(chain.reads)
                } else {
                    DownstreamTls::Off
                },
                filters: self.filters(chain.reads, &served.cluster, served.protocol, served.port),
                matched: chain.matched,
            });
        }
    }

    fn filters(&self, reads: Reads, cluster: &str, protocol: Protocol, port: u16) -> ChainFilters {
        match reads {
            Reads::Http => ChainFilters::Http(Box::new(HttpInput {
                stat_prefix: format!("inbound_0.0.0.0_{port};"),
                direction: Direction::Inbound,
                routes: RouteSource::Inline(Box::new(RouteTableInput {
                    name: cluster.to_owned(),
                    hosts: vec![Arc::new(VirtualHostInput {
                        name: format!("inbound|http|{port}"),
                        domains: vec!["*".to_owned()],
                        routes: vec![RouteInput::Inbound {
                            cluster: cluster.to_owned(),
                            is_grpc: protocol == Protocol::Grpc,
                            retries: self.retries.clone(),
                        }],
                        require_tls: false,
                    })],
                    ignore_port: false,
                })),
                authz: self.authz.clone(),
                abilities: self.view.abilities,
                logs: self.logs.clone(),
                is_grpc_web: protocol == Protocol::GrpcWeb,
                paths: self.view.mesh().paths,
                upstream_alpn: Vec::new(),
            })),
            Reads::Tcp => ChainFilters::Tcp(Box::new(TcpInput {
                stat_prefix: cluster.to_owned(),
                direction: Direction::Inbound,
                target: TcpTarget::Cluster(cluster.to_owned()),
                authz: self.authz.clone(),
                abilities: self.view.abilities,
                logs: self.logs.clone(),
                idle_timeout: None,
                hash_source: false,
                upstream_alpn: Vec::new(),
            })),
        }
    }
}
