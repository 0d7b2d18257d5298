//! Laws: whatever bytes a server sends, compiling them is a value or a rejection, never a panic.
//! Noise, and real messages with some of their bytes changed, doubled or missing, which get deeper.

use meltemi_filters::ConnInfo;
use meltemi_proto::envoy::config::bootstrap::v3 as bootstrap;
use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::endpoint::v3 as endpoint;
use meltemi_proto::envoy::config::listener::v3 as listener;
use meltemi_proto::envoy::config::rbac::v3 as rbac;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::access_loggers::file::v3 as file;
use meltemi_proto::envoy::extensions::filters::common::fault::v3 as fault_common;
use meltemi_proto::envoy::extensions::filters::http as filters;
use meltemi_proto::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use meltemi_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use meltemi_proto::envoy::r#type::matcher::v3 as matcher;
use meltemi_proto::envoy::r#type::v3::FractionalPercent;
use meltemi_proto::google::protobuf::{Duration, UInt32Value};
use meltemi_proto::istio::{IstioHeaders, PeerMetadataConfig, PeerMethod};
use meltemi_proto::{Any, pack};
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;

use crate::bootstrap::Bootstrap;
use crate::compiler::*;
use crate::tests::{
    downstream_tls, eds, http_filter, lb_endpoint, manager, network, router, simple, tcp_proxy,
};

/// One thing that happens to bytes on their way.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index, usize),
    Double(Index, usize),
}

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, to)| Change::Set(at, to)),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, more)| Change::Insert(at, more)),
        1 => (any::<Index>(), 1_usize..20).prop_map(|(at, n)| Change::Cut(at, n)),
        1 => (any::<Index>(), 1_usize..20).prop_map(|(at, n)| Change::Double(at, n)),
    ];
    prop::collection::vec(change, 0..most)
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let at = |index: &Index| {
            index
                .index(bytes.len() + 1)
                .min(bytes.len().saturating_sub(1))
        };

        match change {
            _ if bytes.is_empty() => {}
            Change::Set(index, to) => {
                let at = at(index);
                bytes[at] = *to;
            }
            Change::Insert(index, more) => {
                let at = at(index);
                bytes.splice(at..at, more.iter().copied());
            }
            Change::Cut(index, n) => {
                let at = at(index);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Change::Double(index, n) => {
                let at = at(index);
                let piece = bytes[at..(at + n).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }

    bytes
}

fn text(value: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Prefix(value.into())),
        ..Default::default()
    }
}

fn header(name: &str) -> route::HeaderMatcher {
    route::HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            text("x"),
        )),
        ..Default::default()
    }
}

fn rules() -> rbac::Rbac {
    use rbac::permission::Rule;
    use rbac::principal::Identifier;

    let range = core::CidrRange {
        address_prefix: "10.0.0.0".into(),
        prefix_len: Some(UInt32Value { value: 8 }),
    };

    let permission = |rule| rbac::Permission { rule: Some(rule) };
    let principal = |identifier| rbac::Principal {
        identifier: Some(identifier),
    };
    let all = vec![
        permission(Rule::Header(header(":path"))),
        permission(Rule::DestinationPort(80)),
        permission(Rule::DestinationIp(range.clone())),
        permission(Rule::NotRule(Box::new(permission(Rule::Any(true))))),
        permission(Rule::RequestedServerName(text("a"))),
    ];

    let identities = vec![
        principal(Identifier::DirectRemoteIp(range)),
        principal(Identifier::Header(header("x-user"))),
        principal(Identifier::Authenticated(rbac::principal::Authenticated {
            principal_name: Some(text("spiffe://")),
        })),
    ];

    let policy = rbac::Policy {
        permissions: vec![permission(Rule::AndRules(rbac::permission::Set {
            rules: all,
        }))],
        principals: vec![principal(Identifier::OrIds(rbac::principal::Set {
            ids: identities,
        }))],
        ..Default::default()
    };

    rbac::Rbac {
        policies: [("p".to_owned(), policy)].into(),
        ..Default::default()
    }
}

fn table() -> route::RouteConfiguration {
    use route::route::Action;
    use route::route_action::ClusterSpecifier;

    let share = |name: &str, weight| route::weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    };

    let forward = route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
            clusters: vec![share("a", 30), share("b", 70)],
            ..Default::default()
        })),
        timeout: Some(Duration {
            seconds: 1,
            nanos: 0,
        }),
        retry_policy: Some(route::RetryPolicy {
            retry_on: "5xx,connect-failure".into(),
            ..Default::default()
        }),
        regex_rewrite: Some(matcher::RegexMatchAndSubstitute {
            pattern: Some(matcher::RegexMatcher {
                regex: "^/(.*)".into(),
                ..Default::default()
            }),
            substitution: "/\\1".into(),
        }),
        hash_policy: vec![route::route_action::HashPolicy {
            terminal: true,
            policy_specifier: Some(route::route_action::hash_policy::PolicySpecifier::Header(
                route::route_action::hash_policy::Header {
                    header_name: "x".into(),
                    ..Default::default()
                },
            )),
        }],
        ..Default::default()
    };

    let on = |path, action| route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(path),
            headers: vec![header("x")],
            ..Default::default()
        }),
        action: Some(action),
        request_headers_to_add: vec![core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: "x".into(),
                value: "%REQ(:PATH)%".into(),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    };

    use route::route_match::PathSpecifier;

    let regex = matcher::RegexMatcher {
        regex: "/a/[0-9]+".into(),
        ..Default::default()
    };

    route::RouteConfiguration {
        name: "r".into(),
        virtual_hosts: vec![route::VirtualHost {
            name: "v".into(),
            domains: vec!["*.example".into(), "a:80".into()],
            routes: vec![
                on(PathSpecifier::SafeRegex(regex), Action::Route(forward)),
                on(
                    PathSpecifier::Prefix("/b".into()),
                    Action::Redirect(Default::default()),
                ),
                on(
                    PathSpecifier::Path("/c".into()),
                    Action::DirectResponse(route::DirectResponseAction {
                        status: 404,
                        ..Default::default()
                    }),
                ),
            ],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn rich_cluster() -> cluster::Cluster {
    use cluster::circuit_breakers::Thresholds;

    cluster::Cluster {
        connect_timeout: Some(Duration {
            seconds: 1,
            nanos: 5,
        }),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![Thresholds {
                max_requests: Some(UInt32Value { value: 5 }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        outlier_detection: Some(cluster::OutlierDetection {
            consecutive_5xx: Some(UInt32Value { value: 5 }),
            interval: Some(Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..Default::default()
        }),
        lb_subset_config: Some(cluster::cluster::LbSubsetConfig {
            subset_selectors: vec![cluster::cluster::lb_subset_config::LbSubsetSelector {
                keys: vec!["version".into()],
                ..Default::default()
            }],
            ..Default::default()
        }),
        typed_extension_protocol_options: [(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pack(&HttpProtocolOptions::default()),
        )]
        .into(),
        transport_socket: Some(core::TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(
                &tls::UpstreamTlsContext {
                    sni: "a.example".into(),
                    ..Default::default()
                },
            ))),
        }),
        ..eds("c")
    }
}

/// HTTP filters with settings of some depth.
fn http_filters() -> Vec<(&'static str, Any)> {
    let headers = || {
        vec![PeerMethod {
            istio_headers: Some(IstioHeaders::default()),
        }]
    };

    let percentage = Some(FractionalPercent {
        numerator: 5,
        ..Default::default()
    });

    vec![
        (
            "envoy.filters.http.rbac",
            pack(&filters::rbac::v3::Rbac {
                rules: Some(rules()),
                ..Default::default()
            }),
        ),
        (
            "envoy.filters.http.fault",
            pack(&filters::fault::v3::HttpFault {
                delay: Some(fault_common::FaultDelay {
                    percentage,
                    fault_delay_secifier: Some(
                        fault_common::fault_delay::FaultDelaySecifier::FixedDelay(Duration {
                            seconds: 1,
                            nanos: 0,
                        }),
                    ),
                }),
                headers: vec![header("x")],
                ..Default::default()
            }),
        ),
        (
            "envoy.filters.http.header_mutation",
            pack(&filters::header_mutation::v3::HeaderMutation::default()),
        ),
        (
            "envoy.filters.http.local_ratelimit",
            pack(&filters::local_ratelimit::v3::LocalRateLimit {
                stat_prefix: "x".into(),
                ..Default::default()
            }),
        ),
        (
            "istio.peer_metadata",
            pack(&PeerMetadataConfig {
                upstream_discovery: headers(),
                ..Default::default()
            }),
        ),
    ]
}

/// All of a type's messages, with these changes inside the packed parts.
fn listeners(inside: &[Change]) -> Vec<listener::Listener> {
    let inner = |any: Any| Any {
        value: changed(any.value, inside),
        ..any
    };

    let mut all: Vec<listener::Listener> = http_filters()
        .into_iter()
        .map(|(name, any)| {
            simple(
                "l",
                "0.0.0.0",
                80,
                vec![manager(vec![http_filter(name, inner(any)), router()])],
            )
        })
        .collect();

    let limit = ConnectionLimit {
        stat_prefix: "x".into(),
        ..Default::default()
    };

    let network_rbac = meltemi_proto::envoy::extensions::filters::network::rbac::v3::Rbac {
        stat_prefix: "x".into(),
        rules: Some(rules()),
        ..Default::default()
    };

    let mut tcp = simple(
        "l",
        "10.0.0.1",
        80,
        vec![
            network("envoy.filters.network.rbac", inner(pack(&network_rbac))),
            network(
                "envoy.filters.network.connection_limit",
                inner(pack(&limit)),
            ),
            tcp_proxy("c"),
        ],
    );

    tcp.filter_chains[0].transport_socket = Some(downstream_tls(false, None));
    tcp.filter_chains[0].filter_chain_match = Some(listener::FilterChainMatch {
        server_names: vec!["a.example".into(), "*.b.example".into()],
        destination_port: Some(UInt32Value { value: 80 }),
        transport_protocol: "tls".into(),
        ..Default::default()
    });

    let log = file::FileAccessLog {
        path: "/dev/stdout".into(),
        ..Default::default()
    };

    tcp.access_log = vec![meltemi_proto::envoy::config::accesslog::v3::AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(
            meltemi_proto::envoy::config::accesslog::v3::access_log::ConfigType::TypedConfig(
                inner(pack(&log)),
            ),
        ),
        ..Default::default()
    }];

    all.push(tcp);

    all
}

fn endpoints() -> endpoint::ClusterLoadAssignment {
    endpoint::ClusterLoadAssignment {
        cluster_name: "c".into(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![lb_endpoint("10.0.0.1", 1, core::HealthStatus::Healthy)],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Compiles bytes as each of the types that a server may send; what compiles is used, too.
fn compile_all(any: &dyn Fn(&str) -> Any) {
    use meltemi_proto::type_url::{CLUSTER, ENDPOINT, LISTENER, ROUTE};

    let compiler = Compiler::default();
    if let Ok((compiled, _)) = compiler.listener_from(&any(LISTENER)) {
        let address = "10.0.0.1:80".parse().expect("an address");
        compiled.chains.select(&ConnInfo::plain(address, address));
    }

    let _ = compiler.cluster_from(&any(CLUSTER));
    let _ = compiler.route_from(&any(ROUTE));

    if let Ok((set, _)) = compiler.endpoints_from(&any(ENDPOINT)) {
        set.balancer(&meltemi_lb::Config::default(), false, |_| {
            meltemi_lb::Health::Healthy
        });
    }
}

#[test]
fn the_samples_are_good() {
    for listener in listeners(&[]) {
        compile_listener(&listener).expect("a listener");
    }
    compile_cluster(&rich_cluster()).expect("a cluster");
    compile_route(&table()).expect("a route table");
    compile_endpoints(&endpoints()).expect("endpoints");
}

proptest! {
    #[test]
    fn no_noise_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        compile_all(&|type_url| Any { type_url: type_url.to_owned(), value: bytes.clone() });
        if let Ok(message) = bootstrap::Bootstrap::decode(bytes.as_slice()) {
            let _ = Bootstrap::compile(&message);
        }
    }

    #[test]
    fn no_changed_message_is_a_panic(outside in changes(6), inside in changes(6)) {
        let mut all = vec![rich_cluster().encode_to_vec(), table().encode_to_vec(), endpoints().encode_to_vec()];
        all.extend(listeners(&inside).iter().map(Message::encode_to_vec));
        for bytes in all {
            let bytes = changed(bytes, &outside);
            compile_all(&|type_url| Any { type_url: type_url.to_owned(), value: bytes.clone() });
        }
        // The parts alone, so that what is around them stays whole.
        for listener in listeners(&inside) {
            let _ = compile_listener(&listener);
        }
    }
}
