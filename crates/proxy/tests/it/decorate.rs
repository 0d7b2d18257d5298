//! Operations that proxies tell each other, as Istio has them configured for traces.

use meltemi_proto::envoy::config::core::v3::TrafficDirection;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use meltemi_proto::google::protobuf::BoolValue;

use crate::config::*;
use crate::peers::{self, Client};

const NAME: &str = "x-envoy-decorator-operation";

/// Shows the head of each request in its body, and tells an operation of its own.
async fn upstream() -> std::net::SocketAddr {
    peers::http_server(|head, _| {
        let length = head.len();
        format!("HTTP/1.1 200 OK\r\n{NAME}: theirs\r\ncontent-length: {length}\r\n\r\n{head}")
            .into_bytes()
    })
    .await
}

fn decorated(prefix: &str, is_told: bool) -> route::Route {
    route::Route {
        decorator: Some(route::Decorator {
            operation: "ours".into(),
            propagate: Some(BoolValue { value: is_told }),
        }),
        ..forward(prefix, "up")
    }
}

/// The operations that the upstream and the client are told.
async fn told(direction: TrafficDirection, is_traced: bool, path: &str, own: &str) -> [String; 2] {
    let routes = vec![
        decorated("/told", true),
        decorated("/untold", false),
        forward("/plain", "up"),
    ];
    let mut manager = manager(inline(table("r", routes)));
    manager.tracing = is_traced.then(hcm::http_connection_manager::Tracing::default);
    let listener = meltemi_proto::envoy::config::listener::v3::Listener {
        traffic_direction: direction as i32,
        ..listener("in", vec![http_chain(&manager)])
    };
    let running = Running::with(
        vec![static_cluster("up", &[upstream().await])],
        vec![listener],
    )
    .await;

    let mut client = Client::connect(running.at("in").await).await;
    let (head, seen) = client
        .ask(&format!("GET {path} HTTP/1.1\nhost: a\n{own}\n"))
        .await;
    [seen, head].map(|head| {
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        let values: Vec<&str> = fields
            .filter(|(name, _)| *name == NAME)
            .map(|(_, value)| value)
            .collect();
        values.join(" and ")
    })
}

#[tokio::test]
async fn the_client_side_tells_the_server_side_the_operation() {
    let out = TrafficDirection::Outbound;
    let own = format!("{NAME}: mine\n");
    assert_eq!(told(out, true, "/told", &own).await, ["ours", ""]);
    assert_eq!(told(out, true, "/untold", &own).await, ["mine", ""]);
    assert_eq!(told(out, true, "/plain", "").await, ["", ""]);
}

#[tokio::test]
async fn the_server_side_takes_the_callers_operation_or_tells_its_own() {
    for direction in [TrafficDirection::Inbound, TrafficDirection::Unspecified] {
        let own = format!("{NAME}: mine\n");
        assert_eq!(told(direction, true, "/told", "").await, ["", "ours"]);
        assert_eq!(told(direction, true, "/told", &own).await, ["", "theirs"]);
        assert_eq!(told(direction, true, "/untold", "").await, ["", "theirs"]);
    }
}

#[tokio::test]
async fn without_traces_operations_pass_as_they_come() {
    let own = format!("{NAME}: mine\n");
    let out = TrafficDirection::Outbound;
    assert_eq!(told(out, false, "/told", &own).await, ["mine", "theirs"]);
}
