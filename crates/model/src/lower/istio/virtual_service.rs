//! VirtualService to the route model; delegates stay references until all objects are known.

use meltemi_api::networking::{self as api};
use meltemi_api::{Object, Spec};

use super::gateway_ref::gateway_ref;
use super::route::{
    RouteNames, Written, lower_http_route, lower_tcp_route, lower_tls_route, written,
};
use crate::lower::{Context, Findings, origin, visibility};
use crate::{GatewayRef, Hostname, HttpRoute, NamespacedName, VirtualService};

/// A VirtualService whose rules may still hand over to others.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoweredVirtualService {
    /// Everything but `http`.
    pub base: VirtualService,
    pub http: Vec<HttpRule>,
}

/// One rule: complete, or the conditions and defaults under which another VirtualService's rules
/// apply.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HttpRule {
    pub route: HttpRoute,
    pub written: Written,
    pub delegate: Option<Delegation>,
}

/// Where the rules come from that take the place of a rule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Delegation {
    pub to: NamespacedName,
    pub field: String,
}

impl LoweredVirtualService {
    /// Without hosts it has no effect of its own.
    pub fn is_delegate(&self) -> bool {
        self.base.hosts.is_empty()
    }
}

pub(crate) fn lower_virtual_service(
    context: &Context<'_>,
    object: &Object,
    findings: &mut Findings<'_>,
) -> LoweredVirtualService {
    let empty = api::VirtualService::default();
    let spec = if let Spec::VirtualService(spec) = &object.spec {
        spec.as_ref()
    } else {
        &empty
    };

    let namespace = object.meta.namespace.as_str();
    let origin = origin(object);
    let source = origin.name();
    let names = RouteNames {
        namespace,
        domain: context.domain,
        source: &source,
    };

    let mut http = Vec::new();
    for (index, route) in spec.http.iter().enumerate() {
        let field = format!("spec.http[{index}]");
        let Some(lowered) = lower_http_route(&names, route, &field, findings) else {
            continue;
        };
        let delegate = route.delegate.as_ref().map(|delegate| {
            let of = if delegate.namespace.is_empty() {
                namespace
            } else {
                delegate.namespace.as_str()
            };

            Delegation {
                to: NamespacedName::new(of, &delegate.name),
                field: format!("{field}.delegate"),
            }
        });

        http.push(HttpRule {
            route: lowered,
            written: written(&names, route),
            delegate,
        });
    }

    let l4 = |(index, kind): (usize, &str)| format!("spec.{kind}[{index}]");
    let tls = spec
        .tls
        .iter()
        .enumerate()
        .filter_map(|(index, route)| lower_tls_route(&names, route, &l4((index, "tls")), findings))
        .collect();

    let tcp = spec
        .tcp
        .iter()
        .enumerate()
        .filter_map(|(index, route)| lower_tcp_route(&names, route, &l4((index, "tcp")), findings))
        .collect();

    let gateways = if spec.gateways.is_empty() {
        vec![GatewayRef::Mesh]
    } else {
        spec.gateways
            .iter()
            .map(|name| gateway_ref(name, namespace))
            .collect()
    };

    let base = VirtualService {
        origin,
        hosts: spec
            .hosts
            .iter()
            .map(|host| Hostname::resolve(host, namespace, context.domain))
            .collect(),
        gateways,
        export_to: visibility(
            &spec.export_to,
            &context.mesh.default_export_to.virtual_services,
            namespace,
        ),
        http: Vec::new(),
        tls,
        tcp,
    };

    LoweredVirtualService { base, http }
}
