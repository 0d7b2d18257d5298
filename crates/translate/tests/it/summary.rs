//! Translated resources in a form that people can read: one line for each thing that matters.

use std::fmt::Write;

use meltemi_proto::envoy::config::cluster::v3::{
    Cluster, cluster::ClusterDiscoveryType, cluster::DiscoveryType, cluster::LbPolicy,
};
use meltemi_proto::envoy::config::core::v3::{
    TransportSocket, address::Address as Kind, transport_socket,
};
use meltemi_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, lb_endpoint::HostIdentifier,
};
use meltemi_proto::envoy::config::listener::v3::{
    Filter, FilterChain, Listener, filter, listener_filter,
};
use meltemi_proto::envoy::config::route::v3::{
    Route, RouteConfiguration, route::Action, route_action::ClusterSpecifier,
    route_match::PathSpecifier,
};
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use meltemi_proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, UpstreamTlsContext,
    common_tls_context::ValidationContextType,
};
use meltemi_proto::{Any, type_url, unpack};
use meltemi_translate::Translated;

pub fn of(translated: &Translated) -> String {
    let mut out = String::new();
    for resource in translated.of(type_url::CLUSTER) {
        cluster(&mut out, &unpack(&resource.any).expect("a cluster"));
    }
    out.push('\n');
    for resource in translated.of(type_url::ENDPOINT) {
        endpoints(&mut out, &unpack(&resource.any).expect("an assignment"));
    }
    out.push('\n');
    for resource in translated.of(type_url::LISTENER) {
        listener(&mut out, &unpack(&resource.any).expect("a listener"));
    }
    out.push('\n');
    for resource in translated.of(type_url::ROUTE) {
        table(&mut out, "", &unpack(&resource.any).expect("a table"));
    }
    for resource in translated.of(type_url::SECRET) {
        writeln!(out, "secret {}", resource.name).unwrap();
    }
    for diagnostic in &translated.diagnostics {
        writeln!(out, "! {diagnostic}").unwrap();
    }

    out
}

fn cluster(out: &mut String, message: &Cluster) {
    let kind = match &message.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => {
            DiscoveryType::try_from(*kind).expect("known").as_str_name()
        }
        _ => "?",
    };

    let lb = LbPolicy::try_from(message.lb_policy)
        .expect("known")
        .as_str_name();
    write!(out, "cluster {} {kind} {lb}", message.name).unwrap();
    for options in message.typed_extension_protocol_options.values() {
        use meltemi_proto::envoy::extensions::upstreams::http::v3::{
            HttpProtocolOptions, http_protocol_options as o,
        };

        let options: HttpProtocolOptions = unpack(options).expect("options");
        let dialect = match options.upstream_protocol_options {
            Some(o::UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => "as-downstream",
            Some(o::UpstreamProtocolOptions::ExplicitHttpConfig(config)) => {
                match config.protocol_config {
                    Some(o::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(_)) => "h2",
                    _ => "h1",
                }
            }
            _ => "?",
        };

        write!(out, " http={dialect}").unwrap();
        if options
            .upstream_http_protocol_options
            .is_some_and(|options| options.auto_sni)
        {
            out.push_str(" auto-sni");
        }
    }

    if message.outlier_detection.is_some() {
        out.push_str(" ejects");
    }
    if let Some(bind) = message
        .upstream_bind_config
        .as_ref()
        .and_then(|bind| bind.source_address.as_ref())
    {
        write!(out, " from={}", bind.address).unwrap();
    }

    out.push('\n');
    for one in &message.transport_socket_matches {
        writeln!(
            out,
            "  {}: {}",
            one.name,
            socket(one.transport_socket.as_ref().expect("a socket"))
        )
        .unwrap();
    }

    if let Some(transport) = &message.transport_socket {
        writeln!(out, "  {}", socket(transport)).unwrap();
    }

    if let Some(assignment) = &message.load_assignment {
        endpoints(out, assignment);
    }
}

fn socket(message: &TransportSocket) -> String {
    let Some(transport_socket::ConfigType::TypedConfig(config)) = &message.config_type else {
        return "?".into();
    };
    if let Ok(context) = unpack::<UpstreamTlsContext>(config) {
        return format!(
            "tls sni={:?} {}",
            context.sni,
            common(context.common_tls_context.as_ref().expect("a context"))
        );
    }

    if let Ok(context) = unpack::<DownstreamTlsContext>(config) {
        let asks = context
            .require_client_certificate
            .is_some_and(|asks| asks.value);
        return format!(
            "tls mutual={asks} {}",
            common(context.common_tls_context.as_ref().expect("a context"))
        );
    }

    message.name.clone()
}

fn common(context: &CommonTlsContext) -> String {
    let secrets: Vec<_> = context
        .tls_certificate_sds_secret_configs
        .iter()
        .map(|secret| secret.name.as_str())
        .collect();

    let (mut roots, mut names) = (String::new(), Vec::new());
    if let Some(ValidationContextType::CombinedValidationContext(combined)) =
        &context.validation_context_type
    {
        roots = combined
            .validation_context_sds_secret_config
            .as_ref()
            .map(|secret| secret.name.clone())
            .unwrap_or_default();

        let context = combined
            .default_validation_context
            .as_ref()
            .expect("a context");

        names = context
            .match_typed_subject_alt_names
            .iter()
            .map(|name| {
                format!(
                    "{:?}",
                    name.matcher
                        .as_ref()
                        .and_then(|m| m.match_pattern.as_ref())
                        .expect("a pattern")
                )
            })
            .collect();
    }

    format!(
        "cert={secrets:?} roots={roots} alpn={:?} names={names:?}",
        context.alpn_protocols
    )
}

fn endpoints(out: &mut String, message: &ClusterLoadAssignment) {
    writeln!(out, "endpoints {}", message.cluster_name).unwrap();
    for group in &message.endpoints {
        for endpoint in &group.lb_endpoints {
            let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
                continue;
            };
            let at = match host
                .address
                .as_ref()
                .and_then(|address| address.address.as_ref())
            {
                Some(Kind::SocketAddress(socket)) => {
                    format!("{}:{:?}", socket.address, socket.port_specifier)
                }
                other => format!("{other:?}"),
            };

            let metadata = endpoint.metadata.as_ref();
            let is_tls = metadata.is_some_and(|m| {
                m.filter_metadata
                    .contains_key("envoy.transport_socket_match")
            });

            writeln!(out, "  p{} {at} tls={is_tls}", group.priority).unwrap();
        }
    }
}

fn listener(out: &mut String, message: &Listener) {
    let binds = message.bind_to_port.is_none_or(|binds| binds.value);
    write!(out, "listener {} binds={binds}", message.name).unwrap();
    for one in &message.listener_filters {
        assert!(
            matches!(
                one.config_type,
                Some(listener_filter::ConfigType::TypedConfig(_))
            ),
            "{}",
            one.name
        );
        write!(out, " {}", one.name.rsplit('.').next().unwrap_or_default()).unwrap();
    }

    out.push('\n');
    let mut seen = Vec::new();
    for one in &message.filter_chains {
        assert!(
            !seen.contains(&&one.filter_chain_match),
            "two chains of {} match the same",
            message.name
        );
        seen.push(&one.filter_chain_match);
        chain(out, "chain", one);
    }

    if let Some(one) = &message.default_filter_chain {
        chain(out, "default", one);
    }
}

fn chain(out: &mut String, word: &str, message: &FilterChain) {
    write!(out, "  {word} {}", message.name).unwrap();
    if let Some(m) = &message.filter_chain_match {
        if let Some(port) = &m.destination_port {
            write!(out, " port={}", port.value).unwrap();
        }
        for (name, list) in [("sni", &m.server_names), ("alpn", &m.application_protocols)] {
            if !list.is_empty() {
                write!(out, " {name}={list:?}").unwrap();
            }
        }

        if !m.transport_protocol.is_empty() {
            write!(out, " {}", m.transport_protocol).unwrap();
        }
        for range in &m.prefix_ranges {
            write!(out, " to={}/{:?}", range.address_prefix, range.prefix_len).unwrap();
        }
    }

    out.push('\n');
    if let Some(transport) = &message.transport_socket {
        writeln!(out, "    {}", socket(transport)).unwrap();
    }

    for one in &message.filters {
        filter_line(out, one);
    }
}

fn filter_line(out: &mut String, message: &Filter) {
    let Some(filter::ConfigType::TypedConfig(config)) = &message.config_type else {
        panic!("{} has no config", message.name)
    };
    if let Ok(manager) = unpack::<HttpConnectionManager>(config) {
        let names: Vec<_> = manager
            .http_filters
            .iter()
            .map(|one| one.name.rsplit('.').next().unwrap_or_default())
            .collect();

        match manager.route_specifier.as_ref().expect("routes") {
            RouteSpecifier::Rds(rds) => {
                writeln!(out, "    http rds={} {names:?}", rds.route_config_name).unwrap()
            }
            RouteSpecifier::RouteConfig(inline) => {
                writeln!(out, "    http inline {names:?}").unwrap();
                table(out, "      ", inline);
            }
            RouteSpecifier::ScopedRoutes(_) => panic!("scoped routes"),
        }
    } else if let Ok(proxy) = unpack::<TcpProxy>(config) {
        match proxy.cluster_specifier.expect("a cluster") {
            tcp_proxy::ClusterSpecifier::Cluster(name) => writeln!(out, "    tcp {name}").unwrap(),
            tcp_proxy::ClusterSpecifier::WeightedClusters(weighted) => {
                let shares: Vec<_> = weighted
                    .clusters
                    .iter()
                    .map(|one| format!("{}={}", one.name, one.weight))
                    .collect();
                writeln!(out, "    tcp {shares:?}").unwrap();
            }
        }
    } else {
        writeln!(out, "    {}", message.name).unwrap();
    }
}

fn table(out: &mut String, indent: &str, message: &RouteConfiguration) {
    writeln!(out, "{indent}routes {}", message.name).unwrap();
    for host in &message.virtual_hosts {
        let redirects = if host.require_tls == 0 {
            ""
        } else {
            " https-only"
        };

        writeln!(
            out,
            "{indent}  host {} {:?}{redirects}",
            host.name, host.domains
        )
        .unwrap();

        for one in &host.routes {
            writeln!(out, "{indent}    {}", route(one)).unwrap();
        }
    }
}

fn route(message: &Route) -> String {
    let condition = message.r#match.as_ref().expect("a match");
    let mut line = match condition.path_specifier.as_ref().expect("a path") {
        PathSpecifier::Prefix(path) => format!("{path}*"),
        PathSpecifier::Path(path) => path.clone(),
        PathSpecifier::SafeRegex(regex) => format!("~{}", regex.regex),
        other => format!("{other:?}"),
    };

    for header in &condition.headers {
        let not = if header.invert_match { "!" } else { "" };
        write!(line, " {not}{}", header.name).unwrap();
    }

    for parameter in &condition.query_parameters {
        write!(line, " ?{}", parameter.name).unwrap();
    }
    line.push_str(" -> ");
    match message.action.as_ref().expect("an action") {
        Action::Route(action) => {
            match action.cluster_specifier.as_ref().expect("a cluster") {
                ClusterSpecifier::Cluster(name) => line.push_str(name),
                ClusterSpecifier::WeightedClusters(weighted) => {
                    let shares: Vec<_> = weighted
                        .clusters
                        .iter()
                        .map(|one| {
                            format!(
                                "{}={}",
                                one.name,
                                one.weight.as_ref().map_or(0, |weight| weight.value)
                            )
                        })
                        .collect();

                    write!(line, "{shares:?}").unwrap();
                }
                other => write!(line, "{other:?}").unwrap(),
            }

            if let Some(retry) = &action.retry_policy {
                let times = retry.num_retries.as_ref().map_or(0, |n| n.value);
                write!(
                    line,
                    " retries={times}x{}{:?}",
                    retry.retry_on, retry.retriable_status_codes
                )
                .unwrap();
            }

            let timeout = action.timeout.as_ref().map_or(0, |timeout| timeout.seconds);
            write!(line, " timeout={timeout}s").unwrap();
            if !action.prefix_rewrite.is_empty() {
                write!(line, " rewrite={}", action.prefix_rewrite).unwrap();
            }
            for mirror in &action.request_mirror_policies {
                write!(line, " mirror={}", mirror.cluster).unwrap();
            }
            write!(line, " hashes={}", action.hash_policy.len()).unwrap();
        }
        Action::Redirect(redirect) => write!(
            line,
            "redirect {} {:?}",
            redirect.response_code, redirect.path_rewrite_specifier
        )
        .unwrap(),
        Action::DirectResponse(answer) => write!(line, "answer {}", answer.status).unwrap(),
        other => write!(line, "{other:?}").unwrap(),
    }

    let mut filters: Vec<_> = message
        .typed_per_filter_config
        .keys()
        .map(String::as_str)
        .collect();

    filters.sort_unstable();
    if !filters.is_empty() {
        write!(line, " {filters:?}").unwrap();
    }
    if !message.name.is_empty() {
        write!(line, " ({})", message.name).unwrap();
    }

    line
}

/// Name and configuration of the HTTP or network filters with one of these names, in order,
/// wherever in the virtual inbound listener.
pub fn inbound_filters(translated: &Translated, names: &[&str]) -> Vec<(String, Any)> {
    let is_wanted = |name: &str| names.contains(&name);
    let mut found = Vec::new();
    for resource in translated
        .of(type_url::LISTENER)
        .iter()
        .filter(|one| one.name == "virtualInbound")
    {
        let message: Listener = unpack(&resource.any).expect("a listener");

        // The first HTTP and the first TCP chain that serve: all have the same policies.
        for chain in &message.filter_chains[1..] {
            let mut of_chain = Vec::new();
            for one in &chain.filters {
                let Some(filter::ConfigType::TypedConfig(config)) = &one.config_type else {
                    continue;
                };
                if is_wanted(&one.name) {
                    of_chain.push((one.name.clone(), config.clone()));
                }
                let Ok(manager) = unpack::<HttpConnectionManager>(config) else {
                    continue;
                };
                for http in &manager.http_filters {
                    use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_filter;
                    if let Some(http_filter::ConfigType::TypedConfig(config)) = &http.config_type
                        && is_wanted(&http.name)
                    {
                        of_chain.push((http.name.clone(), config.clone()));
                    }
                }
            }

            if !of_chain.is_empty() {
                found = of_chain;
                break;
            }
        }
    }

    found
}
