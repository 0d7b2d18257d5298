//! WorkloadEntry and WorkloadGroup.

use super::rules::*;
use crate::networking::{ReadinessProbe, WorkloadEntry, WorkloadGroup};
use crate::schema::{Report, shorten};

pub(super) fn check_entry(entry: &WorkloadEntry, at: &mut Report) {
    check_endpoint(entry, at);
}

/// A WorkloadEntry, also as an endpoint of a ServiceEntry.
pub(super) fn check_endpoint(entry: &WorkloadEntry, at: &mut Report) {
    if entry.address.is_empty() && entry.network.is_empty() {
        at.error(MISSING, "Address is required", "add address, or network");
    }
    check_common(entry, at);
}

fn check_common(entry: &WorkloadEntry, at: &mut Report) {
    let WorkloadEntry {
        address,
        ports,
        labels,
        network: _,
        locality: _,
        weight: _,
        service_account,
    } = entry;

    at.field("address", |at| check_address(address, at));
    if address.starts_with("unix://") && !ports.is_empty() {
        at.field("ports", |at| {
            at.error(CONFLICT, "UDS may not include ports", "remove ports")
        });
    }

    at.field("ports", |at| {
        for (name, port) in ports {
            at.field(name, |at| {
                let inner = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if name.is_empty()
                    || name.len() >= 63
                    || !inner
                    || name.starts_with('-')
                    || name.ends_with('-')
                {
                    at.error(
                        INVALID,
                        format!("port name must be valid: {:?}", shorten(name)),
                        "letters, digits and -, fewer than 63",
                    );
                }

                check_port(*port, at);
            });
        }
    });

    check_labels("labels", &labels.0, at);

    if service_account.len() > 253 {
        at.field("serviceAccount", |at| {
            at.error(
                INVALID,
                "may not be more than 253 bytes",
                "write the account's name",
            )
        });
    }
}

fn check_address(address: &str, at: &mut Report) {
    let Some(path) = address.strip_prefix("unix://") else {
        if !address.is_empty() && !is_ip(address) {
            check_host(address, at);
        }
        return;
    };

    check_unix_path(path, at);
}

pub(super) fn check_group(group: &WorkloadGroup, at: &mut Report) {
    let WorkloadGroup {
        metadata,
        template,
        probe,
    } = group;

    at.some("metadata", metadata, |metadata, at| {
        check_labels("labels", &metadata.labels.0, at)
    });
    at.field("template", |at| check_common(template, at));
    at.some("probe", probe, check_probe);
}

fn check_probe(probe: &ReadinessProbe, at: &mut Report) {
    let ReadinessProbe {
        initial_delay_seconds,
        timeout_seconds,
        period_seconds,
        success_threshold,
        failure_threshold,
        http_get,
        tcp_socket,
        exec,
        grpc,
    } = probe;

    for (key, value) in [
        ("initialDelaySeconds", initial_delay_seconds),
        ("timeoutSeconds", timeout_seconds),
        ("periodSeconds", period_seconds),
        ("successThreshold", success_threshold),
        ("failureThreshold", failure_threshold),
    ] {
        if *value < 0 {
            at.field(key, |at| {
                at.error(
                    INVALID,
                    format!("{key} must be non-negative"),
                    "write 0 or more",
                )
            });
        }
    }

    let chosen = usize::from(http_get.is_some())
        + usize::from(tcp_socket.is_some())
        + usize::from(exec.is_some())
        + usize::from(grpc.is_some());

    if chosen > 1 {
        at.error(
            CONFLICT,
            "only one of httpGet, tcpSocket, exec or grpc can be set",
            "keep one of them",
        );
    }

    at.some("httpGet", http_get, |http, at| {
        at.field("port", |at| check_port(http.port, at));
        if !matches!(http.scheme.as_str(), "" | "HTTP" | "HTTPS") {
            at.field("scheme", |at| {
                at.error(
                    INVALID,
                    "scheme must be one of [HTTP, HTTPS]",
                    "write HTTP or HTTPS",
                )
            });
        }

        at.each("httpHeaders", &http.http_headers, |header, at| {
            if header.name.is_empty()
                || !header
                    .name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            {
                at.field("name", |at| {
                    let message = format!("{} in body should match '^[-_A-Za-z0-9]+$'", at.path());
                    at.error(INVALID, message, "letters, digits, - and _");
                });
            }
        });
    });

    at.some("tcpSocket", tcp_socket, |tcp, at| {
        at.field("port", |at| check_port(tcp.port, at))
    });
    at.some("grpc", grpc, |grpc, at| {
        at.field("port", |at| check_optional_port(grpc.port, at))
    });
    at.some("exec", exec, |exec, at| {
        if exec.command.is_empty() {
            at.field("command", |at| {
                at.error(MISSING, "command is required", "add program and arguments")
            });
        }
    });
}
