//! ServiceEntry.

use meltemi_types::{Protocol, is_dns_label};

use super::rules::*;
use super::workload::check_endpoint;
use crate::networking::{Location, Resolution, ServiceEntry};
use crate::schema::{Report, shorten};

pub(super) fn check(spec: &ServiceEntry, namespace: &str, at: &mut Report) {
    let ServiceEntry {
        hosts,
        addresses,
        ports,
        location,
        resolution,
        endpoints,
        workload_selector,
        export_to,
        subject_alt_names: _,
    } = spec;

    if hosts.is_empty() {
        at.field("hosts", |at| {
            at.error(
                MISSING,
                format!("{} in body should have at least 1 items", at.path()),
                "add a host",
            )
        });
    }

    check_hosts(spec, at);
    at.each("addresses", addresses, |address, at| {
        check_ip_or_cidr(address, at);
        if address.contains('/') && !matches!(resolution, Resolution::None | Resolution::Static) {
            at.error(
                CONFLICT,
                "CIDR addresses are allowed only for NONE/STATIC resolution types",
                "write a single address",
            );
        }
    });

    check_ports(spec, at);
    if workload_selector.is_some() && !endpoints.is_empty() {
        at.error(
            CONFLICT,
            "only one of WorkloadSelector or Endpoints can be set",
            "keep one of them",
        );
    }

    if let Some(selector) = workload_selector {
        check_label_selector(&selector.labels.0, at);
        if selector.labels.is_empty() {
            at.field("workloadSelector", |at| {
                at.warn(
                    DOUBTFUL,
                    "workloadSelector specified without labels",
                    "add labels, or remove it",
                )
            });
        }
    }

    check_resolution(spec, at);
    at.each("endpoints", endpoints, |endpoint, at| {
        check_endpoint(endpoint, at);
        at.field("ports", |at| {
            for name in endpoint.ports.keys() {
                if !ports.iter().any(|port| port.name == *name) {
                    at.field(name, |at| {
                        at.error(
                            INVALID,
                            format!(
                                "endpoint port {:?} is not defined in the ports section",
                                shorten(name)
                            ),
                            "name a port of the ServiceEntry",
                        );
                    });
                }
            }
        });
    });

    let is_tcp = |protocol: &str| matches!(protocol.to_ascii_uppercase().as_str(), "" | "TCP");
    if *location == Location::MeshExternal
        && addresses.is_empty()
        && ports.iter().any(|port| is_tcp(&port.protocol))
        && *resolution == Resolution::None
    {
        at.field("addresses", |at| {
            at.add(
                meltemi_types::Severity::Info,
                DOUBTFUL,
                "TCP ports without addresses are told apart by port alone",
                "add addresses",
            );
        });
    }

    check_export_to(export_to, namespace, Exported::ServiceEntry, at);
}

fn check_hosts(spec: &ServiceEntry, at: &mut Report) {
    let ServiceEntry {
        hosts,
        ports,
        resolution,
        ..
    } = spec;

    at.each("hosts", hosts, |host, at| {
        if host == "*" {
            at.error(
                INVALID,
                "hostname cannot be wildcard",
                "name the hosts, or use *.domain",
            );
        } else {
            check_wildcard_host(host, at);
            let is_partial = host.starts_with('*') && !host.starts_with("*.");
            if is_partial && *resolution != Resolution::DynamicDns {
                at.warn(
                    DOUBTFUL,
                    format!(
                        "partial wildcard {:?} not allowed: TLS to such a host is not routed",
                        shorten(host)
                    ),
                    "write a name that begins with *.",
                );
            }
        }
    });

    // Bytes do not say which host they are for.
    let tells_hosts = |protocol: &str| {
        Protocol::from_word(protocol).is_some_and(|known| known.is_http() || known.is_tls())
    };
    if *resolution != Resolution::None
        && hosts.len() > 1
        && ports.iter().any(|port| !tells_hosts(&port.protocol))
    {
        at.field("hosts", |at| {
            at.error(
                CONFLICT,
                "multiple hosts provided with non-HTTP, non-TLS ports",
                "write a ServiceEntry for each host, or declare the protocol",
            )
        });
    }
}

fn check_ports(spec: &ServiceEntry, at: &mut Report) {
    if spec.ports.is_empty() && spec.workload_selector.is_none() {
        at.field("ports", |at| {
            at.warn(
                DOUBTFUL,
                "without ports, the host cannot be called",
                "add a port",
            )
        });
    }

    let (mut names, mut numbers) = (Once::new(), std::collections::BTreeSet::new());
    at.field("ports", |at| {
        for (index, port) in spec.ports.iter().enumerate() {
            at.index(index, |at| {
                at.field("number", |at| {
                    check_port(port.number, at);
                    if !numbers.insert(port.number) {
                        at.error(
                            DUPLICATE,
                            "port number cannot be duplicated",
                            "merge the two ports",
                        );
                    }
                });

                at.field("name", |at| {
                    if !names.insert(&port.name) {
                        at.error(
                            DUPLICATE,
                            format!("Duplicate value: {:?}", shorten(&port.name)),
                            "rename one of the ports",
                        );
                    } else if !is_dns_label(&port.name.to_ascii_lowercase()) {
                        at.error(
                            INVALID,
                            format!("invalid port name: {:?}", shorten(&port.name)),
                            "write a DNS label",
                        );
                    }
                });

                at.field("targetPort", |at| check_optional_port(port.target_port, at));
                at.field("protocol", |at| {
                    if !port.protocol.is_empty() && Protocol::from_word(&port.protocol).is_none() {
                        at.error(
                            INVALID,
                            format!("unsupported protocol: {:?}", shorten(&port.protocol)),
                            "use HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS",
                        );
                    }
                });
            });
        }
    });
}

fn check_resolution(spec: &ServiceEntry, at: &mut Report) {
    match spec.resolution {
        Resolution::None => check_without_resolution(spec, at),
        Resolution::Static => check_static(spec, at),
        Resolution::Dns | Resolution::DnsRoundRobin => check_dns(spec, at),
        Resolution::DynamicDns => check_dynamic_dns(spec, at),
    }
}

fn check_without_resolution(spec: &ServiceEntry, at: &mut Report) {
    if spec.workload_selector.is_some() {
        at.field("workloadSelector", |at| {
            at.warn(
                DOUBTFUL,
                "workloadSelector should not be set when resolution mode is NONE",
                "use resolution STATIC",
            )
        });
    }
    if !spec.endpoints.is_empty() {
        at.field("endpoints", |at| {
            at.error(
                CONFLICT,
                "NONE mode cannot set endpoints",
                "use resolution STATIC or DNS",
            )
        });
    }
}

fn check_static(spec: &ServiceEntry, at: &mut Report) {
    at.each("endpoints", &spec.endpoints, |endpoint, at| {
        let address = &endpoint.address;
        if !address.is_empty() && !address.starts_with("unix://") && !is_ip(address) {
            let message = format!(
                "endpoint address {:?} is not an IP address",
                shorten(address)
            );
            at.field("address", |at| {
                at.error(INVALID, message, "use resolution DNS");
            });
        }
        if address.starts_with("unix://") && spec.ports.len() != 1 {
            at.field("address", |at| {
                at.error(
                    CONFLICT,
                    "exactly 1 service port required for unix endpoints",
                    "keep one port",
                )
            });
        }
    });

    if !has_endpoints(spec) {
        at.field("endpoints", |at| {
            at.warn(
                DOUBTFUL,
                "STATIC resolution without endpoints: calls end with 503",
                "add endpoints",
            )
        });
    }
}

fn check_dns(spec: &ServiceEntry, at: &mut Report) {
    let word = spec.resolution.as_str();

    // Without endpoints the hosts themselves are resolved, and a wildcard is no name to resolve.
    let has_wildcard = spec.hosts.iter().any(|host| host.starts_with('*'));
    if has_wildcard && spec.endpoints.is_empty() {
        let message =
            format!("hosts must be FQDN if no endpoints are provided for resolution mode {word}");
        at.field("hosts", |at| {
            at.error(
                CONFLICT,
                message,
                "name the hosts, add endpoints, or use resolution DYNAMIC_DNS or NONE",
            );
        });
    }

    if spec.resolution == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
        at.field("endpoints", |at| {
            at.error(
                CONFLICT,
                "DNS_ROUND_ROBIN mode cannot have multiple endpoints",
                "keep one, or use resolution DNS",
            )
        });
    }

    at.each("endpoints", &spec.endpoints, |endpoint, at| {
        if endpoint.address.starts_with("unix://") {
            at.field("address", |at| {
                at.error(
                    CONFLICT,
                    format!("unix sockets cannot be resolved by {word}"),
                    "use resolution STATIC",
                )
            });
        }
    });
}

fn check_dynamic_dns(spec: &ServiceEntry, at: &mut Report) {
    if has_endpoints(spec) {
        at.error(
            CONFLICT,
            "DYNAMIC_DNS mode cannot set endpoints or workloadSelector",
            "remove them, or use resolution DNS",
        );
    }

    at.each("hosts", &spec.hosts, |host, at| {
        if !host.starts_with('*') {
            at.error(
                CONFLICT,
                "host must be wildcarded for resolution mode DYNAMIC_DNS",
                "use resolution DNS",
            );
        }
    });
    if !spec.addresses.is_empty() {
        at.field("addresses", |at| {
            at.error(
                CONFLICT,
                "addresses cannot be set for resolution type DYNAMIC_DNS",
                "remove them: requests go by their host",
            )
        });
    }

    at.each("ports", &spec.ports, |port, at| {
        let takes = matches!(
            Protocol::from_word(&port.protocol),
            Some(Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls)
        );
        if !takes {
            at.field("protocol", |at| {
                at.error(
                    CONFLICT,
                    "only HTTP, TLS, GRPC, and HTTP2 protocols are supported for resolution type DYNAMIC_DNS",
                    "use one of them",
                )
            });
        }
    });
}

/// Whether the entry lists endpoints or selects workloads as endpoints.
fn has_endpoints(spec: &ServiceEntry) -> bool {
    !spec.endpoints.is_empty() || spec.workload_selector.is_some()
}
