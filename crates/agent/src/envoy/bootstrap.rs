//! Renders Envoy's bootstrap as JSON. Pure. Source: Istio
//! `tools/packaging/common/envoy_bootstrap.json`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use meltemi_proto::envoy::config::core::v3::Node;
use meltemi_proto::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use serde_json::{Map, Value, json};

/// Envoy statistics that the user keeps, beside those that Istio always keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatsInclusion {
    /// `sidecar.istio.io/statsInclusionPrefixes`.
    pub prefixes: Vec<String>,
    /// `sidecar.istio.io/statsInclusionSuffixes`.
    pub suffixes: Vec<String>,
    /// `sidecar.istio.io/statsInclusionRegexps`.
    pub regexps: Vec<String>,
}

impl StatsInclusion {
    /// Reads the pod's annotations; each is a comma-separated list.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Self {
        let list = |kind: &str| {
            let text = annotations.get(&format!("sidecar.istio.io/statsInclusion{kind}"));
            text.iter()
                .flat_map(|text| text.split(','))
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };

        Self {
            prefixes: list("Prefixes"),
            suffixes: list("Suffixes"),
            regexps: list("Regexps"),
        }
    }
}

/// Input of [`render`].
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// The xDS node of the workload.
    pub node: Node,
    /// Unix socket of the [`super::AdsRelay`].
    pub xds_socket: PathBuf,
    /// Unix socket of the [`super::SdsServer`].
    pub sds_socket: PathBuf,
    /// Port of Envoy's admin interface on localhost; usually 15000.
    pub admin_port: u16,
    /// Port of Envoy's Prometheus listener; usually 15090.
    pub prometheus_port: u16,
    /// The agent's status port; usually 15020.
    pub status_port: u16,
    /// Port of the readiness probe, which Envoy forwards to `status_port`; usually 15021.
    pub health_port: u16,
    /// SO_MARK of every upstream connection, which capture rules leave alone.
    pub mark: Option<u32>,
    /// Statistics kept at the user's request.
    pub stats: StatsInclusion,
}

/// Numbers of Linux's socket options.
const SOL_SOCKET: u32 = 1;
const SO_MARK: u32 = 36;

/// Maximum number of downstream connections of one Envoy.
const MAX_CONNECTIONS: u64 = 100_000;

/// Istio's tag extraction rules. Without them, cluster and listener names would be part of metric
/// names.
const TAGS: &[(&str, &str)] = &[
    (
        "cluster_name",
        r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)",
    ),
    ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
    (
        "response_code",
        r"(response_code=\.=(.+?);\.;)|_rq(_(\.d{3}))$",
    ),
    ("response_code_class", r"_rq(_(\dxx))$"),
    (
        "http_conn_manager_listener_prefix",
        r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    (
        "http_conn_manager_prefix",
        r"^http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    (
        "listener_address",
        r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
    ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
    ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
];

/// Statistics that are always kept, by prefix, suffix or pattern. Source: Istio
/// `pkg/bootstrap/config.go` and its bootstrap template.
const KEPT_PREFIXES: &[&str] = &[
    "cluster_manager",
    "listener_manager",
    "server",
    "cluster.xds-grpc",
    "wasm",
    "reporter=",
    "component",
    "istio",
];
const KEPT_SUFFIXES: &[&str] = &[
    "rbac.allowed",
    "rbac.denied",
    "shadow_allowed",
    "shadow_denied",
    "downstream_cx_active",
];
const KEPT_REGEXPS: &[&str] = &[r"vhost\.*\.route\.*"];

/// Renders the bootstrap. The same input gives the same text.
pub fn render(bootstrap: &Bootstrap) -> Value {
    let Bootstrap {
        node,
        xds_socket,
        sds_socket,
        admin_port,
        prometheus_port,
        status_port,
        health_port,
        mark,
        stats,
    } = bootstrap;

    let mut out = json!({
        "node": node_json(node),
        "layered_runtime": { "layers": [
            { "name": "global config", "static_layer": {
                "re2.max_program_size.error_level": "32768",
                "envoy.reloadable_features.http_reject_path_with_fragment": false,
            } },
            { "name": "admin", "admin_layer": {} },
        ] },
        "overload_manager": { "resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": MAX_CONNECTIONS,
            },
        }] },
        "stats_config": { "use_all_default_tags": false, "stats_tags": tags(), "stats_matcher": { "inclusion_list": { "patterns": patterns(stats) } } },
        "admin": { "address": address("127.0.0.1", *admin_port) },
        "dynamic_resources": {
            "lds_config": { "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" },
            "cds_config": { "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" },
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
        },
        "static_resources": {
            "clusters": [
                static_cluster("prometheus_stats", &address("127.0.0.1", *admin_port)),
                static_cluster("agent", &address("127.0.0.1", *status_port)),
                grpc_cluster("sds-grpc", sds_socket),
                grpc_cluster("xds-grpc", xds_socket),
            ],
            "listeners": [
                forward_listener("prometheus", *prometheus_port, "/stats/prometheus", "prometheus_stats"),
                forward_listener("health", *health_port, "/healthz/ready", "agent"),
            ],
        },
    });

    if let Some(mark) = mark {
        out["cluster_manager"] = json!({ "upstream_bind_config": { "socket_options": [{
            "description": "mark that the capture rules leave alone",
            "level": SOL_SOCKET, "name": SO_MARK, "int_value": mark, "state": "STATE_PREBIND",
        }] } });
    }

    out
}

fn tags() -> Vec<Value> {
    TAGS.iter()
        .map(|(name, regex)| json!({ "tag_name": name, "regex": regex }))
        .collect()
}

fn patterns(stats: &StatsInclusion) -> Vec<Value> {
    let StatsInclusion {
        prefixes,
        suffixes,
        regexps,
    } = stats;

    let all = |kept: &[&'static str], wanted: &[String]| -> Vec<String> {
        kept.iter()
            .map(|text| (*text).to_owned())
            .chain(wanted.iter().cloned())
            .collect()
    };

    let prefixes = all(KEPT_PREFIXES, prefixes)
        .into_iter()
        .map(|text| json!({ "prefix": text }));
    let suffixes = all(KEPT_SUFFIXES, suffixes)
        .into_iter()
        .map(|text| json!({ "suffix": text }));
    let regexps = all(KEPT_REGEXPS, regexps)
        .into_iter()
        .map(|text| json!({ "safe_regex": { "regex": text } }));

    prefixes.chain(suffixes).chain(regexps).collect()
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

fn assignment(name: &str, address: &Value) -> Value {
    json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }] })
}

fn static_cluster(name: &str, address: &Value) -> Value {
    json!({ "name": name, "type": "STATIC", "connect_timeout": "0.250s", "lb_policy": "ROUND_ROBIN", "load_assignment": assignment(name, address) })
}

fn grpc_cluster(name: &str, socket: &std::path::Path) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": assignment(name, &json!({ "pipe": { "path": socket } })),
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        } },
        "circuit_breakers": { "thresholds": [
            { "priority": "DEFAULT", "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 },
            { "priority": "HIGH", "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 },
        ] },
    })
}

fn forward_listener(name: &str, port: u16, path: &str, cluster: &str) -> Value {
    json!({
        "name": name,
        "address": address("0.0.0.0", port),
        "ignore_global_conn_limit": true,
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "codec_type": "AUTO",
                "stat_prefix": name,
                "route_config": { "virtual_hosts": [{
                    "name": "backend",
                    "domains": ["*"],
                    "routes": [{ "match": { "prefix": path }, "route": { "cluster": cluster } }],
                }] },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                }],
            },
        }] }],
    })
}

fn node_json(node: &Node) -> Value {
    let mut out = json!({ "id": node.id, "cluster": node.cluster });
    if let Some(metadata) = &node.metadata {
        out["metadata"] = struct_json(metadata);
    }
    if let Some(locality) = node
        .locality
        .as_ref()
        .filter(|locality| !locality.region.is_empty())
    {
        out["locality"] = json!({ "region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone });
    }

    out
}

fn struct_json(value: &Struct) -> Value {
    // Sort the keys, so that the same node gives the same text.
    let sorted: BTreeMap<_, _> = value
        .fields
        .iter()
        .map(|(key, value)| (key.clone(), value_json(value)))
        .collect();
    Value::Object(sorted.into_iter().collect::<Map<_, _>>())
}

fn value_json(value: &ProtoValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::BoolValue(truth)) => json!(truth),
        Some(Kind::StructValue(fields)) => struct_json(fields),
        Some(Kind::ListValue(list)) => list.values.iter().map(value_json).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::workload;
    use crate::node_of;

    fn bootstrap() -> Bootstrap {
        Bootstrap {
            node: node_of(&workload()),
            xds_socket: "/run/w/XDS".into(),
            sds_socket: "/run/w/SDS".into(),
            admin_port: 15000,
            prometheus_port: 15090,
            status_port: 15020,
            health_port: 15021,
            mark: Some(1337),
            stats: StatsInclusion::from_annotations(
                &[(
                    "sidecar.istio.io/statsInclusionPrefixes".to_owned(),
                    "cluster.outbound, http".to_owned(),
                )]
                .into(),
            ),
        }
    }

    #[test]
    fn the_same_workload_gives_the_same_text() {
        assert_eq!(
            render(&bootstrap()).to_string(),
            render(&bootstrap()).to_string()
        );
    }

    #[test]
    fn the_bootstrap_has_node_mark_clusters_and_statistics() {
        let out = render(&bootstrap());
        assert_eq!(
            out["node"]["id"],
            "sidecar~10.44.0.7~sleep-1.default~default.svc.cluster.local"
        );

        assert_eq!(out["node"]["metadata"]["LABELS"]["app"], "sleep");
        let option = &out["cluster_manager"]["upstream_bind_config"]["socket_options"][0];
        assert_eq!(
            (&option["level"], &option["name"], &option["int_value"]),
            (&json!(1), &json!(36), &json!(1337))
        );

        let clusters: Vec<_> = out["static_resources"]["clusters"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|c| c["name"].as_str().unwrap_or(""))
            .collect();

        assert_eq!(
            clusters,
            ["prometheus_stats", "agent", "sds-grpc", "xds-grpc"]
        );

        let kept = out
            .pointer("/stats_config/stats_matcher/inclusion_list/patterns")
            .expect("a list")
            .to_string();

        let wanted = [
            r#"{"prefix":"cluster.outbound"}"#,
            r#"{"suffix":"rbac.denied"}"#,
            r#"{"suffix":"downstream_cx_active"}"#,
            r#"{"safe_regex":{"regex":"vhost\\.*\\.route\\.*"}}"#,
        ];

        for pattern in wanted {
            assert!(kept.contains(pattern), "{pattern} is missing in {kept}");
        }
        let mut unmarked = bootstrap();
        unmarked.mark = None;
        assert!(render(&unmarked).get("cluster_manager").is_none());
    }
}
