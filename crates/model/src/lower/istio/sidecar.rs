//! Sidecar to the model.

use std::net::{IpAddr, SocketAddr};

use meltemi_api::networking::{self as api};
use meltemi_api::{Object, Spec};
use meltemi_types::Protocol;

use super::destination_rule::lower_connection_pool;
use super::gateway::lower_server_tls;
use crate::lower::{Context, Findings, origin, port};
use crate::{
    CaptureMode, Destination, EgressHost, EgressListener, EgressPort, Hostname, IngressEndpoint,
    IngressListener, NamespaceScope, OutboundMode, OutboundPolicy, Sidecar,
};

pub(crate) fn lower_sidecar(
    context: &Context<'_>,
    object: &Object,
    findings: &mut Findings<'_>,
) -> Sidecar {
    let empty = api::Sidecar::default();
    let spec = if let Spec::Sidecar(spec) = &object.spec {
        spec.as_ref()
    } else {
        &empty
    };

    let namespace = object.meta.namespace.as_str();
    let ingress = spec
        .ingress
        .iter()
        .enumerate()
        .filter_map(|(index, listener)| {
            lower_ingress(listener, &format!("spec.ingress[{index}]"), findings)
        });

    Sidecar {
        origin: origin(object),
        selector: spec
            .workload_selector
            .as_ref()
            .map(|selector| selector.labels.clone())
            .filter(|labels| !labels.is_empty()),
        ingress: ingress.collect(),
        egress: spec
            .egress
            .iter()
            .map(|listener| lower_egress(listener, namespace))
            .collect(),
        inbound_connection_pool: spec
            .inbound_connection_pool
            .as_ref()
            .map(lower_connection_pool),
        outbound_policy: spec
            .outbound_traffic_policy
            .as_ref()
            .map(|policy| OutboundPolicy {
                mode: match policy.mode {
                    api::SidecarOutboundTrafficMode::RegistryOnly => OutboundMode::RegistryOnly,
                    api::SidecarOutboundTrafficMode::AllowAny => OutboundMode::AllowAny,
                },
                egress_proxy: policy.egress_proxy.as_ref().map(|proxy| Destination {
                    host: Hostname::resolve(&proxy.host, namespace, context.domain),
                    subset: proxy.subset.clone(),
                    port: proxy
                        .port
                        .as_ref()
                        .and_then(|selector| port(selector.number)),
                }),
            }),
    }
}

fn protocol(written: &api::SidecarPort, number: u16) -> Protocol {
    Protocol::from_word(&written.protocol)
        .unwrap_or_else(|| Protocol::of_port(number, &written.name, None, "TCP"))
}

fn capture(written: api::CaptureMode) -> CaptureMode {
    match written {
        api::CaptureMode::Default => CaptureMode::Default,
        api::CaptureMode::Iptables => CaptureMode::Iptables,
        api::CaptureMode::None => CaptureMode::None,
    }
}

fn lower_ingress(
    written: &api::IstioIngressListener,
    field: &str,
    findings: &mut Findings<'_>,
) -> Option<IngressListener> {
    let number = port(written.port.number)?;
    let default_endpoint = match written.default_endpoint.as_str() {
        "" => None,
        text => match ingress_endpoint(text) {
            Some(endpoint) => Some(endpoint),
            None => {
                let message = format!(
                    "{text:?} is not 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT or unix:///PATH; the listener is left out"
                );
                findings.error(
                    "MEL0309",
                    &format!("{field}.defaultEndpoint"),
                    message,
                    "write one of these forms",
                );

                return None;
            }
        },
    };

    Some(IngressListener {
        port: number,
        port_name: written.port.name.clone(),
        protocol: protocol(&written.port, number),
        bind: written.bind.parse().ok(),
        capture: capture(written.capture_mode),
        default_endpoint,
        tls: written.tls.as_ref().map(lower_server_tls),
        connection_pool: written.connection_pool.as_ref().map(lower_connection_pool),
    })
}

fn ingress_endpoint(text: &str) -> Option<IngressEndpoint> {
    if let Some(path) = text.strip_prefix("unix://") {
        return Some(IngressEndpoint::Unix(path.to_owned()));
    }
    if let Some(number) = text.strip_prefix(':') {
        return number
            .parse()
            .ok()
            .and_then(|number: u16| port(number))
            .map(IngressEndpoint::Instance);
    }

    let address: SocketAddr = text.parse().ok()?;

    match address.ip() {
        _ if address.port() == 0 => None,
        ip if ip.is_unspecified() => Some(IngressEndpoint::Instance(address.port())),
        IpAddr::V4(ip) if ip.is_loopback() => Some(IngressEndpoint::Loopback(address)),
        IpAddr::V6(ip) if ip.is_loopback() => Some(IngressEndpoint::Loopback(address)),
        _ => None,
    }
}

fn lower_egress(written: &api::IstioEgressListener, namespace: &str) -> EgressListener {
    EgressListener {
        port: written.port.as_ref().map(|written| {
            let number = port(written.number).unwrap_or(0);
            EgressPort {
                number,
                name: written.name.clone(),
                protocol: protocol(written, number),
            }
        }),
        bind: written.bind.clone(),
        capture: capture(written.capture_mode),
        hosts: written
            .hosts
            .iter()
            .map(|text| {
                let (of, host) = text.split_once('/').unwrap_or(("*", text));
                EgressHost {
                    namespace: NamespaceScope::parse(of, namespace),
                    host: Hostname::new(host),
                }
            })
            .collect(),
    }
}
