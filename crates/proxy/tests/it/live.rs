//! Configuration that changes under live connections.

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::google::protobuf::BoolValue;

use crate::config::*;
use crate::peers::{self, Client};

#[tokio::test]
async fn the_next_request_on_a_connection_runs_under_the_newest_routes() {
    let (one, two) = (peers::echo("one").await, peers::echo("two").await);
    let clusters = vec![static_cluster("one", &[one]), static_cluster("two", &[two])];
    let to = |cluster: &str| {
        listener(
            "in",
            vec![http_chain(&manager(inline(table(
                "r",
                vec![forward("/", cluster)],
            ))))],
        )
    };

    let running = Running::with(clusters, vec![to("one")]).await;
    let mut client = Client::connect(running.at("in").await).await;
    let ask = "GET / HTTP/1.1\nhost: a\n\n";

    assert!(client.ask(ask).await.0.contains("x-name: one"));
    running.apply(vec![], vec![to("two")]).await;
    let head = loop {
        let (head, _) = client.ask(ask).await;
        if !head.contains("x-name: one") {
            break head;
        }
    };

    assert!(
        head.contains("x-name: two") && !head.contains("connection: close"),
        "{head}"
    );
}

#[tokio::test]
async fn a_listener_that_goes_drains_its_connections() {
    let (running, at) = simple(peers::echo("up").await).await;
    let mut idle = Client::connect(at).await;
    idle.ask("GET / HTTP/1.1\nhost: a\n\n").await;
    running
        .handle
        .apply(meltemi_proto::type_url::LISTENER, vec![], vec!["in".into()])
        .await
        .expect("removed");

    assert!(idle.closed().await, "an idle connection ends at once");

    while tokio::net::TcpStream::connect(at).await.is_ok() {
        // The socket closes a turn of the worker later than the connection.
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_resource_that_does_not_compile_leaves_the_old_one_serving() {
    let (running, at) = simple(peers::echo("up").await).await;
    let mut broken = listener("in", vec![tcp_chain("up")]);
    broken.filter_chains[0].filters.clear();
    let refused = running
        .handle
        .apply(
            meltemi_proto::type_url::LISTENER,
            vec![("in".into(), meltemi_proto::pack(&broken))],
            vec![],
        )
        .await
        .expect_err("a chain without filters");

    assert!(refused.starts_with("in: "), "{refused}");
    assert!(peers::get(at, "/").await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_admin_interface_tells_what_serves() {
    let options = meltemi_proxy::ProxyOptions {
        admin: Some(([127, 0, 0, 1], 0).into()),
        ..Default::default()
    };

    let running = Running::start(options);
    let upstream = peers::echo("up").await;
    let manager = manager(inline(table("r", vec![forward("/", "up")])));

    running
        .apply(
            vec![static_cluster("up", &[upstream])],
            vec![listener("in", vec![http_chain(&manager)])],
        )
        .await;

    let at = running.at("in").await;
    peers::get(at, "/").await;
    running.handle.ready().await;
    let admin = running.handle.admin_addresses()[0];
    let page = async |path: &str| {
        let mut client = Client::connect(admin).await;
        client
            .ask(&format!("GET {path} HTTP/1.1\nhost: localhost\n\n"))
            .await
    };

    assert_eq!(page("/ready").await.1, "LIVE\n");
    assert!(
        page("/clusters")
            .await
            .1
            .contains(&format!("up::{upstream}::rq_total::1\n"))
    );

    assert!(page("/listeners").await.1.contains(&format!("in::{at}\n")));
    assert!(
        page("/stats")
            .await
            .1
            .contains("cluster.up.upstream_rq_total: 1\n")
    );

    assert!(
        page("/stats/prometheus")
            .await
            .1
            .contains("envoy_server_live 1\n")
    );

    let dump = page("/config_dump").await.1;
    assert!(
        dump.contains("\"name\": \"up\"") && dump.contains("ClustersConfigDump"),
        "{dump}"
    );

    assert!(
        dump.contains("\"stat_prefix\": \"test\""),
        "nested messages are shown: {dump}"
    );

    let (head, _) = page("/quitquitquit").await;
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    let mut foreign = Client::connect(admin).await;
    assert!(
        foreign
            .ask("GET /certs HTTP/1.1\nhost: evil.example\n\n")
            .await
            .0
            .starts_with("HTTP/1.1 403 ")
    );
}

#[derive(Default)]
struct Shown(std::sync::Mutex<String>);

impl meltemi_proxy::Levels for Shown {
    fn show(&self) -> String {
        self.0.lock().expect("nobody panics").clone()
    }
    fn set(&self, filter: &str) -> Result<(), String> {
        if filter.contains("loud") {
            return Err("no such level: loud".to_owned());
        }
        *self.0.lock().expect("nobody panics") = filter.to_owned();
        Ok(())
    }
}

#[tokio::test]
async fn levels_of_the_log_can_be_changed() {
    let running = Running::start(meltemi_proxy::ProxyOptions {
        admin: Some(([127, 0, 0, 1], 0).into()),
        levels: Some(std::sync::Arc::new(Shown::default())),
        ..Default::default()
    });

    let admin = running.handle.admin_addresses()[0];
    let ask = async |line: &str| {
        Client::connect(admin)
            .await
            .ask(&format!("{line} HTTP/1.1\nhost: localhost\n\n"))
            .await
    };

    assert!(
        ask("GET /logging?level=debug")
            .await
            .0
            .starts_with("HTTP/1.1 405 ")
    );

    assert_eq!(
        ask("POST /logging?level=info").await.1,
        "active loggers: info\n"
    );

    let both = "active loggers: info,h2=warn,meltemi_proxy::router=debug\n";
    assert_eq!(
        ask("POST /logging?paths=h2:warn,meltemi_proxy::router:debug")
            .await
            .1,
        both
    );

    let off = "active loggers: info,meltemi_proxy::router=debug,h2=off\n";
    assert_eq!(ask("POST /logging?h2=off").await.1, off);
    let (head, body) = ask("POST /logging?level=loud").await;
    assert!(
        head.starts_with("HTTP/1.1 400 ") && body == "no such level: loud\n",
        "{head}{body}"
    );

    assert_eq!(ask("GET /logging").await.1, off);
}

async fn admin_page(running: &Running, line: &str) -> (String, String) {
    let mut client = Client::connect(running.handle.admin_addresses()[0]).await;
    client
        .ask(&format!("{line} HTTP/1.1\nhost: localhost\n\n"))
        .await
}

/// An inbound and an outbound listener, and one that only others lead to.
async fn three_listeners() -> Running {
    let options = meltemi_proxy::ProxyOptions {
        admin: Some(([127, 0, 0, 1], 0).into()),
        ..Default::default()
    };

    let running = Running::start(options);
    let to = |name: &str, direction: core::TrafficDirection| {
        let mut one = listener(
            name,
            vec![http_chain(&manager(inline(table(
                "r",
                vec![forward("/", "up")],
            ))))],
        );
        one.traffic_direction = direction as i32;
        one
    };

    let mut unbound = to("0.0.0.0_9080", core::TrafficDirection::Outbound);
    unbound.address = Some(address(([0, 0, 0, 0], 9080).into()));
    unbound.bind_to_port = Some(BoolValue { value: false });
    let listeners = vec![
        to("in", core::TrafficDirection::Inbound),
        to("out", core::TrafficDirection::Outbound),
        unbound,
    ];

    running
        .apply(
            vec![static_cluster("up", &[peers::echo("up").await])],
            listeners,
        )
        .await;

    running
}

#[tokio::test]
async fn every_active_listener_is_listed() {
    let running = three_listeners().await;
    let (inbound, outbound) = (running.at("in").await, running.at("out").await);
    let (_, text) = admin_page(&running, "GET /listeners").await;

    assert_eq!(
        text,
        format!("0.0.0.0_9080::0.0.0.0:9080\nin::{inbound}\nout::{outbound}\n")
    );

    let (_, text) = admin_page(&running, "GET /listeners?format=json").await;
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let first = serde_json::json!({
        "name": "0.0.0.0_9080",
        "local_address": { "socket_address": { "address": "0.0.0.0", "port_value": 9080 } },
    });

    assert_eq!(
        (
            all["listener_statuses"].as_array().map(Vec::len),
            &all["listener_statuses"][0]
        ),
        (Some(3), &first)
    );
}

async fn refuses(at: std::net::SocketAddr) {
    while tokio::net::TcpStream::connect(at).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn inbound_listeners_drain_alone() {
    let running = three_listeners().await;
    let (inbound, outbound) = (running.at("in").await, running.at("out").await);
    let (mut one, mut other) = (
        Client::connect(inbound).await,
        Client::connect(outbound).await,
    );

    let ask = "GET / HTTP/1.1\nhost: a\n\n";
    assert!(
        one.ask(ask).await.0.starts_with("HTTP/1.1 200 ")
            && other.ask(ask).await.0.starts_with("HTTP/1.1 200 ")
    );

    assert!(
        admin_page(&running, "POST /drain_listeners?inboundonly")
            .await
            .0
            .starts_with("HTTP/1.1 200 ")
    );

    assert!(one.closed().await, "an idle inbound connection ends");
    refuses(inbound).await;
    let (head, _) = other.ask(ask).await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && !head.contains("connection: close"),
        "{head}"
    );

    assert!(
        peers::get(outbound, "/")
            .await
            .0
            .starts_with("HTTP/1.1 200 "),
        "outbound goes on"
    );

    // The rest follows when it is told to.
    admin_page(&running, "POST /drain_listeners").await;
    assert!(other.closed().await);
    refuses(outbound).await;
}

#[tokio::test]
async fn a_graceful_drain_closes_listeners_after_its_time() {
    let running = three_listeners().await;
    let (inbound, outbound) = (running.at("in").await, running.at("out").await);
    let mut idle = Client::connect(inbound).await;

    idle.ask("GET / HTTP/1.1\nhost: a\n\n").await;
    assert!(
        admin_page(&running, "POST /drain_listeners?skip_exit")
            .await
            .0
            .starts_with("HTTP/1.1 400 ")
    );

    admin_page(&running, "POST /drain_listeners?graceful&skip_exit").await;
    assert!(idle.closed().await);
    assert!(
        running.handle.addresses().await.len() == 2,
        "nothing closes by itself"
    );

    admin_page(&running, "POST /drain_listeners?graceful&inboundonly").await;
    refuses(inbound).await;
    assert!(
        peers::get(outbound, "/")
            .await
            .0
            .starts_with("HTTP/1.1 200 ")
    );

    admin_page(&running, "POST /drain_listeners?graceful").await;
    refuses(outbound).await;
}

#[tokio::test]
async fn grpc_web_is_said_to_be_passed_on() {
    use meltemi_proto::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;

    let options = meltemi_proxy::ProxyOptions {
        admin: Some(([127, 0, 0, 1], 0).into()),
        ..Default::default()
    };

    let running = Running::start(options);
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    manager.http_filters.insert(
        0,
        http_filter(
            "envoy.filters.http.grpc_web",
            meltemi_proto::pack(&GrpcWeb {}),
        ),
    );

    let up = static_cluster("up", &[peers::echo("up").await]);
    running
        .apply(vec![up], vec![listener("in", vec![http_chain(&manager)])])
        .await;
    assert!(
        peers::get(running.at("in").await, "/")
            .await
            .0
            .starts_with("HTTP/1.1 200 ")
    );

    let dump = admin_page(&running, "GET /config_dump?resource=dynamic_listeners")
        .await
        .1;
    assert!(
        dump.contains("not_honoured") && dump.contains("gRPC-Web is passed on as it comes"),
        "{dump}"
    );
}
