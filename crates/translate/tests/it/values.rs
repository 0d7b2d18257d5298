//! The values of fields: what a user writes, and the message that a proxy is sent for it, compared
//! whole.
//!
//! Expected values are written from Istio's sources (`route.go`, `cluster_traffic_policy.go`,
//! `loadbalancer.go`, `telemetry_logging.go`), so that neither a field that is lost nor two that
//! are swapped go unseen.

mod cluster;
mod hosts;
mod locality;
mod logs;
mod matches;
mod routes;

use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use meltemi_proto::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use meltemi_proto::google::protobuf::{BoolValue, Duration, UInt32Value, UInt64Value};
use meltemi_proto::{type_url, unpack};
use meltemi_translate::{Memo, Proxy, Translated, translate};

/// A service with a port of each kind, four pods in as many places, and another service.
pub const WORLD: &str = include_str!("data/places.yaml");

/// The cluster of `web`'s first port.
pub const WEB: &str = "outbound|80||web.shop.svc.cluster.local";

pub fn caller() -> Proxy {
    let mut proxy = super::proxy(
        "sidecar~10.44.1.9~caller-1.shop~shop.svc.cluster.local",
        "caller",
        &[("app", "caller"), ("version", "v2")],
    );
    proxy.locality = meltemi_types::Locality::parse("eu/a/1");
    proxy
}

pub fn translated(proxy: &Proxy, objects: &str) -> Translated {
    translate(
        &super::snapshot_of(&format!("{WORLD}---\n{objects}")),
        proxy,
        &Memo::new(),
    )
}

pub fn virtual_service(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: shop}}\n\
         spec:\n  hosts: [web]\n  http:\n{http}\n"
    )
}

pub fn destination_rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{host: web, trafficPolicy: {policy}}}\n"
    )
}

pub fn mesh_config(settings: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {settings}\n"
    )
}

pub fn table(translated: &Translated, name: &str) -> RouteConfiguration {
    let found = translated
        .of(type_url::ROUTE)
        .iter()
        .find(|one| one.name == name);
    unpack(&found.unwrap_or_else(|| panic!("no table {name}")).any).expect("a table")
}

pub fn host(translated: &Translated, in_table: &str, domain: &str) -> VirtualHost {
    let hosts = table(translated, in_table).virtual_hosts;
    hosts
        .into_iter()
        .find(|host| host.domains.iter().any(|own| own == domain))
        .expect("a virtual host")
}

/// The routes of `web` at port 80, for the caller.
pub fn routes(http: &str) -> Vec<Route> {
    host(
        &translated(&caller(), &virtual_service(http)),
        "80",
        "web.shop.svc.cluster.local",
    )
    .routes
}

/// The first of them.
pub fn route(rule: &str) -> Route {
    routes(&format!("  - {rule}")).swap_remove(0)
}

pub fn cluster(translated: &Translated, name: &str) -> Cluster {
    let found = translated
        .of(type_url::CLUSTER)
        .iter()
        .find(|one| one.name == name);
    unpack(&found.unwrap_or_else(|| panic!("no cluster {name}")).any).expect("a cluster")
}

/// The cluster of `web` under a traffic policy.
pub fn cluster_under(policy: &str) -> Cluster {
    cluster(&translated(&caller(), &destination_rule(policy)), WEB)
}

pub fn u32v(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub fn u64v(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

pub fn boolv(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub fn millis(value: i64) -> Option<Duration> {
    Some(Duration {
        seconds: value / 1000,
        nanos: i32::try_from(value % 1000).expect("small") * 1_000_000,
    })
}

pub fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher {
        regex: pattern.to_owned(),
        engine_type: None,
    }
}

pub fn exact(text: &str) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(MatchPattern::Exact(text.to_owned())),
        ignore_case: false,
    }
}

pub fn prefix(text: &str) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(MatchPattern::Prefix(text.to_owned())),
        ignore_case: false,
    }
}

pub fn matches(pattern: &str) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(regex(pattern))),
        ignore_case: false,
    }
}
