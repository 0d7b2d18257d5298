//! References to what does not exist: hosts, subsets, ports, gateways, providers, secrets.

use std::collections::BTreeSet;

use meltemi_api::{Object, Spec};
use meltemi_types::{Diagnostic, Labels, Severity};

use crate::lower::finding;
use crate::lower::istio::gateway_ref::gateway_ref;
use crate::{GatewayRef, Hostname, NamespacedName, Snapshot, Visibility};

const MISSING: &str = "IST0101";

pub(super) fn analyze(snapshot: &Snapshot, found: &mut Vec<Diagnostic>) {
    for entry in snapshot.lowered.virtual_services.entries.values() {
        virtual_service(snapshot, &entry.object, found);
    }
    for entry in snapshot.lowered.destination_rules.entries.values() {
        let rule = &entry.value;
        if !is_known_host(snapshot, &rule.origin.object.namespace, &rule.host) {
            let message = format!(
                "Referenced host not found: {:?}",
                written_host(&entry.object).unwrap_or_default()
            );

            warn(
                found,
                &entry.object,
                MISSING,
                "spec.host",
                message,
                "correct the host, or declare a Service or ServiceEntry for it",
            );
        }
    }

    for entry in snapshot.lowered.gateways.entries.values() {
        for (index, server) in entry.value.servers.iter().enumerate() {
            let credentials = server.tls.iter().flat_map(|tls| &tls.credential_names);
            for name in credentials.filter(|name| !name.contains("://")) {
                // The Secret is looked for where the gateway's proxies run; without any, in the
                // Gateway's own namespace.
                let mut homes = snapshot
                    .workloads()
                    .filter(|workload| entry.value.selector.selects(&workload.labels))
                    .map(|workload| workload.namespace.as_str());

                let home = homes.next().unwrap_or(&entry.object.meta.namespace);
                if snapshot
                    .credential(&NamespacedName::new(home, name))
                    .is_none()
                {
                    let field = format!("spec.servers[{index}].tls.credentialName");
                    warn(
                        found,
                        &entry.object,
                        MISSING,
                        &field,
                        format!("Referenced credentialName not found: {name:?}"),
                        format!("create Secret {name} in namespace {home}"),
                    );
                }
            }
        }
    }

    for entry in snapshot.lowered.telemetries.entries.values() {
        for (index, rule) in entry.value.access_logging.iter().enumerate() {
            for provider in &rule.providers {
                let field = format!("spec.accessLogging[{index}].providers");
                match snapshot
                    .mesh_config
                    .extension_providers
                    .iter()
                    .find(|known| known.name == *provider)
                {
                    None => warn(
                        found,
                        &entry.object,
                        MISSING,
                        &field,
                        format!("Referenced provider not found: {provider:?}"),
                        "add it to extensionProviders of MeshConfig",
                    ),
                    Some(known) if known.envoy_file_access_log.is_none() => {
                        warn(
                            found,
                            &entry.object,
                            "MEL0307",
                            &field,
                            format!(
                                "provider {provider:?} is not a file log, the only kind supported yet; it has no effect"
                            ),
                            "use envoyFileAccessLog",
                        );
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

fn virtual_service(snapshot: &Snapshot, object: &Object, found: &mut Vec<Diagnostic>) {
    let Spec::VirtualService(spec) = &object.spec else {
        return;
    };
    let namespace = object.meta.namespace.as_str();
    for (index, name) in spec.gateways.iter().enumerate() {
        if let GatewayRef::Gateway(reference) = gateway_ref(name, namespace)
            && snapshot.gateway(&reference).is_none()
        {
            warn(
                found,
                object,
                MISSING,
                &format!("spec.gateways[{index}]"),
                format!("Referenced gateway not found: {name:?}"),
                "correct the name, or create the Gateway",
            );
        }
    }

    let mut check = |field: String, written: &meltemi_api::networking::Destination| {
        destination(snapshot, object, &field, written, found)
    };
    for (index, route) in spec.http.iter().enumerate() {
        for (at, to) in route.route.iter().enumerate() {
            check(
                format!("spec.http[{index}].route[{at}].destination"),
                &to.destination,
            );
        }

        if let Some(mirror) = &route.mirror {
            check(format!("spec.http[{index}].mirror"), mirror);
        }
        for (at, mirror) in route.mirrors.iter().enumerate() {
            check(
                format!("spec.http[{index}].mirrors[{at}].destination"),
                &mirror.destination,
            );
        }
    }

    for (index, route) in spec.tls.iter().enumerate() {
        for (at, to) in route.route.iter().enumerate() {
            check(
                format!("spec.tls[{index}].route[{at}].destination"),
                &to.destination,
            );
        }
    }

    for (index, route) in spec.tcp.iter().enumerate() {
        for (at, to) in route.route.iter().enumerate() {
            check(
                format!("spec.tcp[{index}].route[{at}].destination"),
                &to.destination,
            );
        }
    }
}

fn destination(
    snapshot: &Snapshot,
    object: &Object,
    field: &str,
    written: &meltemi_api::networking::Destination,
    found: &mut Vec<Diagnostic>,
) {
    let host = Hostname::resolve(
        &written.host,
        &object.meta.namespace,
        &snapshot.options.domain,
    );

    for namespace in viewers(snapshot, object) {
        let Some(service) = snapshot.service_for(&namespace, &host) else {
            if !is_known_host(snapshot, &namespace, &host) {
                let message = format!("Referenced host not found: {:?}", written.host);
                warn(
                    found,
                    object,
                    MISSING,
                    &format!("{field}.host"),
                    message,
                    "correct the host, or declare a Service or ServiceEntry for it",
                );
            }

            continue;
        };

        match written
            .port
            .as_ref()
            .and_then(|selector| u16::try_from(selector.number).ok())
        {
            Some(port) if service.port(port).is_none() => {
                let message = format!(
                    "Referenced host:port not found: \"{}:{port}\"",
                    written.host
                );

                warn(
                    found,
                    object,
                    MISSING,
                    &format!("{field}.port"),
                    message,
                    format!("use one of its ports: {}", ports(service)),
                );
            }
            None if service.ports.len() > 1 && !snapshot.alias_has_one_port(&host) => {
                let message = format!(
                    "This VirtualService routes to a service {:?} that exposes multiple ports [{}]. Specifying a port in the destination is required to disambiguate.",
                    written.host,
                    ports(service)
                );

                warn(
                    found,
                    object,
                    "IST0112",
                    field,
                    message,
                    "write destination.port.number",
                );
            }
            _ => {}
        }
    }

    if !written.subset.is_empty()
        && !is_known_subset(snapshot, &object.meta.namespace, &host, &written.subset)
    {
        let message = format!(
            "Referenced host+subset in destinationrule not found: \"{}+{}\"",
            written.host, written.subset
        );

        warn(
            found,
            object,
            MISSING,
            &format!("{field}.subset"),
            message,
            format!(
                "add subset {:?} to a DestinationRule for this host",
                written.subset
            ),
        );
    }
}

/// The namespaces whose proxies apply a VirtualService, as far as they are named: its own unless it
/// is exported elsewhere only.
fn viewers(snapshot: &Snapshot, object: &Object) -> BTreeSet<String> {
    let own = &object.meta.namespace;
    let name = NamespacedName::new(own, &object.meta.name);
    match snapshot
        .lowered
        .virtual_services
        .entries
        .get(&name)
        .map(|entry| &entry.value.base.export_to)
    {
        Some(Visibility::Namespaces(namespaces)) if !namespaces.is_empty() => namespaces.clone(),
        _ => BTreeSet::from([own.clone()]),
    }
}

/// Whether a rule that proxies of the namespace may get has the subset.
fn is_known_subset(snapshot: &Snapshot, namespace: &str, host: &Hostname, subset: &str) -> bool {
    if let Some(service) = snapshot.service_for(namespace, host) {
        return snapshot
            .destination_rule(namespace, &Labels::default(), service)
            .is_some_and(|rule| rule.subset(subset).is_some());
    }
    let mut rules = snapshot
        .destination_rules()
        .filter(|rule| rule.export_to.includes(namespace) && host.is_within(&rule.host));
    rules.any(|rule| rule.subset(subset).is_some())
}

fn ports(service: &crate::Service) -> String {
    service
        .ports
        .iter()
        .map(|port| port.number.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether any service that the namespace may see is among the names that a host stands for, or the
/// other way round (a wildcard ServiceEntry knows every name below it).
fn is_known_host(snapshot: &Snapshot, namespace: &str, host: &Hostname) -> bool {
    if snapshot.service_for(namespace, host).is_some() {
        return true;
    }
    snapshot.services().any(|service| {
        service.export_to.includes(namespace)
            && (host.is_wildcard() || service.host().is_wildcard())
            && service.host().overlaps(host)
    })
}

fn written_host(object: &Object) -> Option<&str> {
    if let Spec::DestinationRule(spec) = &object.spec {
        Some(&spec.host)
    } else {
        None
    }
}

fn warn(
    found: &mut Vec<Diagnostic>,
    object: &Object,
    code: &str,
    field: &str,
    message: impl Into<String>,
    remedy: impl Into<String>,
) {
    found.push(finding(
        object,
        Severity::Warning,
        code,
        field,
        message,
        remedy,
    ));
}
