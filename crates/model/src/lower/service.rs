//! core/v1 Service to the model.

use std::net::IpAddr;

use meltemi_api::core::ServiceSpec;
use meltemi_api::{IntOrString, Object, Spec};
use meltemi_types::Protocol;

use super::{Context, Findings, origin, port, visibility};
use crate::{
    Cidr, Hostname, Location, Registry, Resolution, Service, ServiceKey, ServicePort, TargetPort,
    TrafficDistribution,
};

/// A Service before addresses are allocated and aliases resolved.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoweredService {
    pub service: Service,
    /// Gets an address from the pool if it has none.
    pub wants_address: bool,
    /// ExternalName: it is only another name of this host.
    pub alias_of: Option<Hostname>,
}

pub(crate) fn lower_service(
    context: &Context<'_>,
    object: &Object,
    findings: &mut Findings<'_>,
) -> Vec<LoweredService> {
    let Spec::Service(spec) = &object.spec else {
        return Vec::new();
    };
    let (name, namespace) = (&object.meta.name, &object.meta.namespace);
    let annotation = |key: &str| object.meta.annotations.get(key).map(String::as_str);
    let export_to: Vec<String> = annotation("networking.istio.io/exportTo")
        .map(|text| {
            text.split(',')
                .map(|scope| scope.trim().to_owned())
                .collect()
        })
        .unwrap_or_default();

    let is_headless = spec.cluster_ip.eq_ignore_ascii_case("None");
    let is_external_name = spec.r#type == "ExternalName";
    let addresses = addresses(spec, findings);
    let service = Service {
        key: ServiceKey {
            host: Hostname::new(&format!("{name}.{namespace}.svc.{}", context.domain)),
            namespace: namespace.clone(),
        },
        origin: origin(object),
        name: name.clone(),
        registry: Registry::Kubernetes,
        is_address_allocated: false,
        ports: spec
            .ports
            .iter()
            .filter_map(|port| lower_port(port, &spec.ports, findings))
            .collect(),
        resolution: if is_headless {
            Resolution::Passthrough
        } else {
            Resolution::ClientSide
        },
        location: Location::Internal,
        export_to: visibility(
            &export_to,
            &context.mesh.default_export_to.services,
            namespace,
        ),
        selector: (!spec.selector.is_empty()).then(|| spec.selector.clone()),
        labels: object.meta.labels.clone(),
        subject_alt_names: Vec::new(),
        aliases: Vec::new(),
        traffic_distribution: distribution(&spec.traffic_distribution)
            .or_else(|| distribution(annotation("networking.istio.io/traffic-distribution")?))
            .unwrap_or_default(),
        publish_not_ready: spec.publish_not_ready_addresses,
        addresses,
    };

    let alias_of = is_external_name.then(|| Hostname::new(&spec.external_name));

    vec![LoweredService {
        wants_address: !is_headless && !is_external_name && service.addresses.is_empty(),
        service,
        alias_of,
    }]
}

/// A preference that is known. The field comes before the annotation. Source: Istio
/// `GetTrafficDistribution`.
fn distribution(text: &str) -> Option<TrafficDistribution> {
    match text.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => Some(TrafficDistribution::PreferSameZone),
        "prefersamenode" => Some(TrafficDistribution::PreferSameNode),
        _ => None,
    }
}

fn addresses(spec: &ServiceSpec, findings: &mut Findings<'_>) -> Vec<Cidr> {
    let mut found: Vec<Cidr> = Vec::new();
    for text in std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips) {
        if text.is_empty() || text.eq_ignore_ascii_case("None") {
            continue;
        }
        match text.parse::<IpAddr>() {
            Ok(ip) if !found.contains(&Cidr::host(ip)) => found.push(Cidr::host(ip)),
            Ok(_) => {}
            Err(_) => findings.warn(
                "MEL0302",
                "spec.clusterIP",
                format!("{text:?} is not an IP address and is ignored"),
                "write an IP address, None, or nothing",
            ),
        }
    }

    found
}

fn lower_port(
    spec: &meltemi_api::core::ServicePortSpec,
    all: &[meltemi_api::core::ServicePortSpec],
    findings: &mut Findings<'_>,
) -> Option<ServicePort> {
    let number = port(spec.port)?;
    let target = match &spec.target_port {
        Some(IntOrString::String(name)) if !name.is_empty() => TargetPort::Name(name.clone()),
        Some(IntOrString::Int(target)) => TargetPort::Number(port(*target).unwrap_or(number)),
        _ => TargetPort::Number(number),
    };

    let is_repeated = all
        .iter()
        .take_while(|other| !std::ptr::eq(*other, spec))
        .any(|other| other.port == spec.port && other.protocol == spec.protocol);

    if is_repeated {
        findings.warn(
            "MEL0303",
            "spec.ports",
            format!("port {number} is declared twice; the first one counts"),
            "remove one of them",
        );
        return None;
    }

    let protocol = Protocol::of_port(
        number,
        &spec.name,
        spec.app_protocol.as_deref(),
        &spec.protocol,
    );

    Some(ServicePort {
        name: spec.name.clone(),
        number,
        target,
        protocol,
    })
}
