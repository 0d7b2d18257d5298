//! ServiceEntry to the model: a service for each host, with the endpoints that it lists itself.

use meltemi_api::networking::{self as api, WorkloadEntry};
use meltemi_api::{Object, Spec};
use meltemi_types::Protocol;

use super::service::LoweredService;
use super::workload::tls_mode_of_entry;
use super::{Context, Findings, origin, port, visibility};
use crate::{
    Cidr, Endpoint, EndpointAddress, Health, Hostname, Location, Registry, Resolution, Service,
    ServiceKey, ServicePort, TargetPort, TrafficDistribution,
};
use meltemi_types::{Locality, SpiffeId};

/// What a ServiceEntry becomes: its services, and the endpoints that all of them share, by port
/// number.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct LoweredEntry {
    pub services: Vec<LoweredService>,
    pub endpoints: Vec<(u16, Vec<Endpoint>)>,
}

pub(crate) fn lower_service_entry(
    context: &Context<'_>,
    object: &Object,
    findings: &mut Findings<'_>,
) -> LoweredEntry {
    let Spec::ServiceEntry(entry) = &object.spec else {
        return LoweredEntry::default();
    };
    let namespace = &object.meta.namespace;
    let addresses = addresses(entry, findings);
    let resolution = match entry.resolution {
        api::Resolution::None => Resolution::Passthrough,
        api::Resolution::Static => Resolution::ClientSide,
        api::Resolution::Dns => Resolution::Dns,
        api::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
        api::Resolution::DynamicDns => Resolution::DynamicDns,
    };

    let ports: Vec<ServicePort> = entry.ports.iter().filter_map(lower_port).collect();
    let is_allocatable = object
        .meta
        .labels
        .value("networking.istio.io/enable-autoallocate-ip")
        != Some("false");

    let services = entry.hosts.iter().map(|host| {
        let host = Hostname::new(host);
        let service = Service {
            key: ServiceKey {
                host: host.clone(),
                namespace: namespace.clone(),
            },
            origin: origin(object),
            name: host.to_string(),
            registry: Registry::ServiceEntry,
            addresses: addresses.clone(),
            is_address_allocated: false,
            ports: ports.clone(),
            resolution,
            location: match entry.location {
                api::Location::MeshExternal => Location::External,
                api::Location::MeshInternal => Location::Internal,
            },
            export_to: visibility(
                &entry.export_to,
                &context.mesh.default_export_to.services,
                namespace,
            ),
            selector: entry
                .workload_selector
                .as_ref()
                .map(|selector| selector.labels.clone())
                .filter(|labels| !labels.is_empty()),
            labels: object.meta.labels.clone(),
            subject_alt_names: entry.subject_alt_names.clone(),
            aliases: Vec::new(),
            traffic_distribution: TrafficDistribution::Any,
            publish_not_ready: false,
        };

        let wants_address = addresses.is_empty()
            && is_allocatable
            && resolution != Resolution::Passthrough
            && !host.is_wildcard();

        LoweredService {
            service,
            wants_address,
            alias_of: None,
        }
    });

    LoweredEntry {
        services: services.collect(),
        endpoints: endpoints(context, object, entry, resolution, findings),
    }
}

fn addresses(entry: &api::ServiceEntry, findings: &mut Findings<'_>) -> Vec<Cidr> {
    let mut found = Vec::new();
    for (index, text) in entry.addresses.iter().enumerate() {
        match text.parse::<Cidr>() {
            Ok(cidr) => found.push(cidr),
            Err(error) => findings.warn(
                "MEL0302",
                &format!("spec.addresses[{index}]"),
                error.to_string(),
                "write an IP address or a network such as 10.1.0.0/16",
            ),
        }
    }

    found
}

fn lower_port(spec: &api::ServicePort) -> Option<ServicePort> {
    let number = port(spec.number)?;
    let protocol = Protocol::from_word(&spec.protocol)
        .unwrap_or_else(|| Protocol::of_port(number, &spec.name, None, "TCP"));
    Some(ServicePort {
        name: spec.name.clone(),
        number,
        target: TargetPort::Number(port(spec.target_port).unwrap_or(number)),
        protocol,
    })
}

/// The endpoints that the entry itself lists. DNS without endpoints makes the host its own
/// endpoint; that depends on the host, so it is left to the service table.
fn endpoints(
    context: &Context<'_>,
    object: &Object,
    entry: &api::ServiceEntry,
    resolution: Resolution,
    findings: &mut Findings<'_>,
) -> Vec<(u16, Vec<Endpoint>)> {
    if matches!(resolution, Resolution::Passthrough | Resolution::DynamicDns) {
        return Vec::new();
    }
    let mut by_port = Vec::new();
    for spec in &entry.ports {
        let Some(number) = port(spec.number) else {
            continue;
        };
        let default_target = port(spec.target_port).unwrap_or(number);
        let endpoints = entry.endpoints.iter().enumerate().filter_map(|(index, endpoint)| {
            if resolution == Resolution::ClientSide
                && matches!(EndpointAddress::parse(&endpoint.address), EndpointAddress::Dns(_))
            {
                findings.warn(
                    "MEL0304",
                    &format!("spec.endpoints[{index}].address"),
                    format!(
                        "{:?} is a name, which resolution STATIC does not resolve; the endpoint is left out",
                        endpoint.address
                    ),
                    "write an IP address, or use resolution: DNS",
                );

                return None;
            }

            Some(lower_endpoint(context, &object.meta.namespace, endpoint, &spec.name, default_target))
        });

        by_port.push((number, endpoints.collect()));
    }

    by_port
}

fn lower_endpoint(
    context: &Context<'_>,
    namespace: &str,
    entry: &WorkloadEntry,
    port_name: &str,
    default_target: u16,
) -> Endpoint {
    let address = EndpointAddress::parse(&entry.address);
    let target = entry
        .ports
        .get(port_name)
        .and_then(|number| port(*number))
        .unwrap_or(default_target);

    let account = entry.service_account.as_str();

    Endpoint {
        port: if matches!(address, EndpointAddress::Unix(_)) {
            0
        } else {
            target
        },
        address,
        workload: None,
        labels: entry.labels.clone(),
        weight: entry.weight.max(1),
        locality: Locality::parse(&entry.locality),
        network: entry.network.clone(),
        health: Health::Healthy,
        tls_mode: tls_mode_of_entry(&entry.labels, account),
        identity: if account.is_empty() {
            None
        } else {
            SpiffeId::new(context.mesh.trust_domain.clone(), namespace, account).ok()
        },
    }
}
