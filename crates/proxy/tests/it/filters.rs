//! Filters as the data path runs them, and what it counts.

use std::time::{Duration, Instant};

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3 as proto;
use meltemi_proto::envoy::config::rbac::v3 as rbac;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::common::fault::v3 as fault_common;
use meltemi_proto::envoy::extensions::filters::http::fault::v3 as fault;
use meltemi_proto::envoy::extensions::filters::http::rbac::v3::Rbac;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use meltemi_proto::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use meltemi_proto::google::protobuf::{Struct, Value, value::Kind};
use meltemi_proto::istio::StatsConfig;
use meltemi_proto::pack;
use tokio::sync::mpsc;

use crate::config::*;
use crate::peers;

fn all() -> Option<FractionalPercent> {
    Some(FractionalPercent {
        numerator: 100,
        denominator: DenominatorType::Hundred as i32,
    })
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}

/// A filter that delays every request, or those below a path.
pub fn delay(time: Duration, below: Option<&str>) -> HttpFilter {
    use meltemi_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
    use route::header_matcher::HeaderMatchSpecifier::StringMatch;

    let prefix = |path: &str| route::HeaderMatcher {
        name: ":path".into(),
        header_match_specifier: Some(StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Prefix(path.into())),
            ..Default::default()
        })),
        ..Default::default()
    };

    let config = fault::HttpFault {
        delay: Some(fault_common::FaultDelay {
            percentage: all(),
            fault_delay_secifier: Some(fault_common::fault_delay::FaultDelaySecifier::FixedDelay(
                duration(time),
            )),
        }),
        headers: below.map(prefix).into_iter().collect(),
        ..Default::default()
    };

    http_filter("envoy.filters.http.fault", pack(&config))
}

/// As Istio names the service in a cluster.
fn service(host: &str, name: &str, namespace: &str) -> core::Metadata {
    let fields = [("host", host), ("name", name), ("namespace", namespace)];
    let service = Struct {
        fields: fields
            .map(|(key, value)| (key.to_owned(), text(value)))
            .into(),
    };

    let list = meltemi_proto::google::protobuf::ListValue {
        values: vec![Value {
            kind: Some(Kind::StructValue(service)),
        }],
    };

    let istio = Struct {
        fields: [(
            "services".to_owned(),
            Value {
                kind: Some(Kind::ListValue(list)),
            },
        )]
        .into(),
    };

    core::Metadata {
        filter_metadata: [("istio".to_owned(), istio)].into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn requests_are_counted_with_istios_labels_and_denied_by_policy() {
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    let private = rbac::Policy {
        permissions: vec![rbac::Permission {
            rule: Some(rbac::permission::Rule::Header(route::HeaderMatcher {
                name: "x-secret".into(),
                header_match_specifier: Some(
                    route::header_matcher::HeaderMatchSpecifier::PresentMatch(true),
                ),
                ..Default::default()
            })),
        }],
        principals: vec![rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Any(true)),
        }],
        ..Default::default()
    };

    let deny = Rbac {
        rules: Some(rbac::Rbac {
            action: rbac::rbac::Action::Deny as i32,
            policies: [("ns[a]-policy[private]-rule[0]".to_owned(), private)].into(),
            ..Default::default()
        }),
        ..Default::default()
    };

    manager
        .http_filters
        .insert(0, http_filter("envoy.filters.http.rbac", pack(&deny)));
    manager
        .http_filters
        .insert(1, http_filter("istio.stats", pack(&StatsConfig::default())));
    let mut up = static_cluster("up", &[peers::echo("up").await]);
    up.metadata = Some(service(
        "reviews.default.svc.cluster.local",
        "reviews",
        "default",
    ));

    let mut inbound = listener("in", vec![http_chain(&manager)]);
    inbound.traffic_direction = core::TrafficDirection::Inbound as i32;
    let running = Running::with(vec![up], vec![inbound]).await;
    let at = running.at("in").await;
    for _ in 0..3 {
        peers::get(at, "/").await;
    }
    let mut client = peers::Client::connect(at).await;
    let (head, body) = client.ask("GET / HTTP/1.1\nhost: a\nx-secret: 1\n\n").await;
    assert!(
        head.starts_with("HTTP/1.1 403 ") && body == "RBAC: access denied",
        "{head}{body}"
    );

    running
        .log
        .line_with("403 - rbac_access_denied_matched_policy[ns[a]-policy[private]-rule[0]] ")
        .await;

    let metrics = running.handle.metrics();
    let wanted = |code: &str, count: &str| {
        metrics.lines().any(|line| {
            line.starts_with("istio_requests_total{reporter=\"destination\"")
                && line.contains(&format!("response_code=\"{code}\""))
                && line.contains("request_protocol=\"http\"")
                && line.ends_with(&format!("}} {count}"))
        })
    };

    assert!(wanted("200", "3") && wanted("403", "1"), "{metrics}");
    assert!(
        metrics
            .contains("destination_service=\"reviews.default.svc.cluster.local\",destination_service_name=\"reviews\""),
        "{metrics}"
    );

    assert!(
        metrics.contains("connection_security_policy=\"none\""),
        "{metrics}"
    );
}

#[tokio::test]
async fn faults_delay_and_abort() {
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    let config = fault::HttpFault {
        delay: Some(fault_common::FaultDelay {
            percentage: all(),
            fault_delay_secifier: Some(fault_common::fault_delay::FaultDelaySecifier::FixedDelay(
                duration(Duration::from_millis(50)),
            )),
        }),
        abort: Some(fault::FaultAbort {
            percentage: all(),
            error_type: Some(fault::fault_abort::ErrorType::HttpStatus(418)),
            ..Default::default()
        }),
        ..Default::default()
    };

    manager
        .http_filters
        .insert(0, http_filter("envoy.filters.http.fault", pack(&config)));
    let running = Running::with(
        vec![static_cluster("up", &[])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let start = Instant::now();
    let (head, body) = peers::get(running.at("in").await, "/").await;
    assert!(
        start.elapsed() >= Duration::from_millis(50),
        "the delay comes first"
    );

    assert!(
        head.starts_with("HTTP/1.1 418 ") && body == "fault filter abort",
        "{head}{body}"
    );

    running.log.line_with("418 DI,FI fault_filter_abort").await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_delay() {
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    manager
        .http_filters
        .insert(0, delay(Duration::from_secs(3600), None));
    let up = static_cluster("up", &[peers::echo("up").await]);
    let running = Running::with(vec![up], vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;
    let mut client = peers::Client::connect(at).await;

    client.send("GET /left HTTP/1.1\r\nhost: a\r\n\r\n").await;
    drop(client);
    running
        .log
        .line_with("0 DI,DC downstream_remote_disconnect /left up ")
        .await;
}

#[tokio::test]
async fn a_mirror_gets_the_clients_protocol_and_no_body_that_is_too_long() {
    use meltemi_proto::envoy::extensions::upstreams::http::v3 as upstreams;
    use upstreams::http_protocol_options::{UpstreamProtocolOptions, UseDownstreamHttpConfig};

    let (sender, mut copies) = mpsc::unbounded_channel();
    let shadow = peers::server(move |stream, _| {
        let sender = sender.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let path = request.uri().path().to_owned();
                    let mut body = request.into_body();
                    let mut all = Vec::new();
                    while let Some(Ok(piece)) = body.data().await {
                        let _ = body.flow_control().release_capacity(piece.len());
                        all.extend_from_slice(&piece);
                    }
                    let _ = respond.send_response(http::Response::new(()), true);
                    let _ = sender.send((path, all.len()));
                });
            }
        }
    })
    .await;

    let mirrored = tune(forward("/", "up"), |action| {
        action.request_mirror_policies = vec![route::route_action::RequestMirrorPolicy {
            cluster: "shadow".into(),
            runtime_fraction: Some(core::RuntimeFractionalPercent {
                default_value: all(),
                ..Default::default()
            }),
            ..Default::default()
        }];
    });

    let mut shadow = static_cluster("shadow", &[shadow]);
    let options = upstreams::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            UseDownstreamHttpConfig::default(),
        )),
        ..Default::default()
    };

    shadow.typed_extension_protocol_options.insert(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into(),
        pack(&options),
    );

    let manager = manager(inline(table("r", vec![mirrored])));
    let clusters = vec![static_cluster("up", &[peers::echo("up").await]), shadow];
    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let stream = tokio::net::TcpStream::connect(running.at("in").await)
        .await
        .expect("connects");
    let (send, connection) = h2::client::handshake(stream).await.expect("handshake");
    let connection = tokio::spawn(connection);
    for (path, size) in [("/long", 1024 * 1024 + 1), ("/short", 1024 * 1024)] {
        let mut send = send.clone().ready().await.expect("ready");
        let request = http::Request::post(format!("http://a{path}"))
            .body(())
            .expect("good");
        let (response, mut body) = send.send_request(request, false).expect("sent");
        body.send_data(vec![b'x'; size].into(), true).expect("sent");
        assert_eq!(response.await.expect("a response").status(), 200);
    }

    assert_eq!(
        copies.recv().await.expect("a copy"),
        ("/short".to_owned(), 1024 * 1024)
    );

    let metrics = running.handle.metrics();
    assert!(
        metrics.contains("meltemi_unmirrored_requests_total{reason=\"body_too_long\"} 1\n"),
        "{metrics}"
    );

    connection.abort();
}

#[tokio::test]
async fn a_mirror_gets_a_copy_and_nobody_waits_for_it() {
    let (sender, mut copies) = mpsc::unbounded_channel();
    let shadow = peers::http_server(move |head, body| {
        let _ = sender.send(format!("{head}{}", String::from_utf8_lossy(body)));
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec()
    })
    .await;

    let to_shadow = |action: &mut route::RouteAction| {
        action.request_mirror_policies = vec![route::route_action::RequestMirrorPolicy {
            cluster: "shadow".into(),
            runtime_fraction: Some(core::RuntimeFractionalPercent {
                default_value: all(),
                ..Default::default()
            }),
            ..Default::default()
        }];
    };
    let mirrored = tune(forward("/", "up"), to_shadow);
    let rewritten = tune(forward("/old", "up"), |action| {
        to_shadow(action);
        action.prefix_rewrite = "/new".into();
        action.host_rewrite_specifier =
            Some(route::route_action::HostRewriteSpecifier::HostRewriteLiteral("new.test".into()));
    });

    let manager = manager(inline(table("r", vec![rewritten, mirrored])));
    let running = Running::with(
        vec![
            static_cluster("up", &[peers::echo("up").await]),
            static_cluster("shadow", &[shadow]),
        ],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;

    let mut client = peers::Client::connect(running.at("in").await).await;
    let (head, _) = client
        .ask("POST /a HTTP/1.1\nhost: svc:80\ncontent-length: 4\n\nbody")
        .await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let copy = copies.recv().await.expect("a copy");
    assert!(
        copy.contains("host: svc-shadow:80\r\n") && copy.ends_with("body"),
        "{copy}"
    );

    // The copy is of the request that is sent.
    let (head, _) = client.ask("GET /old/a HTTP/1.1\nhost: svc:80\n\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let copy = copies.recv().await.expect("a copy");
    assert!(
        copy.starts_with("GET /new/a ") && copy.contains("host: new.test-shadow\r\n"),
        "{copy}"
    );
}

/// A connection that nobody redirected has no original destination but the listener itself, which
/// would call itself until its descriptors end. Envoy answers so as well.
#[tokio::test]
async fn a_client_that_dials_the_listener_itself_has_no_original_destination() {
    use meltemi_proto::envoy::config::cluster::v3 as cluster;

    let mut passthrough = static_cluster("PassthroughCluster", &[]);
    passthrough.load_assignment = None;
    passthrough.cluster_discovery_type = Some(cluster::cluster::ClusterDiscoveryType::Type(
        cluster::cluster::DiscoveryType::OriginalDst as i32,
    ));
    passthrough.lb_policy = cluster::cluster::LbPolicy::ClusterProvided as i32;

    let restoring = |mut listener: proto::Listener| {
        listener.listener_filters = vec![proto::ListenerFilter {
            name: "envoy.filters.listener.original_dst".into(),
            config_type: Some(proto::listener_filter::ConfigType::TypedConfig(pack(
                &meltemi_proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst::default(),
            ))),
            ..Default::default()
        }];
        listener
    };
    let away = || table("r", vec![forward("/", "PassthroughCluster")]);
    let running = Running::with(
        vec![passthrough],
        vec![
            listener("http", vec![http_chain(&manager(inline(away())))]),
            restoring(listener(
                "restored",
                vec![http_chain(&manager(inline(away())))],
            )),
            restoring(listener("tcp", vec![tcp_chain("PassthroughCluster")])),
        ],
    )
    .await;

    for name in ["http", "restored"] {
        let (head, body) = peers::get(running.at(name).await, "/").await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{name}: {head}");
        assert_eq!(body, "no healthy upstream", "{name}");
    }
    let mut client = peers::Client::connect(running.at("tcp").await).await;
    assert!(client.closed().await, "tcp");
}
