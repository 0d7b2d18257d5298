//! What is read and has no effect yet: kinds, fields, settings of the mesh. Silence would let a
//! policy seem to hold.

use meltemi_api::core::ServiceSpec;
use meltemi_api::networking::{
    ClientTlsSettings, DestinationRule, Gateway, ServiceEntry, Sidecar, TrafficPolicy,
    VirtualService,
};
use meltemi_api::security::{AuthorizationPolicy, RequestAuthentication, Source};
use meltemi_api::telemetry::Telemetry;
use meltemi_api::{Kind, MeshConfig, Object, Spec};
use meltemi_types::{Diagnostic, Protocol, Severity};

use crate::Snapshot;
use crate::lower::finding;

/// The one code of everything that is not supported yet.
const UNSUPPORTED: &str = "MEL0307";
const REMOVE: &str = "remove it, so that nobody relies on it";
const BY_SELECTOR: &str = "choose workloads by selector";
const NO_TOKENS: &str = "tokens are not checked yet: no request has a request principal or claims";

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    for object in snapshot.tables.iter() {
        match &object.spec {
            Spec::EnvoyFilter(_) | Spec::WasmPlugin(_) | Spec::TrafficExtension(_) => {
                let message = format!("{} is not served yet and has no effect", object.kind);
                let remedy = "remove it, or use a kind that is served";
                tell(object, "spec", message, remedy, found);
            }
            Spec::ProxyConfig(_) => {
                let message = "ProxyConfig is not read yet and has no effect";
                tell(
                    object,
                    "spec",
                    message,
                    "set workers with --concurrency",
                    found,
                );
            }
            Spec::WorkloadGroup(_) => {
                let message = "WorkloadGroup is not read yet and has no effect";
                tell(object, "spec", message, "write WorkloadEntries", found);
            }
            Spec::RequestAuthentication(spec) => request_authentication(object, spec, found),
            Spec::AuthorizationPolicy(spec) => authorization(object, spec, found),
            Spec::ServiceEntry(spec) => service_entry(object, spec, found),
            Spec::WorkloadEntry(spec) => network(object, "spec.network", &spec.network, found),
            Spec::Sidecar(spec) => sidecar(object, spec, found),
            Spec::DestinationRule(spec) => destination_rule(object, spec, found),
            Spec::Service(spec) => service(object, spec, found),
            Spec::Gateway(spec) => gateway(object, spec, found),
            Spec::Telemetry(spec) => telemetry(object, spec, found),
            Spec::VirtualService(spec) => virtual_service(object, spec, found),
            _ => {}
        }
    }

    if let Some(object) = snapshot
        .tables
        .table(&Kind::ConfigMap)
        .get(&snapshot.options.mesh_config_map)
    {
        for name in unread(&snapshot.mesh_config) {
            let message = format!("{name} is not read yet and has no effect");
            let field = format!("data.mesh: {name}");
            tell(object, &field, message, REMOVE, found);
        }
    }
}

fn service_entry(object: &Object, spec: &ServiceEntry, found: &mut Vec<Diagnostic>) {
    for (index, port) in spec.ports.iter().enumerate() {
        let number = u16::try_from(port.number).unwrap_or_default();
        let declared = (!port.protocol.is_empty()).then_some(port.protocol.as_str());
        let protocol = Protocol::of_port(number, &port.name, declared, "TCP");
        grpc_web(
            object,
            &format!("spec.ports[{index}]"),
            Some(protocol),
            found,
        );
    }

    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}].network");
        network(object, &field, &endpoint.network, found);
    }
}

fn sidecar(object: &Object, spec: &Sidecar, found: &mut Vec<Diagnostic>) {
    for (index, ingress) in spec.ingress.iter().enumerate() {
        if !ingress.bind.is_empty() {
            let message = format!(
                "bind {:?} has no effect: captured traffic comes in at every address",
                ingress.bind
            );
            let field = format!("spec.ingress[{index}].bind");
            tell(object, &field, message, "remove it", found);
        }
    }
}

fn destination_rule(object: &Object, spec: &DestinationRule, found: &mut Vec<Diagnostic>) {
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(object, "spec.trafficPolicy", policy, found);
    }

    let tls = spec
        .traffic_policy
        .as_ref()
        .and_then(|policy| policy.tls.as_ref());
    if spec.workload_selector.is_some() && tls.is_some_and(|tls| !tls.credential_name.is_empty()) {
        let field = "spec.trafficPolicy.tls.credentialName";
        let message = "only gateways read credentialName yet: the sidecars that are selected have no certificate";
        let remedy = "use clientCertificate, privateKey and caCertificates";
        tell(object, field, message, remedy, found);
    }

    for (index, subset) in spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            let field = format!("spec.subsets[{index}].trafficPolicy");
            traffic_policy(object, &field, policy, found);
        }
    }
}

fn service(object: &Object, spec: &ServiceSpec, found: &mut Vec<Diagnostic>) {
    for (index, port) in spec.ports.iter().enumerate() {
        let declared = port.app_protocol.as_deref();
        let protocol = Protocol::of_port(port.port, &port.name, declared, &port.protocol);
        grpc_web(
            object,
            &format!("spec.ports[{index}]"),
            Some(protocol),
            found,
        );
    }
}

fn gateway(object: &Object, spec: &Gateway, found: &mut Vec<Diagnostic>) {
    for (index, server) in spec.servers.iter().enumerate() {
        let field = format!("spec.servers[{index}].port.protocol");
        let protocol = Protocol::from_word(&server.port.protocol);
        grpc_web(object, &field, protocol, found);

        let Some(tls) = &server.tls else { continue };
        let field = |name: &str| format!("spec.servers[{index}].tls.{name}");
        if !tls.ca_crl.is_empty() {
            revocation(object, &field("caCrl"), found);
        }

        for (name, is_set) in [
            ("ecdhCurves", !tls.ecdh_curves.is_empty()),
            ("tlsCertificates", !tls.tls_certificates.is_empty()),
            ("insecureSkipVerify", tls.insecure_skip_verify.is_some()),
        ] {
            if is_set {
                let message = format!("{name} is not supported yet and has no effect");
                tell(object, &field(name), message, REMOVE, found);
            }
        }
    }
}

fn telemetry(object: &Object, spec: &Telemetry, found: &mut Vec<Diagnostic>) {
    for (field, is_set) in [
        ("spec.targetRef", spec.target_ref.is_some()),
        ("spec.targetRefs", !spec.target_refs.is_empty()),
    ] {
        if is_set {
            let message =
                "the target is of a kind that is not served yet: this Telemetry has no effect";
            tell(object, field, message, BY_SELECTOR, found);
        }
    }
}

fn virtual_service(object: &Object, spec: &VirtualService, found: &mut Vec<Diagnostic>) {
    for (index, route) in spec.http.iter().enumerate() {
        for (at, matched) in route.r#match.iter().enumerate() {
            let mut names = matched.headers.keys().chain(matched.without_headers.keys());
            if names.any(|name| name.starts_with('@')) {
                let field = format!("spec.http[{index}].match[{at}].headers");
                let message = "claims of tokens are not read yet: a request has none";
                tell(object, &field, message, "match on a plain header", found);
            }
        }
    }
}

fn request_authentication(
    object: &Object,
    spec: &RequestAuthentication,
    found: &mut Vec<Diagnostic>,
) {
    let RequestAuthentication {
        selector: _,
        target_ref,
        target_refs,
        jwt_rules,
    } = spec;

    if target_ref.is_some() || !target_refs.is_empty() {
        let field = if target_ref.is_some() {
            "spec.targetRef"
        } else {
            "spec.targetRefs"
        };
        let message = "the target is of a kind that is not served yet: tokens are checked nowhere";
        tell(object, field, message, BY_SELECTOR, found);
    } else if !jwt_rules.is_empty() {
        let message = "tokens are not checked yet: the workloads that it selects deny every request with a token (401), and no request has a request principal";
        let remedy = "call them without a token, or check tokens in the application and remove the RequestAuthentication";
        tell(object, "spec.jwtRules", message, remedy, found);
    }
}

fn authorization(object: &Object, spec: &AuthorizationPolicy, found: &mut Vec<Diagnostic>) {
    for (field, is_set) in [
        ("spec.targetRef", spec.target_ref.is_some()),
        ("spec.targetRefs", !spec.target_refs.is_empty()),
    ] {
        if is_set {
            let message =
                "the target is of a kind that is not served yet: the policy is in force nowhere";
            tell(object, field, message, BY_SELECTOR, found);
        }
    }

    for (index, rule) in spec.rules.iter().enumerate() {
        for (at, from) in rule.from.iter().enumerate() {
            let is_named = |source: &Source| {
                !(source.request_principals.is_empty() && source.not_request_principals.is_empty())
            };
            if from.source.as_ref().is_some_and(is_named) {
                let field = format!("spec.rules[{index}].from[{at}].source");
                tell(object, &field, NO_TOKENS, "use principals", found);
            }
        }

        for (at, condition) in rule.when.iter().enumerate() {
            if condition.key.starts_with("request.auth.") {
                tell(
                    object,
                    &format!("spec.rules[{index}].when[{at}].key"),
                    NO_TOKENS,
                    "use source.principal",
                    found,
                );
            }
        }
    }
}

fn traffic_policy(
    object: &Object,
    field: &str,
    policy: &TrafficPolicy,
    found: &mut Vec<Diagnostic>,
) {
    if policy.tunnel.is_some() {
        let message = "tunnel is not supported yet: connections go out as they are";
        tell(
            object,
            &format!("{field}.tunnel"),
            message,
            "route through an egress gateway",
            found,
        );
    }

    let mut one = |field: &str, tls: Option<&ClientTlsSettings>, codes: Option<&[u32]>| {
        if tls.is_some_and(|tls| !tls.ca_crl.is_empty()) {
            revocation(object, &format!("{field}.tls.caCrl"), found);
        }
        if codes.is_some_and(|codes| !codes.is_empty()) {
            let field = format!("{field}.outlierDetection.outlierDetectionHttpErrorCodes");
            let message = "outlierDetectionHttpErrorCodes is not supported yet: statuses from 500 on count as errors";
            tell(object, &field, message, "use consecutive5xxErrors", found);
        }
    };

    let codes = policy
        .outlier_detection
        .as_ref()
        .map(|outlier| outlier.outlier_detection_http_error_codes.as_slice());

    one(field, policy.tls.as_ref(), codes);

    for (index, level) in policy.port_level_settings.iter().enumerate() {
        let codes = level
            .outlier_detection
            .as_ref()
            .map(|outlier| outlier.outlier_detection_http_error_codes.as_slice());
        one(
            &format!("{field}.portLevelSettings[{index}]"),
            level.tls.as_ref(),
            codes,
        );
    }
}

fn network(object: &Object, field: &str, network: &str, found: &mut Vec<Diagnostic>) {
    if !network.is_empty() {
        let message = "networks are not told apart yet: the address is called directly";
        tell(
            object,
            field,
            message,
            "write an address that callers can reach",
            found,
        );
    }
}

fn revocation(object: &Object, field: &str, found: &mut Vec<Diagnostic>) {
    let message = "caCrl is not supported yet: revoked certificates are accepted";
    tell(
        object,
        field,
        message,
        "replace the root that issued them",
        found,
    );
}

fn grpc_web(object: &Object, field: &str, protocol: Option<Protocol>, found: &mut Vec<Diagnostic>) {
    if protocol == Some(Protocol::GrpcWeb) {
        let message =
            "gRPC-Web is not translated to gRPC by Meltemi's own proxy: it passes on as HTTP";
        let remedy = "serve gRPC-Web in the application, or run Envoy beside it (--proxy envoy)";
        tell(object, field, message, remedy, found);
    }
}

fn omits_empty(mesh: &MeshConfig) -> bool {
    let mut logs = mesh
        .extension_providers
        .iter()
        .filter_map(|provider| provider.envoy_file_access_log.as_ref());
    logs.any(|log| log.omit_empty_values)
}

/// Settings of the mesh that differ from the default and that nothing reads.
fn unread(mesh: &MeshConfig) -> Vec<&'static str> {
    let default = MeshConfig::istio_default();
    let settings = [
        ("ca", mesh.ca.is_some()),
        ("caCertificates", !mesh.ca_certificates.is_empty()),
        ("certificates", !mesh.certificates.is_empty()),
        ("configSources", !mesh.config_sources.is_empty()),
        (
            "defaultConfig",
            mesh.default_config != default.default_config,
        ),
        (
            "defaultHttpRetryPolicy",
            mesh.default_http_retry_policy.is_some(),
        ),
        ("discoverySelectors", !mesh.discovery_selectors.is_empty()),
        (
            "dnsRefreshRate",
            mesh.dns_refresh_rate != default.dns_refresh_rate,
        ),
        (
            "enableEnvoyAccessLogService",
            mesh.enable_envoy_access_log_service,
        ),
        (
            "enablePrometheusMerge",
            mesh.enable_prometheus_merge != default.enable_prometheus_merge,
        ),
        (
            "extensionProviders[].envoyFileAccessLog.omitEmptyValues",
            omits_empty(mesh),
        ),
        (
            "inboundClusterStatName",
            !mesh.inbound_cluster_stat_name.is_empty(),
        ),
        (
            "inboundTrafficPolicy",
            mesh.inbound_traffic_policy != default.inbound_traffic_policy,
        ),
        ("ingressClass", mesh.ingress_class != default.ingress_class),
        (
            "ingressControllerMode",
            mesh.ingress_controller_mode != default.ingress_controller_mode,
        ),
        ("ingressSelector", !mesh.ingress_selector.is_empty()),
        (
            "ingressService",
            mesh.ingress_service != default.ingress_service,
        ),
        ("meshMTLS", mesh.mesh_mtls.is_some()),
        (
            "outboundClusterStatName",
            !mesh.outbound_cluster_stat_name.is_empty(),
        ),
        (
            "protocolDetectionTimeout",
            mesh.protocol_detection_timeout != default.protocol_detection_timeout,
        ),
        ("proxyHttpPort", mesh.proxy_http_port != 0),
        (
            "serviceScopeConfigs",
            !mesh.service_scope_configs.is_empty(),
        ),
        ("serviceSettings", !mesh.service_settings.is_empty()),
        ("tlsDefaults", mesh.tls_defaults.is_some()),
        (
            "verifyCertificateAtClient",
            mesh.verify_certificate_at_client.is_some(),
        ),
    ];

    settings
        .into_iter()
        .filter(|(_, is_set)| *is_set)
        .map(|(name, _)| name)
        .collect()
}

fn tell(
    object: &Object,
    field: &str,
    message: impl Into<String>,
    remedy: &str,
    found: &mut Vec<Diagnostic>,
) {
    found.push(finding(
        object,
        Severity::Warning,
        UNSUPPORTED,
        field,
        message,
        remedy,
    ));
}
