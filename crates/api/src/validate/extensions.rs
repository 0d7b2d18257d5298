//! EnvoyFilter, ProxyConfig, WasmPlugin, TrafficExtension.

use super::rules::*;
use crate::extensions::{EnvValueSource, TrafficExtension, TrafficSelector, VmConfig, WasmPlugin};
use crate::networking::{
    ApplyTo, EnvoyConfigObjectPatch, EnvoyFilter, PatchContext, PatchOperation, ProxyConfigResource,
};
use crate::schema::{Report, shorten};

pub(super) fn check_envoy_filter(spec: &EnvoyFilter, at: &mut Report) {
    let EnvoyFilter {
        workload_selector,
        target_refs,
        priority: _,
        config_patches,
    } = spec;

    if workload_selector.is_some() && !target_refs.is_empty() {
        at.error(
            CONFLICT,
            "only one of targetRefs or workloadSelector can be set",
            "keep one of them",
        );
    }

    if let Some(selector) = workload_selector {
        check_label_selector(&selector.labels.0, at);
    }
    check_targets(&None, &None, target_refs, at);
    at.each("configPatches", config_patches, check_patch);
}

fn check_patch(patch: &EnvoyConfigObjectPatch, at: &mut Report) {
    let EnvoyConfigObjectPatch {
        apply_to,
        r#match: matcher,
        patch,
    } = patch;

    if *apply_to == ApplyTo::Invalid {
        at.field("applyTo", |at| {
            at.error(
                MISSING,
                "Envoy filter: missing applyTo",
                "say what is patched",
            )
        });
    }

    match patch {
        None => at.field("patch", |at| {
            at.error(
                MISSING,
                "Envoy filter: missing patch",
                "add operation and value",
            )
        }),
        Some(patch) => at.field("patch", |at| {
            if patch.operation == PatchOperation::Invalid {
                at.field("operation", |at| {
                    at.error(
                        MISSING,
                        "Envoy filter: missing patch operation",
                        "add MERGE, ADD, REMOVE, ...",
                    )
                });
            }

            if !matches!(
                patch.operation,
                PatchOperation::Remove | PatchOperation::Invalid
            ) && patch.value.is_null()
            {
                at.field("value", |at| {
                    at.error(
                        MISSING,
                        "Envoy filter: missing patch value for non-remove operation",
                        "add value",
                    )
                });
            }
        }),
    }

    at.some("match", matcher, |matcher, at| {
        let chosen = usize::from(matcher.listener.is_some())
            + usize::from(matcher.route_configuration.is_some())
            + usize::from(matcher.cluster.is_some())
            + usize::from(matcher.waypoint.is_some());

        if chosen > 1 {
            at.error(
                CONFLICT,
                "only one of listener, routeConfiguration, cluster or waypoint can be set",
                "keep one of them",
            );
        }

        if matcher.waypoint.is_some() && matcher.context != PatchContext::Waypoint {
            at.error(
                CONFLICT,
                "only support waypointMatch when context is WAYPOINT",
                "use context WAYPOINT",
            );
        }

        at.some("proxy", &matcher.proxy, |proxy, at| {
            if !proxy.proxy_version.is_empty() {
                at.field("proxyVersion", |at| check_regex(&proxy.proxy_version, at));
            }
        });

        let suits = match apply_to {
            ApplyTo::Listener
            | ApplyTo::FilterChain
            | ApplyTo::NetworkFilter
            | ApplyTo::HttpFilter
            | ApplyTo::ListenerFilter => {
                matcher.route_configuration.is_none() && matcher.cluster.is_none()
            }
            ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
                matcher.listener.is_none() && matcher.cluster.is_none()
            }
            ApplyTo::Cluster => matcher.listener.is_none() && matcher.route_configuration.is_none(),
            ApplyTo::Invalid | ApplyTo::ExtensionConfig | ApplyTo::Bootstrap => true,
        };

        if !suits {
            let message = format!(
                "Envoy filter: applyTo for {} cannot have this kind of match",
                apply_to.as_str()
            );
            at.error(CONFLICT, message, "match what applyTo names");
        }
    });
}

pub(super) fn check_proxy_config(spec: &ProxyConfigResource, at: &mut Report) {
    check_selector("selector", &spec.selector, at);
    if spec.concurrency.is_some_and(|threads| threads < 0) {
        at.field("concurrency", |at| {
            at.error(
                INVALID,
                "concurrency must be greater than or equal to 0",
                "write 0 for all cores",
            )
        });
    }
}

pub(super) fn check_wasm_plugin(spec: &WasmPlugin, at: &mut Report) {
    check_targets(&spec.selector, &spec.target_ref, &spec.target_refs, at);
    check_module(&spec.url, &spec.sha256, &spec.vm_config, at);
    check_traffic(&spec.r#match, at);
}

pub(super) fn check_traffic_extension(spec: &TrafficExtension, at: &mut Report) {
    check_targets(&spec.selector, &None, &spec.target_refs, at);
    if spec.wasm.is_some() == spec.lua.is_some() {
        at.error(
            CONFLICT,
            "exactly one of wasm or lua must be set",
            "keep one of them",
        );
    }

    at.some("wasm", &spec.wasm, |wasm, at| {
        check_module(&wasm.url, &wasm.sha256, &wasm.vm_config, at)
    });
    at.some("lua", &spec.lua, |lua, at| {
        if lua.inline_code.len() > 65536 {
            at.field("inlineCode", |at| {
                at.error(
                    INVALID,
                    "may not be more than 65536 bytes",
                    "write a shorter script",
                )
            });
        }
    });

    check_traffic(&spec.r#match, at);
}

fn check_module(url: &str, sha256: &str, vm_config: &Option<VmConfig>, at: &mut Report) {
    if let Some((scheme, _)) = url.split_once("://")
        && !matches!(scheme, "http" | "https" | "file" | "oci")
    {
        at.field("url", |at| {
            at.error(
                INVALID,
                "url must have schema one of [http, https, file, oci]",
                "use one of these",
            )
        });
    }

    let is_sum = sha256.is_empty()
        || (sha256.len() == 64
            && sha256
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));

    if !is_sum {
        at.field("sha256", |at| {
            let message = format!("{} in body should match '(^$|^[a-f0-9]{{64}}$)'", at.path());
            at.error(INVALID, message, "write 64 lower-case hexadecimal digits");
        });
    }

    at.some("vmConfig", vm_config, |vm, at| {
        let mut names = Once::new();
        at.field("env", |at| {
            for (index, variable) in vm.env.iter().enumerate() {
                at.index(index, |at| {
                    if !names.insert(&variable.name) {
                        at.error(
                            DUPLICATE,
                            format!("Duplicate value: {:?}", shorten(&variable.name)),
                            "remove one of them",
                        );
                    }

                    if variable.value_from == EnvValueSource::Host && variable.value.is_some() {
                        at.error(
                            CONFLICT,
                            "value may only be set when valueFrom is INLINE",
                            "remove value",
                        );
                    }
                });
            }
        });
    });
}

fn check_traffic(selectors: &[TrafficSelector], at: &mut Report) {
    at.each("match", selectors, |selector, at| {
        at.each("ports", &selector.ports, |port, at| {
            at.field("number", |at| check_port(port.number, at))
        });
    });
}
