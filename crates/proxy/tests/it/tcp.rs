//! Bytes.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::*;
use crate::peers::{self, Client};

async fn shout() -> std::net::SocketAddr {
    peers::server(|mut stream, _| async move {
        let mut all = String::new();
        if stream.read_to_string(&mut all).await.is_ok() {
            let _ = stream.write_all(all.to_uppercase().as_bytes()).await;
        }
    })
    .await
}

#[tokio::test]
async fn bytes_pass_and_each_direction_ends_by_itself() {
    let running = Running::with(
        vec![static_cluster("up", &[shout().await])],
        vec![listener("in", vec![tcp_chain("up")])],
    )
    .await;

    let mut client = Client::connect(running.at("in").await).await;
    client.send("quiet").await;
    client.stream.shutdown().await.expect("half-closed");
    let mut answer = String::new();
    client
        .stream
        .read_to_string(&mut answer)
        .await
        .expect("to the end");

    assert_eq!(answer, "QUIET");
    running.log.line_with("0 - - - up 5").await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_a_closed_connection_and_a_flag() {
    let running = Running::with(
        vec![static_cluster("up", &[peers::nobody().await])],
        vec![listener("in", vec![tcp_chain("up")])],
    )
    .await;

    let mut client = Client::connect(running.at("in").await).await;
    assert!(client.closed().await);
    running
        .log
        .line_with("0 UF,URX upstream_connection_failure")
        .await;
}

#[tokio::test]
async fn sniffing_tells_http_from_bytes() {
    use meltemi_proto::envoy::config::listener::v3 as proto;
    use meltemi_proto::envoy::extensions::filters::listener as filters;

    let manager = manager(inline(table("r", vec![forward("/", "http")])));
    let mut http = http_chain(&manager);
    http.filter_chain_match = Some(proto::FilterChainMatch {
        application_protocols: vec!["http/1.1".into(), "h2c".into()],
        ..Default::default()
    });

    let mut sniffing = listener("in", vec![http, tcp_chain("up")]);
    let filter = |name: &str, config| proto::ListenerFilter {
        name: name.into(),
        config_type: Some(proto::listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };

    sniffing.listener_filters = vec![
        filter(
            "envoy.filters.listener.tls_inspector",
            meltemi_proto::pack(&filters::tls_inspector::v3::TlsInspector::default()),
        ),
        filter(
            "envoy.filters.listener.http_inspector",
            meltemi_proto::pack(&filters::http_inspector::v3::HttpInspector::default()),
        ),
    ];

    let running = Running::with(
        vec![
            static_cluster("up", &[shout().await]),
            static_cluster("http", &[peers::echo("web").await]),
        ],
        vec![sniffing],
    )
    .await;

    let at = running.at("in").await;
    let (head, _) = peers::get(at, "/").await;
    assert!(head.contains("x-name: web"), "{head}");
    let mut client = Client::connect(at).await;
    client.send("not http\n").await;
    client.stream.shutdown().await.expect("half-closed");
    let mut answer = String::new();
    client
        .stream
        .read_to_string(&mut answer)
        .await
        .expect("to the end");

    assert_eq!(answer, "NOT HTTP\n");
}

#[tokio::test]
async fn network_authorization_refuses_and_a_later_change_ends_what_is_open() {
    use meltemi_proto::envoy::config::rbac::v3 as rbac;
    use meltemi_proto::envoy::extensions::filters::network::rbac::v3::Rbac;

    let upstream = peers::server(|mut stream, _| async move {
        let mut byte = [0; 16];
        while let Ok(n) = stream.read(&mut byte).await {
            if n == 0 || stream.write_all(&byte[..n]).await.is_err() {
                return;
            }
        }
    })
    .await;

    let deny = |deny: bool| {
        let mut chain = tcp_chain("up");
        let any = rbac::Policy {
            permissions: vec![rbac::Permission {
                rule: Some(rbac::permission::Rule::Any(deny)),
            }],
            principals: vec![rbac::Principal {
                identifier: Some(rbac::principal::Identifier::Any(true)),
            }],
            ..Default::default()
        };

        if deny {
            let rules = Rbac {
                stat_prefix: "tcp.".into(),
                rules: Some(rbac::Rbac {
                    action: rbac::rbac::Action::Deny as i32,
                    policies: [("ns[a]-policy[no]-rule[0]".to_owned(), any)].into(),
                    ..Default::default()
                }),
                ..Default::default()
            };

            chain.filters.insert(
                0,
                network_filter("envoy.filters.network.rbac", meltemi_proto::pack(&rules)),
            );
        }

        listener("in", vec![chain])
    };

    let running = Running::with(vec![static_cluster("up", &[upstream])], vec![deny(false)]).await;
    let at = running.at("in").await;
    let mut open = Client::connect(at).await;

    open.send("ping").await;
    let mut echo = [0; 4];
    open.stream.read_exact(&mut echo).await.expect("served");
    running.apply(vec![], vec![deny(true)]).await;
    let ended = tokio::time::timeout(Duration::from_secs(10), open.closed()).await;
    assert!(ended.expect("the connection that is forbidden now must end"));
    running.log.line_with("0 LR connection_drained").await;
    let mut late = Client::connect(at).await;
    assert!(late.closed().await);
}
