//! Sidecar.

use meltemi_types::is_dns_label;

use super::destination_rule::check_pool;
use super::rules::*;
use super::virtual_service::check_destination;
use crate::networking::{
    CaptureMode, IstioEgressListener, IstioIngressListener, ServerTlsMode, ServerTlsSettings,
    Sidecar, SidecarOutboundTrafficMode, SidecarPort,
};
use crate::schema::{Report, shorten};

pub(super) fn check(spec: &Sidecar, at: &mut Report) {
    let Sidecar {
        workload_selector,
        ingress,
        egress,
        inbound_connection_pool,
        outbound_traffic_policy,
    } = spec;

    if let Some(selector) = workload_selector {
        check_label_selector(&selector.labels.0, at);
    }
    if ingress.is_empty()
        && egress.is_empty()
        && inbound_connection_pool.is_none()
        && outbound_traffic_policy.is_none()
    {
        at.error(
            MISSING,
            "sidecar: empty configuration provided",
            "add ingress, egress or outboundTrafficPolicy",
        );
    }

    let mut ports = std::collections::BTreeSet::new();
    at.field("ingress", |at| {
        for (index, listener) in ingress.iter().enumerate() {
            at.index(index, |at| {
                check_ingress(listener, at);
                if !ports.insert(listener.port.number) {
                    at.field("port", |at| {
                        at.error(
                            DUPLICATE,
                            "sidecar: ports on IP bound listeners must be unique",
                            "merge the two listeners",
                        )
                    });
                }
            });
        }
    });

    let mut bound = std::collections::BTreeSet::new();
    at.field("egress", |at| {
        for (index, listener) in egress.iter().enumerate() {
            at.index(index, |at| {
                check_egress(listener, at);
                if listener.port.is_none() && index + 1 < egress.len() {
                    at.error(
                        CONFLICT,
                        "sidecar: the egress listener with empty port should be the last listener in the list",
                        "move it to the end",
                    );
                }

                // Listeners are told apart by port, those of Unix sockets by path.
                if let Some(port) = &listener.port
                    && !bound.insert((
                        port.number,
                        if port.number == 0 { listener.bind.as_str() } else { "" },
                    ))
                {
                    at.field("port", |at| {
                        at.error(
                            DUPLICATE,
                            "sidecar: ports on IP bound listeners must be unique",
                            "merge the two listeners",
                        )
                    });
                }
            });
        }
    });

    at.some("inboundConnectionPool", inbound_connection_pool, check_pool);
    at.some("outboundTrafficPolicy", outbound_traffic_policy, |policy, at| {
        at.some("egressProxy", &policy.egress_proxy, |proxy, at| {
            if policy.mode != SidecarOutboundTrafficMode::AllowAny {
                at.error(
                    CONFLICT,
                    "sidecar: egress_proxy must be set only with ALLOW_ANY outbound_traffic_policy mode",
                    "use mode ALLOW_ANY",
                );
            }

            if proxy.port.is_none() {
                at.field("port", |at| at.error(MISSING, "sidecar: egress_proxy port must be set", "add port.number"));
            }
            check_destination(proxy, at);
        });
    });
}

fn check_listener_port(port: &SidecarPort, at: &mut Report) {
    let SidecarPort {
        number,
        protocol,
        name,
        target_port,
    } = port;

    if !name.is_empty() && !is_dns_label(&name.to_ascii_lowercase()) {
        at.field("name", |at| {
            at.error(
                INVALID,
                format!("invalid port name: {:?}", shorten(name)),
                "write a DNS label",
            )
        });
    }

    at.field("number", |at| check_port(*number, at));
    if !protocol.is_empty() && meltemi_types::Protocol::from_word(protocol).is_none() {
        at.field("protocol", |at| {
            at.error(
                INVALID,
                format!("unsupported protocol: {:?}", shorten(protocol)),
                "use HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS",
            )
        });
    }

    if *target_port != 0 {
        at.field("targetPort", |at| {
            at.error(
                WITHOUT_EFFECT,
                "targetPort has no impact on Sidecars",
                "remove it",
            )
        });
    }
}

fn check_ingress(listener: &IstioIngressListener, at: &mut Report) {
    let IstioIngressListener {
        port,
        bind,
        capture_mode: _,
        default_endpoint,
        tls,
        connection_pool,
    } = listener;

    at.field("port", |at| check_listener_port(port, at));
    if !bind.is_empty() && !is_ip(bind) {
        at.field("bind", |at| {
            at.error(
                INVALID,
                format!("{:?} is not a valid IP", shorten(bind)),
                "write an address of the workload",
            )
        });
    }

    if !default_endpoint.is_empty() {
        at.field("defaultEndpoint", |at| {
            check_default_endpoint(default_endpoint, at)
        });
    }

    at.some("tls", tls, |tls, at| check_own_tls(tls, &port.protocol, at));
    at.some("connectionPool", connection_pool, check_pool);
}

/// A sidecar terminates TLS with certificates from files, and knows no other way.
fn check_own_tls(tls: &ServerTlsSettings, protocol: &str, at: &mut Report) {
    let from_files = "use serverCertificate and privateKey, files that the sidecar can read";
    for (key, is_set, remedy) in [
        (
            "credentialName",
            !tls.credential_name.is_empty(),
            from_files,
        ),
        (
            "credentialNames",
            !tls.credential_names.is_empty(),
            from_files,
        ),
        (
            "tlsCertificates",
            !tls.tls_certificates.is_empty(),
            from_files,
        ),
        (
            "subjectAltNames",
            !tls.subject_alt_names.is_empty(),
            "remove it; caCertificates says whom to trust",
        ),
        (
            "httpsRedirect",
            tls.https_redirect,
            "remove it, or redirect with a VirtualService",
        ),
    ] {
        if is_set {
            at.field(key, |at| {
                at.error(
                    CONFLICT,
                    format!("sidecar: {key} is not supported in ingress tls"),
                    remedy,
                );
            });
        }
    }

    if matches!(
        tls.mode,
        ServerTlsMode::IstioMutual | ServerTlsMode::AutoPassthrough
    ) {
        let message = format!(
            "cannot set mode to {} in sidecar ingress tls",
            tls.mode.as_str()
        );
        at.field("mode", |at| {
            at.error(
                CONFLICT,
                message,
                "use SIMPLE or MUTUAL; PeerAuthentication governs the mesh's own mutual TLS",
            );
        });
    }

    let is_tls = meltemi_types::Protocol::from_word(protocol).is_some_and(|known| known.is_tls());
    if !is_tls {
        at.error(
            CONFLICT,
            "server cannot have TLS settings for non HTTPS/TLS ports",
            "write protocol HTTPS or TLS, or remove tls",
        );
    }

    super::gateway::check_tls(tls, at);
}

fn check_default_endpoint(endpoint: &str, at: &mut Report) {
    let remedy = "write 127.0.0.1:PORT, [::1]:PORT, 0.0.0.0:PORT, [::]:PORT or unix:///path";
    if let Some(path) = endpoint.strip_prefix("unix://") {
        return check_unix_path(path, at);
    }

    let Some((host, port)) = endpoint.rsplit_once(':') else {
        return at.error(INVALID, "sidecar: defaultEndpoint must be of form 127.0.0.1:<port>, 0.0.0.0:<port>, [::1]:<port>, [::]:<port> or unix://filepath", remedy);
    };
    if !matches!(host, "" | "127.0.0.1" | "0.0.0.0" | "[::1]" | "[::]") {
        at.error(INVALID, "sidecar: defaultEndpoint must be of form 127.0.0.1:<port>, 0.0.0.0:<port>, [::1]:<port>, [::]:<port> or unix://filepath", remedy);
    }

    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        at.error(
            INVALID,
            format!(
                "sidecar: defaultEndpoint port ({:?}) is not a number: port must be between 1-65535",
                shorten(port)
            ),
            remedy,
        );
    }
}

fn check_egress(listener: &IstioEgressListener, at: &mut Report) {
    let IstioEgressListener {
        port,
        bind,
        capture_mode,
        hosts,
    } = listener;

    if !bind.is_empty() && !is_ip(bind) && !bind.starts_with("unix://") {
        at.field("bind", |at| {
            at.error(
                INVALID,
                format!("{:?} is not a valid IP or unix:// socket", shorten(bind)),
                "write an address",
            )
        });
    }

    match port {
        Some(port) if bind.starts_with("unix://") && port.number != 0 => {
            at.field("port", |at| {
                at.error(
                    CONFLICT,
                    "sidecar: unix domain socket listeners must have port 0",
                    "remove the number",
                )
            });
        }
        Some(_) if bind.starts_with("unix://") => {}
        Some(port) => at.field("port", |at| check_listener_port(port, at)),
        None if !bind.is_empty() => {
            at.field("bind", |at| {
                at.error(
                    CONFLICT,
                    "sidecar: bind is not allowed without a port",
                    "add a port, or remove bind",
                )
            });
        }
        None if *capture_mode == CaptureMode::None => {
            at.field("captureMode", |at| {
                at.error(
                    CONFLICT,
                    "sidecar: captureMode must be DEFAULT/IPTABLES without a port",
                    "add a port",
                )
            });
        }
        None => {}
    }

    if hosts.is_empty() {
        at.field("hosts", |at| {
            at.error(
                MISSING,
                "sidecar: egress listener must contain at least one host",
                "add ./* for the own namespace",
            )
        });
    }

    let mut seen = Once::new();
    at.field("hosts", |at| {
        for (index, host) in hosts.iter().enumerate() {
            at.index(index, |at| {
                check_namespaced_host(host, at);
                if !seen.insert(host) {
                    at.warn(
                        DOUBTFUL,
                        format!("sidecar: duplicate egress host {}", shorten(host)),
                        "remove one of them",
                    );
                }
            });
        }
    });
}

fn check_namespaced_host(host: &str, at: &mut Report) {
    let Some((namespace, name)) = host.split_once('/') else {
        return at.error(
            INVALID,
            format!(
                "sidecar: host must be of form namespace/dnsName: {:?}",
                shorten(host)
            ),
            "write ./HOST, */HOST or NAMESPACE/HOST",
        );
    };

    // `~` before a namespace leaves it out.
    let of = namespace.strip_prefix('~').unwrap_or(namespace);
    if !matches!(of, "." | "*" | "") && !is_dns_label(of) || namespace.is_empty() {
        at.error(
            INVALID,
            format!("sidecar: namespace {:?} is not valid", shorten(namespace)),
            "write a namespace, . for this one, * for all, ~ for none",
        );
    }

    check_full_host(name, at);
}
