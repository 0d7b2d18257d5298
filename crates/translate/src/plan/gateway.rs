//! What a gateway serves: one listener for each port that Gateways ask for, route tables for what
//! it reads, and the credentials that its servers show.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meltemi_model::{
    Gateway, GatewayRef, Hostname, RouteContext, Server, ServerTls as ModelTls, ServerTlsMode,
    TlsVersion as ModelVersion, VirtualService, WorkloadMode,
};
use meltemi_types::{Diagnostic, Severity};

use super::claims::Claims;
use super::server_name::server_names;
use super::view::secret_name;
use super::{Plan, View, http_route, l4};
use crate::chains;
use crate::filters::{Direction, HttpInput, RouteSource, TcpInput};
use crate::listener::{ChainFilters, ChainInput, ChainMatch, Inspect, ListenerInput, Transport};
use crate::route::{RouteInput, RouteTableInput, VirtualHostInput};
use crate::tls::{ClientCertificate, DownstreamTls, SecretName, ServerTls, TlsVersion};

/// A server and the Gateway that declares it.
type Declared = (Arc<Gateway>, Server);

pub(super) fn plan(view: &View<'_>, plan: &mut Plan) {
    let mut ports: BTreeMap<(String, u16), Vec<Declared>> = BTreeMap::new();
    for gateway in view.snapshot.gateways_for(view.labels()) {
        for server in &gateway.servers {
            let bind = server
                .bind
                .map_or_else(|| view.wildcard().to_owned(), |ip| ip.to_string());
            let proxy = &view.proxy;
            for port in view.snapshot.gateway_ports(
                &proxy.namespace,
                view.labels(),
                &proxy.ips,
                server.port,
            ) {
                ports
                    .entry((bind.clone(), port))
                    .or_default()
                    .push((gateway.clone(), server.clone()));
            }
        }
    }

    for ((bind, port), servers) in ports {
        plan_port(view, &bind, port, &servers, plan);
    }
}

fn finding(
    gateway: &Gateway,
    severity: Severity,
    code: &str,
    message: String,
    remedy: &str,
) -> Diagnostic {
    Diagnostic {
        code: code.to_owned(),
        severity,
        object: gateway.origin.object.clone(),
        field: "spec.servers".to_owned(),
        position: Default::default(),
        message,
        remedy: remedy.to_owned(),
    }
}

fn plan_port(view: &View<'_>, bind: &str, port: u16, servers: &[Declared], plan: &mut Plan) {
    // The oldest Gateway decides whether a port speaks plaintext HTTP, plaintext TCP or TLS.
    let kind = |server: &Server| (server.protocol.is_tls(), server.protocol.is_http());
    let decided = servers
        .first()
        .map(|(_, server)| kind(server))
        .unwrap_or_default();

    let is_plain_tcp = decided == (false, false);
    let mut usable = Vec::new();
    for (gateway, server) in servers {
        // Nothing tells plaintext TCP servers apart: the port is one Gateway's. Source: Istio
        // `MergeGateways`.
        let is_shared = !is_plain_tcp
            || usable
                .first()
                .is_none_or(|(first, _): &(&Arc<Gateway>, _)| first.name() == gateway.name());

        if kind(server) == decided && is_shared {
            usable.push((gateway, server));
        } else {
            let message = format!(
                "port {port} belongs to an older Gateway, or speaks something else there; this server is left out"
            );
            plan.diagnostics.push(finding(
                gateway,
                Severity::Error,
                "MEL0511",
                message,
                "use another port",
            ));
        }
    }

    let name = format!("{bind}_{port}");
    let suffix = if bind == view.wildcard() {
        String::new()
    } else {
        format!(".{bind}")
    };

    let mut listener = Chains {
        view,
        name: name.clone(),
        chains: Vec::new(),
        claims: Claims::default(),
    };

    match decided {
        (false, true) => {
            let table = format!("http.{port}{suffix}");
            plan.routes
                .push(Arc::new(route_table(view, &table, &usable)));
            listener.push(
                ChainMatch::default(),
                DownstreamTls::Off,
                listener.http(table),
            );
        }
        (false, false) => {
            for (gateway, server) in &usable {
                listener.add_tcp(gateway, server, ChainMatch::default(), DownstreamTls::Off);
            }
        }
        (true, _) => {
            for (gateway, server) in &usable {
                add_tls_server(view, &mut listener, port, &suffix, gateway, server, plan);
            }
        }
    }

    let chains = listener.chains;
    if chains.is_empty() {
        return;
    }
    plan.listeners.push(ListenerInput {
        name,
        address: bind.to_owned(),
        port,
        bind_to_port: true,
        use_original_dst: false,
        direction: Direction::Gateway,
        inspect: Inspect {
            tls: decided.0,
            ..Inspect::default()
        },
        chains,
        default_chain: None,
        logs: view.listener_logs(WorkloadMode::Client),
    });
}

fn add_tls_server(
    view: &View<'_>,
    listener: &mut Chains<'_, '_>,
    port: u16,
    suffix: &str,
    gateway: &Arc<Gateway>,
    server: &Server,
    plan: &mut Plan,
) {
    let Some(tls) = &server.tls else {
        let message = format!("the TLS server on port {port} has no tls settings; it is left out");
        plan.diagnostics.push(finding(
            gateway,
            Severity::Error,
            "MEL0512",
            message,
            "write tls with mode and credentialName",
        ));
        return;
    };

    match tls.mode {
        ServerTlsMode::Passthrough => {
            listener.add_sni(gateway, server, &mut plan.diagnostics);
        }
        ServerTlsMode::AutoPassthrough => {
            let message = format!("mode AUTO_PASSTHROUGH on port {port} is not served");
            let remedy = "use PASSTHROUGH with a VirtualService";
            plan.diagnostics.push(finding(
                gateway,
                Severity::Warning,
                "MEL0513",
                message,
                remedy,
            ));
        }
        _ => {
            if let Some(missing) = missing_credential(view, tls, plan) {
                // A secret that never comes would keep the whole listener from serving.
                let message = format!(
                    "credential {missing:?} is not in namespace {:?}; this server is left out",
                    view.proxy.namespace
                );

                let remedy = "create the Secret in the namespace of the gateway's proxy";
                plan.diagnostics.push(finding(
                    gateway,
                    Severity::Error,
                    "IST0101",
                    message,
                    remedy,
                ));

                return;
            }

            let hosts: Vec<Hostname> = server.hosts.iter().map(|host| host.host.clone()).collect();
            let of = &gateway.origin.object;
            let Some(server_names) = server_names(&hosts, of, &mut plan.diagnostics) else {
                return;
            };
            let matched = ChainMatch {
                server_names,
                ..ChainMatch::default()
            };

            let socket = downstream_tls(view, tls, server.is_http(), plan);
            if server.is_http() {
                let of = gateway.name();
                let table = format!(
                    "https.{port}.{}.{}.{}{suffix}",
                    server.port_name, of.name, of.namespace
                );
                plan.routes
                    .push(Arc::new(route_table(view, &table, &[(gateway, server)])));
                let filters = listener.http(table);
                listener.push(matched, socket, filters);
            } else {
                listener.add_tcp(gateway, server, matched, socket);
            }
        }
    }
}

/// The credential that a server names and that is not there.
fn missing_credential(view: &View<'_>, tls: &ModelTls, plan: &mut Plan) -> Option<String> {
    let wants_clients = matches!(
        tls.mode,
        ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual
    );

    for name in &tls.credential_names {
        view.add_secrets(name, &tls.ca_credential_name, plan);
        let has = |wanted: &str| plan.secrets.iter().any(|secret| secret.name() == wanted);
        if !has(&secret_name(name)) {
            return Some(name.clone());
        }
        if wants_clients && !has(&roots_name(tls, name)) {
            return Some(if tls.ca_credential_name.is_empty() {
                format!("{name}-cacert")
            } else {
                tls.ca_credential_name.clone()
            });
        }
    }

    None
}

fn roots_name(tls: &ModelTls, credential: &str) -> String {
    if tls.ca_credential_name.is_empty() {
        format!("{}-cacert", secret_name(credential))
    } else {
        secret_name(&tls.ca_credential_name)
    }
}

/// The TLS of a server that terminates it.
pub(super) fn downstream_tls(
    view: &View<'_>,
    tls: &ModelTls,
    is_http: bool,
    plan: &mut Plan,
) -> DownstreamTls {
    if tls.mode == ServerTlsMode::IstioMutual {
        let trust_domains = view
            .trust_domains
            .iter()
            .map(|domain| format!("spiffe://{domain}/"))
            .collect();
        return DownstreamTls::Mesh {
            alpn: chains::server_alpn(false),
            trust_domains,
        };
    }

    for name in &tls.credential_names {
        view.add_secrets(name, &tls.ca_credential_name, plan);
    }
    let certificates = if tls.credential_names.is_empty() {
        vec![SecretName::Agent(format!(
            "file-cert:{}~{}",
            tls.server_certificate, tls.private_key
        ))]
    } else {
        tls.credential_names
            .iter()
            .map(|name| SecretName::Pushed(secret_name(name)))
            .collect()
    };

    let roots = match tls.credential_names.first() {
        Some(name) => SecretName::Pushed(roots_name(tls, name)),
        None => SecretName::Agent(format!("file-root:{}", tls.ca_certificates)),
    };

    let version = |bound: ModelVersion| match bound {
        ModelVersion::Auto => TlsVersion::Auto,
        ModelVersion::V1_0 => TlsVersion::V10,
        ModelVersion::V1_1 => TlsVersion::V11,
        ModelVersion::V1_2 => TlsVersion::V12,
        ModelVersion::V1_3 => TlsVersion::V13,
    };

    DownstreamTls::Server(ServerTls {
        certificates,
        client: match tls.mode {
            ServerTlsMode::Mutual => ClientCertificate::Required(roots),
            ServerTlsMode::OptionalMutual => ClientCertificate::Optional(roots),
            _ => ClientCertificate::None,
        },
        alpn: if is_http {
            ["h2", "http/1.1"].map(str::to_owned).to_vec()
        } else {
            Vec::new()
        },
        // TLS 1.2 at least, where nothing is written.
        minimum: if tls.min_version == ModelVersion::Auto {
            TlsVersion::V12
        } else {
            version(tls.min_version)
        },
        maximum: version(tls.max_version),
        // One that Envoy does not know would have it refuse the listener. Source: Istio
        // `FilterCipherSuites`.
        ciphers: tls
            .cipher_suites
            .iter()
            .filter(|name| meltemi_types::is_cipher_suite(name))
            .cloned()
            .collect(),
        names: tls.subject_alt_names.clone(),
        spki_hashes: tls.verify_spki.clone(),
        certificate_hashes: tls.verify_hash.clone(),
    })
}

/// The chains of one listener; no two may match the same.
struct Chains<'a, 'v> {
    view: &'a View<'v>,
    name: String,
    chains: Vec<ChainInput>,
    claims: Claims,
}

impl Chains<'_, '_> {
    /// Adds a chain for the server names, and networks, that no earlier chain has claimed.
    fn push(&mut self, matched: ChainMatch, tls: DownstreamTls, filters: ChainFilters) {
        for matched in self.claims.take(matched) {
            self.chains.push(ChainInput {
                name: self.name.clone(),
                matched,
                tls: tls.clone(),
                filters: filters.clone(),
            });
        }
    }

    fn http(&self, table: String) -> ChainFilters {
        ChainFilters::Http(Box::new(HttpInput {
            stat_prefix: format!("outbound_{}", self.name),
            direction: Direction::Gateway,
            routes: RouteSource::Rds(table),
            authz: self.view.authz(),
            abilities: self.view.abilities,
            logs: self.view.access_logs(WorkloadMode::Client),
            is_grpc_web: false,
            paths: self.view.mesh().paths,
            upstream_alpn: Vec::new(),
        }))
    }

    fn tcp(&self, mut tcp: TcpInput) -> ChainFilters {
        tcp.authz = self.view.authz();
        ChainFilters::Tcp(Box::new(tcp))
    }

    /// TCP routes of the VirtualServices that are bound to the server.
    fn add_tcp(
        &mut self,
        gateway: &Arc<Gateway>,
        server: &Server,
        base: ChainMatch,
        tls: DownstreamTls,
    ) {
        let bound = GatewayRef::Gateway(gateway.name());
        let context = context(self.view, &bound, server.port);
        for (vs, _) in self.view.snapshot.virtual_services_of_server(
            gateway,
            server,
            &self.view.proxy.namespace,
        ) {
            for route in &vs.tcp {
                let Some(held) = route.matches_for(&context, &vs) else {
                    continue;
                };
                let tcp = l4::route(self.view, route, server.port, Direction::Gateway);
                if held.is_empty() {
                    self.push(base.clone(), tls.clone(), self.tcp(tcp.clone()));
                }
                for one in held {
                    let matched = ChainMatch {
                        destinations: one.destination_subnets.clone(),
                        ..base.clone()
                    };
                    self.push(matched, tls.clone(), self.tcp(tcp.clone()));
                }
            }
        }
    }

    /// TLS routes of the VirtualServices that are bound to the server: by server name, not
    /// terminated.
    fn add_sni(
        &mut self,
        gateway: &Arc<Gateway>,
        server: &Server,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        let bound = GatewayRef::Gateway(gateway.name());
        let context = context(self.view, &bound, server.port);
        for (vs, _) in self.view.snapshot.virtual_services_of_server(
            gateway,
            server,
            &self.view.proxy.namespace,
        ) {
            for route in &vs.tls {
                let Some(held) = route.matches_for(&context, &vs) else {
                    continue;
                };
                for one in held {
                    let hosts = server.intersect(&vs.origin.object.namespace, &one.sni_hosts);
                    if hosts.is_empty() {
                        continue;
                    }
                    let of = &vs.origin.object;
                    let Some(server_names) = server_names(&hosts, of, diagnostics) else {
                        continue;
                    };
                    let matched = ChainMatch {
                        server_names,
                        destinations: one.destination_subnets.clone(),
                        transport: Some(Transport::Tls),
                        ..ChainMatch::default()
                    };

                    let tcp = l4::route(self.view, route, server.port, Direction::Gateway);
                    self.push(matched, DownstreamTls::Off, self.tcp(tcp));
                }
            }
        }
    }
}

fn context<'a>(view: &'a View<'_>, gateway: &'a GatewayRef, port: u16) -> RouteContext<'a> {
    RouteContext {
        namespace: &view.proxy.namespace,
        labels: view.labels(),
        gateway,
        port,
    }
}

/// Virtual hosts of the servers that share a table; routes of several VirtualServices for one host
/// are joined.
fn route_table(
    view: &View<'_>,
    name: &str,
    servers: &[(&Arc<Gateway>, &Server)],
) -> RouteTableInput {
    let mut hosts: BTreeMap<Hostname, (u16, Vec<RouteInput>, bool)> = BTreeMap::new();
    let mut seen: BTreeSet<(Hostname, *const VirtualService, String)> = BTreeSet::new();
    let mut order: Vec<Hostname> = Vec::new();

    for (gateway, server) in servers {
        let bound = GatewayRef::Gateway(gateway.name());
        let context = context(view, &bound, server.port);
        let redirects =
            server.tls.as_ref().is_some_and(|tls| tls.https_redirect) && !server.terminates_tls();
        for (vs, names) in
            view.snapshot
                .virtual_services_of_server(gateway, server, &view.proxy.namespace)
        {
            let routes = http_route::rules(view, &vs, &context, server.terminates_tls());
            if routes.is_empty() {
                continue;
            }
            for host in names {
                // One VirtualService bound by two servers of a port gives its routes once.
                if !seen.insert((host.clone(), Arc::as_ptr(&vs), bound.to_string())) {
                    continue;
                }
                let entry = hosts.entry(host.clone()).or_insert_with(|| {
                    order.push(host.clone());
                    (server.port, Vec::new(), false)
                });

                entry.1.extend(routes.iter().cloned());
                entry.2 |= redirects;
            }
        }

        if redirects {
            for host in &server.hosts {
                let entry = hosts.entry(host.host.clone()).or_insert_with(|| {
                    order.push(host.host.clone());
                    (server.port, Vec::new(), true)
                });
                entry.2 = true;
            }
        }
    }

    let mut list: Vec<Arc<VirtualHostInput>> = Vec::new();
    for host in order {
        let Some((port, mut routes, require_tls)) = hosts.remove(&host) else {
            continue;
        };

        // Routes that take everything come last, whichever VirtualService they are of. Source:
        // Istio `SortVHostRoutes`.
        routes.sort_by_key(RouteInput::takes_everything);
        list.push(Arc::new(VirtualHostInput {
            name: format!("{host}:{port}"),
            domains: vec![host.to_string()],
            routes,
            require_tls,
        }));
    }

    if list.is_empty() {
        let port = servers.first().map_or(0, |(_, server)| server.port);
        list.push(Arc::new(VirtualHostInput {
            name: format!("blackhole:{port}"),
            domains: vec!["*".to_owned()],
            // Without a route the proxy answers 404 and logs `NR`, as with Istio.
            routes: Vec::new(),
            require_tls: false,
        }));
    }

    RouteTableInput {
        name: name.to_owned(),
        hosts: list,
        ignore_port: true,
    }
}
