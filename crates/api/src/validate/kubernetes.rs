//! Core objects: what would make them useless to a mesh.

use super::rules::*;
use crate::core::{DeploymentSpec, ServiceSpec};
use crate::schema::{Report, shorten};

pub(super) fn check_service(spec: &ServiceSpec, at: &mut Report) {
    let mut names = Once::new();
    let mut numbers = std::collections::BTreeSet::new();
    at.field("ports", |at| {
        for (index, port) in spec.ports.iter().enumerate() {
            at.index(index, |at| {
                at.field("port", |at| check_port(u32::from(port.port), at));
                if spec.ports.len() > 1 && port.name.is_empty() {
                    at.field("name", |at| {
                        at.error(
                            MISSING,
                            "Required value: a Service with several ports must name them",
                            "name the port",
                        )
                    });
                } else if !names.insert(&port.name) {
                    at.field("name", |at| {
                        at.error(
                            DUPLICATE,
                            format!("Duplicate value: {:?}", shorten(&port.name)),
                            "rename one of them",
                        )
                    });
                }

                if !matches!(port.protocol.as_str(), "" | "TCP" | "UDP" | "SCTP") {
                    at.field("protocol", |at| {
                        at.error(
                            INVALID,
                            format!("Unsupported value: {:?}", shorten(&port.protocol)),
                            "use TCP, UDP or SCTP",
                        );
                    });
                }

                if !numbers.insert((
                    port.port,
                    if port.protocol.is_empty() {
                        "TCP"
                    } else {
                        &port.protocol
                    },
                )) {
                    at.field("port", |at| {
                        at.error(
                            DUPLICATE,
                            format!("Duplicate value: {}", port.port),
                            "remove one of them",
                        )
                    });
                }
            });
        }
    });

    let address = spec.cluster_ip.as_str();
    if !address.is_empty() && address != "None" && !is_ip(address) {
        at.field("clusterIP", |at| {
            at.error(
                INVALID,
                format!("{:?} is not an IP address", shorten(address)),
                "remove it: one is allocated",
            )
        });
    }

    if spec.r#type == "ExternalName" {
        at.field("externalName", |at| check_host(&spec.external_name, at));
    } else if spec.ports.is_empty() && address != "None" {
        at.field("ports", |at| {
            at.error(MISSING, "Required value", "add a port")
        });
    }
}

pub(super) fn check_deployment(spec: &DeploymentSpec, at: &mut Report) {
    if spec.replicas.is_some_and(|replicas| replicas < 0) {
        at.field("replicas", |at| {
            at.error(
                INVALID,
                "must be greater than or equal to 0",
                "write 0 or more",
            )
        });
    }

    at.field("template", |at| {
        at.field("spec", |at| {
            if spec.template.spec.containers.is_empty() {
                at.field("containers", |at| {
                    at.error(MISSING, "Required value", "add a container")
                });
            }
        });
    });

    if !spec.selector.match_labels.is_empty()
        && !spec
            .selector
            .match_labels
            .selects(&spec.template.metadata.labels)
    {
        at.field("template", |at| {
            at.field("metadata", |at| {
                at.field("labels", |at| {
                    at.error(
                        CONFLICT,
                        "`selector` does not match template `labels`",
                        "give the template the selector's labels",
                    )
                });
            });
        });
    }
}
