//! Where a proxy cannot do what CUSTOM policies say.

use meltemi_model::{Authorizer, Check, CustomAuthorization};

use super::{Plan, View};
use crate::proxy::ProxyKind;

/// Reports policies that deny, or whose checks fail, because of this proxy.
pub(super) fn report_custom(view: &View<'_>, plan: &mut Plan) {
    for custom in &view.authz().policies.custom {
        let CustomAuthorization {
            provider: _,
            authorizer,
            policies,
        } = custom;

        // The model reports a provider that no proxy can ask.
        let Some(authorizer) = authorizer else {
            continue;
        };
        let Some((code, message, remedy)) = limit(view, authorizer) else {
            continue;
        };

        for policy in policies {
            let object = &policy.origin.object;
            plan.diagnostics.push(view.warning(
                object,
                code,
                "spec.provider.name",
                &message,
                &remedy,
            ));
        }
    }
}

/// Code, message and remedy.
fn limit(view: &View<'_>, authorizer: &Authorizer) -> Option<(&'static str, String, String)> {
    let proxy = &view.proxy.name;

    if !view.abilities.http_ext_authz {
        return Some((
            "MEL0504",
            format!(
                "the proxy of {proxy} cannot ask an authorizer: what the rules select is denied"
            ),
            "use a proxy that has envoy.filters.http.ext_authz".to_owned(),
        ));
    }

    if authorizer.check == Check::Grpc && !view.abilities.network_ext_authz && serves_tcp(view) {
        return Some((
            "MEL0504",
            format!(
                "the proxy of {proxy} cannot ask an authorizer about TCP connections: those that the rules select are denied"
            ),
            "use a proxy that has envoy.filters.network.ext_authz".to_owned(),
        ));
    }

    // The proxy has no cluster for the service.
    if view.service(&authorizer.service.host).is_none() {
        return Some((
            "MEL0505",
            format!(
                "{proxy} may not call {}: every check of the provider fails",
                authorizer.service.host
            ),
            "add the host to egress of the workload's Sidecar, and to exportTo of the service"
                .to_owned(),
        ));
    }

    None
}

/// Whether the workload serves a port as bytes. A gateway's ports are not looked at.
fn serves_tcp(view: &View<'_>) -> bool {
    let proxy = view.proxy;
    let targets = || {
        view.snapshot
            .service_targets(&proxy.namespace, view.labels(), &proxy.ips)
    };

    proxy.kind == ProxyKind::Sidecar && targets().iter().any(|target| target.port.protocol.is_tcp())
}
