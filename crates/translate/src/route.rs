//! Route tables: the input that a table is made of, and its builder.

pub(crate) mod action;
mod matching;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use meltemi_model::{HttpRoute, InboundRetries, VirtualService};
use meltemi_proto::{Any, pack, value_of};

use crate::envoy::value::{boolv, metadata, seconds};
use crate::envoy::{core, route, wkt};

/// Everything that a route table is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RouteTableInput {
    pub name: String,
    pub hosts: Vec<Arc<VirtualHostInput>>,
    /// Match hosts whatever port the request's authority names.
    pub ignore_port: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct VirtualHostInput {
    pub name: String,
    pub domains: Vec<String>,
    pub routes: Vec<RouteInput>,
    /// Answer plaintext requests with a redirect to https.
    pub require_tls: bool,
}

/// One route of a virtual host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum RouteInput {
    /// A rule of a VirtualService, for one of its matches.
    Rule(Box<RuleInput>),
    /// Everything to one cluster, for hosts without VirtualService.
    Default(DefaultInput),
    /// Everything to the application behind this sidecar.
    Inbound {
        cluster: String,
        is_grpc: bool,
        retries: Option<InboundRetries>,
    },
    /// Everything to the original destination.
    Passthrough { cluster: String },
    /// Everything answered with a status: `block_all` 502.
    Refuse { name: String, status: u32 },
}

impl RouteInput {
    /// Whether no request passes it by.
    pub fn takes_everything(&self) -> bool {
        match self {
            Self::Rule(input) => match input
                .matched
                .and_then(|index| input.rule.matches.get(index))
            {
                Some(condition) => condition.is_catch_all(),
                None => true,
            },
            _ => true,
        }
    }
}

/// A host's default route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct DefaultInput {
    pub cluster: String,
    /// `host:port/*`, what a span is called.
    pub operation: String,
    pub hash: Vec<HashPolicy>,
}

/// A VirtualService's rule with its destinations resolved to clusters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RuleInput {
    pub rule: Rule,
    /// Which of the rule's matches; `None` for a rule without.
    pub matched: Option<usize>,
    /// The cluster of each destination, in order.
    pub clusters: Vec<String>,
    /// The cluster of each mirror, in order.
    pub mirrors: Vec<String>,
    pub hash: Vec<HashPolicy>,
    /// The listener's port, for redirects that keep the request's.
    pub port: u16,
    /// Whether the listener terminates TLS, so that requests come as https.
    pub is_tls: bool,
    pub operation: String,
    /// The filters that the client has for it.
    pub has_fault: bool,
    pub has_cors: bool,
}

/// A rule inside its shared VirtualService: cheap to clone, hashed and compared as the rule alone.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub service: Arc<VirtualService>,
    pub index: usize,
}

impl Deref for Rule {
    type Target = HttpRoute;
    fn deref(&self) -> &HttpRoute {
        &self.service.http[self.index]
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Rule {}

impl Hash for Rule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

/// What a consistent hash is taken of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum HashPolicy {
    Header(String),
    Cookie {
        name: String,
        path: String,
        ttl: Option<Duration>,
        attributes: Vec<(String, String)>,
    },
    SourceIp,
    Query(String),
}

/// Builds a table from its input alone.
pub(crate) fn build_route_table(input: &RouteTableInput) -> Any {
    pack(&table_message(input))
}

pub(crate) fn table_message(input: &RouteTableInput) -> route::RouteConfiguration {
    let RouteTableInput {
        name,
        hosts,
        ignore_port,
    } = input;

    route::RouteConfiguration {
        name: name.clone(),
        virtual_hosts: hosts.iter().map(|host| host_message(host)).collect(),
        // A route may name a cluster that comes later, or never: that is a 503 at the request, not
        // a NACK.
        validate_clusters: boolv(false),
        ignore_port_in_host_matching: *ignore_port,
        max_direct_response_body_size_bytes: crate::envoy::value::u32v(1024 * 1024),
        ..Default::default()
    }
}

fn host_message(input: &VirtualHostInput) -> route::VirtualHost {
    use route::virtual_host::TlsRequirementType;

    let VirtualHostInput {
        name,
        domains,
        routes,
        require_tls,
    } = input;

    route::VirtualHost {
        name: name.clone(),
        domains: domains.clone(),
        routes: routes.iter().map(route_message).collect(),
        require_tls: if *require_tls {
            TlsRequirementType::All
        } else {
            TlsRequirementType::None
        } as i32,
        // The caller's proxy has counted; the server's passes on what it says.
        include_request_attempt_count: !routes
            .iter()
            .any(|route| matches!(route, RouteInput::Inbound { .. })),
        ..Default::default()
    }
}

fn route_message(input: &RouteInput) -> route::Route {
    match input {
        RouteInput::Rule(rule) => action::rule_message(rule),
        RouteInput::Default(default) => {
            let DefaultInput {
                cluster,
                operation,
                hash,
            } = default;
            let mut action = forward(cluster);
            action.retry_policy = Some(action::default_retries());
            action.hash_policy = hash.iter().map(action::hash_policy).collect();
            everything("default", action, operation)
        }
        RouteInput::Inbound {
            cluster,
            is_grpc,
            retries,
        } => {
            let mut action = forward(cluster);
            action.retry_policy =
                retries
                    .as_ref()
                    .filter(|_| !is_grpc)
                    .map(|retries| route::RetryPolicy {
                        retry_on: retries.retry_on.clone(),
                        num_retries: crate::envoy::value::u32v(retries.attempts),
                        ..Default::default()
                    });

            everything("default", action, "")
        }
        RouteInput::Passthrough { cluster } => everything("allow_any", forward(cluster), ""),
        RouteInput::Refuse { name, status } => route::Route {
            name: name.clone(),
            r#match: Some(any_path()),
            action: Some(route::route::Action::DirectResponse(
                route::DirectResponseAction {
                    status: *status,
                    ..Default::default()
                },
            )),
            ..Default::default()
        },
    }
}

fn everything(name: &str, action: route::RouteAction, operation: &str) -> route::Route {
    route::Route {
        name: name.to_owned(),
        r#match: Some(any_path()),
        action: Some(route::route::Action::Route(action)),
        decorator: decorator(operation),
        ..Default::default()
    }
}

fn any_path() -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    }
}

/// A forwarding action without a timeout. Source: Istio's default for routes, both ways.
// max_grpc_timeout: its replacement changes when streams are reset; Istio sends it still.
#[expect(deprecated, reason = "Envoys of every version read the older field")]
fn forward(cluster: &str) -> route::RouteAction {
    route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
            cluster.to_owned(),
        )),
        timeout: seconds(0),
        max_grpc_timeout: seconds(0),
        ..Default::default()
    }
}

fn decorator(operation: &str) -> Option<route::Decorator> {
    (!operation.is_empty()).then(|| route::Decorator {
        operation: operation.to_owned(),
        ..Default::default()
    })
}

/// The object that wrote a route, where Istio puts it.
fn origin_metadata(kind: &str, namespace: &str, name: &str) -> Option<core::Metadata> {
    let path = format!("/apis/networking.istio.io/v1/namespaces/{namespace}/{kind}/{name}");
    let fields = [("config".to_owned(), value_of(path))];
    metadata(BTreeMap::from([(
        "istio",
        wkt::Struct {
            fields: fields.into_iter().collect(),
        },
    )]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_proxy_counts_attempts_and_the_servers_passes_the_count_on() {
        let counts = |route| {
            let (name, domains) = ("v".to_owned(), vec!["*".to_owned()]);
            host_message(&VirtualHostInput {
                name,
                domains,
                routes: vec![route],
                require_tls: false,
            })
            .include_request_attempt_count
        };

        let cluster = || "c".to_owned();
        assert!(counts(RouteInput::Passthrough { cluster: cluster() }));
        assert!(!counts(RouteInput::Inbound {
            cluster: cluster(),
            is_grpc: false,
            retries: None
        }));
    }
}
