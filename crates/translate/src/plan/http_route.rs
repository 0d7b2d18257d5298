//! Routes of VirtualServices and of hosts without one, for one listener port.

use std::sync::Arc;

use meltemi_model::{Hostname, HttpAction, RouteContext, Service, VirtualService};

use super::View;
use super::cluster::destination_settings;
use crate::cluster_name::outbound_name;
use crate::route::{DefaultInput, HashPolicy, RouteInput, Rule, RuleInput};
use crate::traffic_policy::hash_policies;

/// The routes that a VirtualService has for a proxy, gateway and port; empty if none is for it.
/// `is_tls`: requests come as https.
pub(super) fn rules(
    view: &View<'_>,
    of: &Arc<VirtualService>,
    context: &RouteContext<'_>,
    is_tls: bool,
) -> Vec<RouteInput> {
    let mut routes = Vec::new();
    for (index, route) in of.http.iter().enumerate() {
        let Some(held) = route.matches_for(context, of) else {
            continue;
        };
        let rule = Rule {
            service: of.clone(),
            index,
        };

        if held.is_empty() {
            routes.push(rule_input(view, rule, None, context.port, is_tls));
            break;
        }

        let mut takes_all = false;
        for condition in held {
            let at = route
                .matches
                .iter()
                .position(|one| std::ptr::eq(one, condition));

            routes.push(rule_input(view, rule.clone(), at, context.port, is_tls));

            // What follows a route that matches everything is never reached.
            if condition.is_catch_all() {
                takes_all = true;
                break;
            }
        }

        if takes_all {
            break;
        }
    }

    routes
}

fn rule_input(
    view: &View<'_>,
    rule: Rule,
    matched: Option<usize>,
    port: u16,
    is_tls: bool,
) -> RouteInput {
    let (mut clusters, mut hash, mut operation) =
        (Vec::new(), Vec::<HashPolicy>::new(), String::new());
    if let HttpAction::Forward(destinations) = &rule.action {
        for weighted in destinations {
            let destination = &weighted.destination;
            let (cluster, port) = view.cluster_of(destination, port);
            if operation.is_empty() {
                operation = format!("{}:{port}/*", destination.host);
            }
            clusters.push(cluster);
            if weighted.weight == 0 {
                continue;
            }
            for policy in hash_policies(&destination_settings(
                view,
                &destination.host,
                &destination.subset,
                port,
            )) {
                if !hash.contains(&policy) {
                    hash.push(policy);
                }
            }
        }
    }

    let mirrors = rule
        .mirrors
        .iter()
        .map(|mirror| view.cluster_of(&mirror.destination, port).0)
        .collect();

    RouteInput::Rule(Box::new(RuleInput {
        rule,
        matched,
        clusters,
        mirrors,
        hash,
        port,
        is_tls,
        operation,
        has_fault: view.abilities.fault,
        has_cors: view.abilities.cors,
    }))
}

/// Everything to the service's own cluster.
pub(super) fn default_route(view: &View<'_>, service: &Service, port: u16) -> RouteInput {
    RouteInput::Default(DefaultInput {
        cluster: outbound_name(port, "", service.host().as_str()),
        operation: format!("{}:{port}/*", service.host()),
        hash: hash_policies(&destination_settings(view, service.host(), "", port)),
    })
}

/// The names by which a proxy's application may call a service: whole, shortened as its resolver
/// would complete it, and by address.
pub(super) fn domains(view: &View<'_>, host: &Hostname, service: Option<&Service>) -> Vec<String> {
    let domain = view.snapshot.options.domain.as_str();
    let mut names = vec![host.to_string()];
    if let Some(stem) = host.as_str().strip_suffix(&format!(".svc.{domain}"))
        && let Some((name, namespace)) = stem.rsplit_once('.')
    {
        if namespace == view.proxy.namespace {
            names.push(name.to_owned());
        }
        names.push(stem.to_owned());
        names.push(format!("{stem}.svc"));
    }

    let Some(service) = service else { return names };
    if service.is_headless() {
        let pods: Vec<_> = names.iter().map(|name| format!("*.{name}")).collect();
        names.extend(pods);
    }

    names.extend(
        service
            .addresses
            .iter()
            .filter(|network| network.is_host())
            .map(|network| match network.address() {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            }),
    );

    names
}
