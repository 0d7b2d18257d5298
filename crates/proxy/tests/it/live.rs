//! Configuration that changes under live connections.

use crate::config::*;
use crate::peers::{self, Client};

#[tokio::test]
async fn the_next_request_on_a_connection_runs_under_the_newest_routes() {
    let (one, two) = (peers::echo("one").await, peers::echo("two").await);
    let clusters = vec![static_cluster("one", &[one]), static_cluster("two", &[two])];
    let to =
        |cluster: &str| listener("in", vec![http_chain(&manager(inline(table("r", vec![forward("/", cluster)]))))]);
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
    assert!(head.contains("x-name: two") && !head.contains("connection: close"), "{head}");
}

#[tokio::test]
async fn a_listener_that_goes_drains_its_connections() {
    let (running, at) = simple(peers::echo("up").await).await;
    let mut idle = Client::connect(at).await;
    idle.ask("GET / HTTP/1.1\nhost: a\n\n").await;
    running.handle.apply(meltemi_proto::type_url::LISTENER, vec![], vec!["in".into()]).await.expect("removed");
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
        .apply(meltemi_proto::type_url::LISTENER, vec![("in".into(), meltemi_proto::pack(&broken))], vec![])
        .await
        .expect_err("a chain without filters");
    assert!(refused.starts_with("in: "), "{refused}");
    assert!(peers::get(at, "/").await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_admin_interface_tells_what_serves() {
    let options = meltemi_proxy::ProxyOptions { admin: Some(([127, 0, 0, 1], 0).into()), ..Default::default() };
    let running = Running::start(options);
    let upstream = peers::echo("up").await;
    let manager = manager(inline(table("r", vec![forward("/", "up")])));
    running.apply(vec![static_cluster("up", &[upstream])], vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;
    peers::get(at, "/").await;
    running.handle.ready().await;
    let admin = running.handle.admin_addresses()[0];
    let page = async |path: &str| {
        let mut client = Client::connect(admin).await;
        client.ask(&format!("GET {path} HTTP/1.1\nhost: localhost\n\n")).await
    };
    assert_eq!(page("/ready").await.1, "LIVE\n");
    assert!(page("/clusters").await.1.contains(&format!("up::{upstream}::rq_total::1\n")));
    assert!(page("/listeners").await.1.contains(&format!("in::{at}\n")));
    assert!(page("/stats").await.1.contains("cluster.up.upstream_rq_total: 1\n"));
    assert!(page("/stats/prometheus").await.1.contains("envoy_server_live 1\n"));
    let dump = page("/config_dump").await.1;
    assert!(dump.contains("\"name\": \"up\"") && dump.contains("ClustersConfigDump"), "{dump}");
    assert!(dump.contains("\"stat_prefix\": \"test\""), "nested messages are shown: {dump}");
    let (head, _) = page("/quitquitquit").await;
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    let mut foreign = Client::connect(admin).await;
    assert!(foreign.ask("GET /certs HTTP/1.1\nhost: evil.example\n\n").await.0.starts_with("HTTP/1.1 403 "));
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
    let ask =
        async |line: &str| Client::connect(admin).await.ask(&format!("{line} HTTP/1.1\nhost: localhost\n\n")).await;
    assert!(ask("GET /logging?level=debug").await.0.starts_with("HTTP/1.1 405 "));
    assert_eq!(ask("POST /logging?level=info").await.1, "active loggers: info\n");
    let both = "active loggers: info,h2=warn,meltemi_proxy::router=debug\n";
    assert_eq!(ask("POST /logging?paths=h2:warn,meltemi_proxy::router:debug").await.1, both);
    let off = "active loggers: info,meltemi_proxy::router=debug,h2=off\n";
    assert_eq!(ask("POST /logging?h2=off").await.1, off);
    let (head, body) = ask("POST /logging?level=loud").await;
    assert!(head.starts_with("HTTP/1.1 400 ") && body == "no such level: loud\n", "{head}{body}");
    assert_eq!(ask("GET /logging").await.1, off);
}
