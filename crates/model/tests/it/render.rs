//! A snapshot as text that a person can check.

use std::fmt::Write as _;

use meltemi_model::{Endpoint, HttpAction, Service, Snapshot, VirtualService};

pub fn snapshot(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    for found in snapshot.services() {
        service(snapshot, found, &mut out);
    }
    for workload in snapshot.workloads() {
        let identity = workload
            .identity
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();

        let _ = writeln!(
            out,
            "workload {} of {} {}: {identity} {:?} {:?} {}",
            workload.key(),
            workload.workload_kind,
            workload.workload_name,
            workload.tls_mode,
            workload.health,
            workload.locality
        );
    }

    for vs in snapshot.virtual_services() {
        virtual_service(vs, &mut out);
    }
    for rule in snapshot.destination_rules() {
        let _ = writeln!(
            out,
            "destination rule {} ports {:?}",
            rule.host,
            rule.policy.ports.keys().collect::<Vec<_>>()
        );
        for subset in &rule.subsets {
            let _ = writeln!(out, "  subset {} {:?}", subset.name, subset.labels.0);
        }
    }

    for gateway in snapshot.gateways() {
        for server in &gateway.servers {
            let _ = writeln!(
                out,
                "gateway {} {}/{} {:?}",
                gateway.name(),
                server.port,
                server.protocol,
                server.hosts
            );
        }
    }

    out
}

fn service(snapshot: &Snapshot, service: &Service, out: &mut String) {
    let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
    let allocated = if service.is_address_allocated {
        " (allocated)"
    } else {
        ""
    };

    let _ = writeln!(
        out,
        "service {} {:?} {:?} [{}]{allocated}",
        service.key,
        service.resolution,
        service.location,
        addresses.join(" ")
    );

    for port in &service.ports {
        let _ = writeln!(
            out,
            "  port {} {:?} {} -> {:?}",
            port.number, port.name, port.protocol, port.target
        );
        for endpoint in &*snapshot.port_endpoints(&service.key, port) {
            let _ = writeln!(out, "    {}", self::endpoint(endpoint));
        }
    }
}

pub fn endpoint(endpoint: &Endpoint) -> String {
    let workload = endpoint
        .workload
        .as_ref()
        .map(|workload| workload.name.clone())
        .unwrap_or_default();

    format!(
        "{}:{} {workload} {:?} {:?} weight {} {}",
        endpoint.address,
        endpoint.port,
        endpoint.tls_mode,
        endpoint.health,
        endpoint.weight,
        endpoint.locality
    )
}

fn virtual_service(vs: &VirtualService, out: &mut String) {
    let hosts: Vec<_> = vs.hosts.iter().map(ToString::to_string).collect();
    let gateways: Vec<_> = vs.gateways.iter().map(ToString::to_string).collect();
    let _ = writeln!(
        out,
        "virtual service {} hosts [{}] gateways [{}]",
        vs.origin.name(),
        hosts.join(" "),
        gateways.join(" ")
    );

    for route in &vs.http {
        let _ = writeln!(
            out,
            "  http {:?} timeout {:?} {:?} fault {:?}",
            route.name, route.timeout, route.retries, route.fault
        );

        for matcher in &route.matches {
            let _ = writeln!(
                out,
                "    match uri {:?} headers {:?} labels {:?}",
                matcher.uri, matcher.headers, matcher.source.labels.0
            );
        }

        match &route.action {
            HttpAction::Forward(destinations) => {
                for to in destinations {
                    let _ = writeln!(
                        out,
                        "    {}% {} subset {:?} port {:?}",
                        to.weight, to.destination.host, to.destination.subset, to.destination.port
                    );
                }
            }
            other => {
                let _ = writeln!(out, "    {other:?}");
            }
        }
    }
}
