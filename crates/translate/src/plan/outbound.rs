//! What a sidecar does with its application's connections: the virtual listener, one listener for
//! each port or address, and the route tables behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_model::{
    CaptureMode, Cidr, EndpointAddress, OutboundMode, ScopedEgress, Service, ServicePort,
    WorkloadMode,
};
use meltemi_types::{Diagnostic, Protocol};

use super::claims::Claims;
use super::cluster::{BLACK_HOLE, PASSTHROUGH};
use super::server_name::server_names;
use super::virtual_host::{port_table, service_table};
use super::{Plan, View, l4};
use crate::authz::AuthzInput;
use crate::filters::{Direction, HttpInput, RouteSource, TcpInput};
use crate::listener::{ChainFilters, ChainInput, ChainMatch, Inspect, ListenerInput, Transport};
use crate::tls::DownstreamTls;

/// What listens on one address and port.
#[derive(Debug, Default)]
struct PortPlan {
    /// The route table for requests; several services share the wildcard address's.
    routes: Option<String>,
    is_grpc_web: bool,
    /// Whether every HTTP service here was sniffed, not declared.
    all_sniffed: bool,
    /// TLS by server name or address, most specific matches first.
    tls: Vec<(ChainMatch, TcpInput)>,
    /// Plain TCP by destination network.
    by_network: Vec<(ChainMatch, TcpInput)>,
    /// Everything else.
    tcp: Option<TcpInput>,
}

/// Plans listeners and route tables.
pub(super) fn plan(view: &View<'_>, plan: &mut Plan) {
    let claimed: BTreeSet<u16> = view
        .scope
        .egress
        .iter()
        .filter_map(|egress| egress.listener.as_ref()?.port.as_ref())
        .map(|port| port.number)
        .collect();

    let mut ports: BTreeMap<(String, u16), PortPlan> = BTreeMap::new();
    let mut tables: BTreeMap<u16, Vec<&ScopedEgress>> = BTreeMap::new();
    for egress in &view.scope.egress {
        report_unserved(view, egress, plan);
        let only = egress
            .listener
            .as_ref()
            .and_then(|listener| listener.port.as_ref());

        for service in &egress.services {
            for port in service.ports.iter().filter(|port| !port.is_udp()) {
                let wanted = match only {
                    Some(only) => only.number == port.number,
                    None => !claimed.contains(&port.number),
                };
                if wanted {
                    add_port(view, egress, service, port, &mut ports, &mut tables, plan);
                }
            }
        }

        // An HTTP port that a Sidecar names is served even if no service has it.
        if let Some(port) = only.filter(|port| port.protocol.is_http() && port.number != 0) {
            let entry = ports
                .entry((view.wildcard().to_owned(), port.number))
                .or_default();
            entry.routes.get_or_insert_with(|| port.number.to_string());
            let scopes = tables.entry(port.number).or_default();
            if !scopes.iter().any(|held| std::ptr::eq(*held, egress)) {
                scopes.push(egress);
            }
        }
    }

    for (number, scopes) in &tables {
        plan.routes
            .push(Arc::new(port_table(view, *number, scopes)));
    }

    plan.listeners.push(virtual_outbound(view));

    for ((address, port), port_plan) in ports {
        plan.listeners
            .push(listener(view, address, port, port_plan));
    }
}

fn report_unserved(view: &View<'_>, egress: &ScopedEgress, plan: &mut Plan) {
    let Some(listener) = &egress.listener else {
        return;
    };
    let Some(sidecar) = &view.scope.sidecar else {
        return;
    };
    let message = if listener.capture == CaptureMode::None || listener.bind.starts_with("unix:") {
        "an egress listener that applications connect to themselves (captureMode NONE, or a Unix socket) is not served"
    } else if !matches!(listener.bind.as_str(), "" | "0.0.0.0" | "::") {
        "bind of an egress listener has no effect: captured calls are taken at whatever address they go to"
    } else {
        return;
    };

    let remedy = "leave captureMode and bind away, so that traffic is captured";
    plan.diagnostics.push(view.warning(
        &sidecar.origin.object,
        "MEL0502",
        "spec.egress",
        message,
        remedy,
    ));
}

fn add_port<'a>(
    view: &View<'_>,
    egress: &'a ScopedEgress,
    service: &Arc<Service>,
    port: &ServicePort,
    ports: &mut BTreeMap<(String, u16), PortPlan>,
    tables: &mut BTreeMap<u16, Vec<&'a ScopedEgress>>,
    plan: &mut Plan,
) {
    let number = port.number;
    let key = |address: &str| (address.to_owned(), number);
    let reserved = [view.mesh().outbound_port, view.mesh().inbound_port];
    if reserved.contains(&number) && !has_own_address(view, service, port) {
        let message = format!(
            "port {number} is the proxies' own: calls to it at other addresses are not routed"
        );
        plan.diagnostics.push(view.warning(
            &service.origin.object,
            "MEL0507",
            "spec.ports",
            &message,
            "use another port",
        ));
        return;
    }

    if port.protocol.is_http()
        || (port.protocol.is_sniffed() && addresses(view, service, port).is_empty())
    {
        let entry = ports.entry(key(view.wildcard())).or_default();
        let is_first = entry.routes.is_none();
        entry.all_sniffed = port.protocol.is_sniffed() && (is_first || entry.all_sniffed);
        entry.routes.get_or_insert_with(|| number.to_string());
        entry.is_grpc_web |= port.protocol == Protocol::GrpcWeb;
        let scopes = tables.entry(number).or_default();
        if !scopes.iter().any(|held| std::ptr::eq(*held, egress)) {
            scopes.push(egress);
        }
        return;
    }

    let chains = tcp_chains(view, egress, service, port, &mut plan.diagnostics);
    let own_addresses = addresses(view, service, port);
    let table = port
        .protocol
        .is_sniffed()
        .then(|| format!("{}:{number}", service.host()));

    if let Some(name) = &table {
        plan.routes
            .push(Arc::new(service_table(view, name, egress, service, number)));
    }

    let hosts = own_addresses.iter().filter(|network| network.is_host());
    for network in hosts {
        let entry = ports
            .entry(key(&network.address().to_string()))
            .or_default();
        if let Some(name) = &table {
            entry.all_sniffed = true;
            entry.routes.get_or_insert_with(|| name.clone());
        }
        for (condition, tcp) in &chains {
            add_chain(entry, port.protocol, condition.clone(), tcp.clone());
        }
    }

    let networks: Vec<Cidr> = own_addresses
        .iter()
        .filter(|network| !network.is_host())
        .copied()
        .collect();

    if own_addresses.is_empty() || !networks.is_empty() {
        let entry = ports.entry(key(view.wildcard())).or_default();
        for (condition, tcp) in chains {
            let mut condition = condition;
            if condition.destinations.is_empty() {
                condition.destinations.clone_from(&networks);
            }

            // On the shared address, the server's name tells services apart.
            if port.protocol.is_tls()
                && condition.server_names.is_empty()
                && condition.destinations.is_empty()
            {
                let host = std::slice::from_ref(service.host());
                let of = &service.origin.object;
                match server_names(host, of, &mut plan.diagnostics) {
                    Some(names) => condition.server_names = names,
                    None => continue,
                }
            }

            add_chain(entry, port.protocol, condition, tcp);
        }
    }
}

/// Whether the port is served on addresses of its own: declared HTTP ports share the wildcard
/// address, and so do services without an address.
fn has_own_address(view: &View<'_>, service: &Service, port: &ServicePort) -> bool {
    let addresses = addresses(view, service, port);
    !port.protocol.is_http() && !addresses.is_empty() && addresses.iter().all(Cidr::is_host)
}

/// Where connections to a service port arrive: its addresses, or for a headless service those of
/// its endpoints.
fn addresses(view: &View<'_>, service: &Service, port: &ServicePort) -> Vec<Cidr> {
    if !service.addresses.is_empty() || !service.is_headless() {
        return service.addresses.clone();
    }
    let mut found = Vec::new();
    for endpoint in view.endpoints(service, port).iter() {
        let EndpointAddress::Ip(ip) = endpoint.address else {
            continue;
        };

        // The proxy's own address is its application's: such a call is not to come round again.
        if endpoint.port == port.number
            && !view.proxy.ips.contains(&ip)
            && !found.contains(&Cidr::host(ip))
        {
            found.push(Cidr::host(ip));
        }
    }

    found
}

fn add_chain(entry: &mut PortPlan, protocol: Protocol, condition: ChainMatch, tcp: TcpInput) {
    let list = match () {
        () if protocol.is_tls() && !condition.server_names.is_empty() => &mut entry.tls,
        () if !condition.destinations.is_empty() => &mut entry.by_network,
        () => {
            // The first service on an address keeps it. Source: Istio's conflict rule, oldest
            // first.
            entry.tcp.get_or_insert(tcp);
            return;
        }
    };

    if !list.iter().any(|(held, _)| *held == condition) {
        list.push((condition, tcp));
    }
}

/// The chains of a TCP or TLS port: those of a VirtualService, else one to the service.
fn tcp_chains(
    view: &View<'_>,
    egress: &ScopedEgress,
    service: &Arc<Service>,
    port: &ServicePort,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<(ChainMatch, TcpInput)> {
    let context = view.mesh_context(port.number);
    let mut chains = Vec::new();
    let applying = egress
        .virtual_services
        .iter()
        .filter(|vs| vs.hosts.iter().any(|host| service.host().is_within(host)))
        .find(|vs| !vs.tcp.is_empty() || !vs.tls.is_empty());

    if let Some(vs) = applying {
        if port.protocol.is_tls() {
            for route in &vs.tls {
                let Some(held) = route.matches_for(&context, vs) else {
                    continue;
                };
                for one in held {
                    let of = &vs.origin.object;
                    let Some(server_names) = server_names(&one.sni_hosts, of, diagnostics) else {
                        continue;
                    };
                    let condition = ChainMatch {
                        server_names,
                        destinations: one.destination_subnets.clone(),
                        ..ChainMatch::default()
                    };
                    chains.push((
                        condition,
                        l4::route(view, route, port.number, Direction::Outbound),
                    ));
                }
            }
        }

        let by_name = port.protocol.is_tls() && !chains.is_empty();
        for route in vs.tcp.iter().filter(|_| !by_name) {
            let Some(held) = route.matches_for(&context, vs) else {
                continue;
            };
            let tcp = l4::route(view, route, port.number, Direction::Outbound);
            if held.is_empty() {
                chains.push((ChainMatch::default(), tcp));
                break;
            }

            let mut takes_all = false;
            for one in held {
                takes_all |= one.destination_subnets.is_empty();
                let condition = ChainMatch {
                    destinations: one.destination_subnets.clone(),
                    ..ChainMatch::default()
                };
                chains.push((condition, tcp.clone()));
            }

            if takes_all {
                break;
            }
        }
    }

    if chains.is_empty() {
        chains.push((
            ChainMatch::default(),
            service_tcp(view, service, port.number),
        ));
    }

    chains
}

fn service_tcp(view: &View<'_>, service: &Service, port: u16) -> TcpInput {
    let destination = meltemi_model::WeightedDestination {
        destination: meltemi_model::Destination {
            host: service.host().clone(),
            subset: String::new(),
            port: Some(port),
        },
        weight: 100,
        headers: Default::default(),
    };

    l4::destinations(view, &[destination], port, Direction::Outbound)
}

/// Where unknown connections go.
fn unknown_destination(view: &View<'_>) -> String {
    let policy = view.outbound_policy();
    match (policy.mode, &policy.egress_proxy) {
        (OutboundMode::RegistryOnly, _) => BLACK_HOLE.to_owned(),
        (_, Some(proxy)) => view.cluster_of(proxy, proxy.port.unwrap_or_default()).0,
        (_, None) => PASSTHROUGH.to_owned(),
    }
}

fn tcp_chain(name: &str, matched: ChainMatch, tcp: TcpInput) -> ChainInput {
    ChainInput {
        name: name.to_owned(),
        matched,
        tls: DownstreamTls::Off,
        filters: ChainFilters::Tcp(Box::new(tcp)),
    }
}

fn virtual_outbound(view: &View<'_>) -> ListenerInput {
    let port = view.mesh().outbound_port;
    let mut catch_all = l4::towards(view, &unknown_destination(view), Direction::Outbound);
    catch_all.stat_prefix.clone_from(&unknown_destination(view));

    ListenerInput {
        name: "virtualOutbound".to_owned(),
        address: view.wildcard().to_owned(),
        port,
        bind_to_port: true,
        use_original_dst: true,
        direction: Direction::Outbound,
        inspect: Inspect::default(),
        chains: vec![
            tcp_chain(
                "virtualOutbound-blackhole",
                // Someone calls the capture port itself: to forward that would be a loop.
                ChainMatch {
                    destination_port: Some(port),
                    ..ChainMatch::default()
                },
                l4::towards(view, BLACK_HOLE, Direction::Outbound),
            ),
            tcp_chain(
                "virtualOutbound-catchall-tcp",
                ChainMatch::default(),
                catch_all,
            ),
        ],
        default_chain: None,
        logs: view.listener_logs(WorkloadMode::Client),
    }
}

fn listener(view: &View<'_>, address: String, port: u16, plan: PortPlan) -> ListenerInput {
    let PortPlan {
        routes,
        is_grpc_web,
        all_sniffed,
        tls,
        by_network,
        tcp,
    } = plan;

    let name = format!("{address}_{port}");
    let mut chains = Vec::new();
    let inspect = Inspect {
        tls: !tls.is_empty() || routes.is_some(),
        http: routes.is_some(),
        ..Inspect::default()
    };

    // A chain by server name comes before one by network alone.
    let mut claims = Claims::default();
    for (matched, tcp) in tls.into_iter().chain(by_network) {
        for matched in claims.take(matched) {
            chains.push(tcp_chain(&name, matched, tcp.clone()));
        }
    }

    if let Some(table) = routes {
        let http = |upstream_alpn: &[&str]| HttpInput {
            stat_prefix: format!("outbound_{name};"),
            direction: Direction::Outbound,
            routes: RouteSource::Rds(table.clone()),
            authz: AuthzInput::default(),
            abilities: view.abilities,
            logs: view.access_logs(WorkloadMode::Client),
            is_grpc_web,
            paths: view.mesh().paths,
            upstream_alpn: upstream_alpn
                .iter()
                .map(|protocol| (*protocol).to_owned())
                .collect(),
        };

        let http_chain = |alpn: &[&str], input| ChainInput {
            name: name.clone(),
            matched: ChainMatch {
                transport: Some(Transport::Raw),
                alpn: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
                ..ChainMatch::default()
            },
            tls: DownstreamTls::Off,
            filters: ChainFilters::Http(Box::new(input)),
        };

        if all_sniffed && !view.abilities.istio_alpn && view.abilities.http_filter_state {
            // Upstream speaks what downstream spoke: each chain knows which ALPN that is.
            chains.push(http_chain(
                &["http/1.1"],
                http(&["istio-http/1.1", "istio", "http/1.1"]),
            ));
            chains.push(http_chain(&["h2c"], http(&["istio-h2", "istio", "h2"])));
        } else {
            chains.push(http_chain(&["http/1.1", "h2c"], http(&[])));
        }
    }

    // TLS to a declared TCP port, and other bytes than HTTP on an HTTP port, pass unchanged.
    let fallback = match tcp {
        Some(tcp) => tcp_chain(&name, ChainMatch::default(), tcp),
        None => {
            let cluster = unknown_destination(view);
            tcp_chain(
                "PassthroughFilterChain",
                ChainMatch::default(),
                l4::towards(view, &cluster, Direction::Outbound),
            )
        }
    };

    ListenerInput {
        name,
        address,
        port,
        bind_to_port: false,
        use_original_dst: false,
        direction: Direction::Outbound,
        inspect,
        // A listener with nothing to tell apart needs no default beside its one chain.
        default_chain: (!chains.is_empty()).then(|| fallback.clone()),
        chains: if chains.is_empty() {
            vec![fallback]
        } else {
            chains
        },
        logs: view.listener_logs(WorkloadMode::Client),
    }
}
