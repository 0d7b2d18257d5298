//! Clusters towards services, and the special ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use meltemi_model::{
    ConnectionPool, DestinationRule, LbPolicy, PolicySettings, Registry, Resolution, Service,
    ServicePort,
};
use meltemi_types::Protocol;

use super::endpoint::{Selection, groups};
use super::{Plan, View};
use crate::cluster::{ClusterInput, ClusterPolicy, Discovery, ServiceRef, UpstreamHttp};
use crate::cluster_name::{outbound_name, sni_name};
use crate::endpoint::EndpointsInput;
use crate::filters::PEER_EXCHANGE;
use crate::proxy::ProxyKind;
use crate::tls::UpstreamTls;
use crate::traffic_policy::{AutoTls, TlsContext, cluster_policy, upstream_http, upstream_tls};

pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";
pub(crate) const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// How long a connection to an original destination stays open without a request. Source: Istio
/// `passthroughHttpProtocolOptions`.
const PASSTHROUGH_IDLE: Duration = Duration::from_secs(300);

/// The source address by which an application, and the capture rules, know that its own proxy
/// calls.
pub(crate) fn inbound_source(ip: Option<&IpAddr>) -> IpAddr {
    match ip {
        Some(IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
        _ => IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)),
    }
}

/// Every cluster that the proxy may call, with its endpoints.
pub(super) fn plan_outbound(view: &View<'_>, plan: &mut Plan) {
    for service in view.services() {
        for port in service.ports.iter().filter(|port| !port.is_udp()) {
            if service.resolution == Resolution::DynamicDns {
                plan.diagnostics.push(view.warning(
                    &service.origin.object,
                    "MEL0501",
                    "spec.resolution",
                    "resolution DYNAMIC_DNS is not served: calls to this host are treated as unknown",
                    "use resolution NONE for wildcard hosts, or DNS for a single one",
                ));
                break;
            }

            let rule = view.destination_rule(service.host());
            let rule = rule.as_deref();
            plan_cluster(view, plan, &service, port, rule, None);
            for subset in rule.map(|rule| rule.subsets.as_slice()).unwrap_or_default() {
                plan_cluster(view, plan, &service, port, rule, Some(&subset.name));
            }
        }
    }

    plan.clusters
        .push(special(view, BLACK_HOLE, Discovery::Static(Vec::new())));
    if view.proxy.kind == ProxyKind::Sidecar {
        let mut passthrough = special(view, PASSTHROUGH, Discovery::OriginalDst);
        passthrough.http = UpstreamHttp::UseDownstream;
        passthrough.policy.pool.http_idle_timeout = Some(PASSTHROUGH_IDLE);
        plan.clusters.push(passthrough);
        let mut inbound = special(view, INBOUND_PASSTHROUGH, Discovery::OriginalDst);
        inbound.http = UpstreamHttp::UseDownstream;
        inbound.policy.pool.http_idle_timeout = Some(PASSTHROUGH_IDLE);
        inbound.bind_source = Some(inbound_source(view.proxy.ips.first()));
        plan.clusters.push(inbound);
    }
}

fn special(view: &View<'_>, name: &str, discovery: Discovery) -> ClusterInput {
    let policy = ClusterPolicy {
        pool: ConnectionPool {
            connect_timeout: Some(view.mesh().connect_timeout),
            ..ConnectionPool::default()
        },
        ..ClusterPolicy::default()
    };

    ClusterInput {
        name: name.to_owned(),
        discovery,
        policy,
        http: UpstreamHttp::Default,
        tls: UpstreamTls::Off,
        services: Vec::new(),
        subset: None,
        bind_source: None,
    }
}

fn plan_cluster(
    view: &View<'_>,
    plan: &mut Plan,
    service: &Service,
    port: &ServicePort,
    rule: Option<&DestinationRule>,
    subset: Option<&str>,
) {
    let settings = rule
        .map(|rule| rule.effective(subset, port.number))
        .unwrap_or_default();
    let selector = rule
        .and_then(|rule| subset.and_then(|name| rule.subset(name)))
        .map(|subset| &subset.labels);
    let subset_name = subset.unwrap_or_default();
    let name = outbound_name(port.number, subset_name, service.host().as_str());
    let mut policy = cluster_policy(&settings, view.mesh());
    let selection = Selection {
        service,
        port,
        settings: &settings,
        selector,
    };

    let (discovery, locality_weighted) = discovery(view, plan, &name, &selection);
    policy.locality_weighted = locality_weighted;
    if discovery == Discovery::OriginalDst {
        policy.lb = LbPolicy::Passthrough;
        policy.warmup = None;
    }

    let http = upstream_http(port.protocol, &settings, view.mesh().h2_upgrade);
    let identities = view.identities(service);
    let auto = auto_tls(view, service, port, discovery == Discovery::OriginalDst);
    let credential = settings
        .tls
        .as_ref()
        .and_then(|tls| view.credential(&tls.credential_name, plan));

    let tls = upstream_tls(
        settings.tls.as_ref(),
        TlsContext {
            auto,
            default_sni: sni_name(port.number, subset_name, service.host().as_str()),
            identities: &identities,
            foreign_names: if service.registry == Registry::ServiceEntry {
                &identities
            } else {
                &[]
            },
            alpn: mesh_alpn(view, port.protocol, http),
            http,
            credential,
        },
    );

    plan.clusters.push(ClusterInput {
        name,
        discovery,
        policy,
        http,
        tls,
        services: vec![service_ref(service)],
        subset: subset.map(str::to_owned),
        bind_source: None,
    });
}

pub(super) fn service_ref(service: &Service) -> ServiceRef {
    ServiceRef {
        host: service.host().to_string(),
        name: service.name.clone(),
        namespace: service.namespace().to_owned(),
    }
}

/// How endpoints are found; the endpoints themselves go into the plan where they travel apart.
fn discovery(
    view: &View<'_>,
    plan: &mut Plan,
    name: &str,
    selection: &Selection<'_>,
) -> (Discovery, bool) {
    let Selection {
        service, settings, ..
    } = selection;
    let is_passthrough = matches!(
        settings.load_balancer.as_ref().map(|lb| &lb.policy),
        Some(LbPolicy::Passthrough)
    ) || service.resolution == Resolution::Passthrough;

    // A gateway's connections have no original destination: it takes the endpoints. Source: Istio
    // `convertResolution`.
    if is_passthrough && view.proxy.kind == ProxyKind::Sidecar {
        return (Discovery::OriginalDst, false);
    }
    let found = groups(view, selection);
    let discovery = match service.resolution {
        Resolution::Dns => Discovery::StrictDns(found.groups),
        Resolution::DnsRoundRobin => {
            let mut groups = found.groups;

            // Envoy takes exactly one endpoint in a LOGICAL_DNS cluster.
            groups.truncate(1);
            if let Some(group) = groups.first_mut() {
                group.endpoints.truncate(1);
                group.priority = 0;
            }

            if groups.is_empty() {
                Discovery::StrictDns(groups)
            } else {
                Discovery::LogicalDns(groups)
            }
        }
        Resolution::ClientSide | Resolution::Passthrough | Resolution::DynamicDns => {
            plan.endpoints.push(EndpointsInput {
                cluster: name.to_owned(),
                groups: found.groups,
            });
            Discovery::Eds
        }
    };

    (discovery, found.locality_weighted)
}

fn auto_tls(
    view: &View<'_>,
    service: &Service,
    port: &ServicePort,
    is_original_destination: bool,
) -> AutoTls {
    if !view.mesh().auto_mtls || service.is_external() {
        return AutoTls::Off;
    }
    if !is_original_destination {
        return AutoTls::PerEndpoint;
    }

    // Without endpoints of its own the cluster cannot match by endpoint: mutual TLS only if all of
    // them have a proxy.
    let endpoints = view.endpoints(service, port);
    let all_meshed = !endpoints.is_empty()
        && endpoints
            .iter()
            .all(|endpoint| view.takes_mutual_tls(endpoint));

    if all_meshed {
        AutoTls::Always
    } else {
        AutoTls::Off
    }
}

/// The ALPN that the mesh's own TLS offers. `istio-peer-exchange` promises a preamble, which only
/// connections that are served as bytes send: requests never offer it, since the client's filter
/// decides what those offer.
fn mesh_alpn(view: &View<'_>, protocol: Protocol, http: UpstreamHttp) -> Vec<String> {
    let list: &[&str] = match http {
        // Decided per request, by a filter of the client.
        UpstreamHttp::Http2 if view.abilities.istio_alpn => &["istio", "h2"],
        _ if view.abilities.peer_exchange && !protocol.is_http() => &[PEER_EXCHANGE, "istio"],
        _ if view.abilities.istio_alpn => &["istio"],
        UpstreamHttp::Http2 => &["istio-h2", "istio", "h2"],
        UpstreamHttp::Default if protocol.is_http() => &["istio-http/1.1", "istio", "http/1.1"],
        UpstreamHttp::Default | UpstreamHttp::UseDownstream => &["istio"],
    };

    list.iter().map(|protocol| (*protocol).to_owned()).collect()
}

/// The settings that hold for a destination of a route.
pub(super) fn destination_settings(
    view: &View<'_>,
    host: &meltemi_model::Hostname,
    subset: &str,
    port: u16,
) -> PolicySettings {
    let subset = (!subset.is_empty()).then_some(subset);
    view.destination_rule(host)
        .map(|rule| rule.effective(subset, port))
        .unwrap_or_default()
}
