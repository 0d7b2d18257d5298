//! Flags, details, attempts and names in the access log: word by word what Envoy prints.

use std::net::SocketAddr;
use std::time::Duration;

use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::google::protobuf::UInt32Value;
use tokio::io::AsyncWriteExt;

use crate::config::*;
use crate::peers;

/// Two attempts.
fn retried(prefix: &str, cluster: &str) -> route::Route {
    tune(forward(prefix, cluster), |action| {
        action.retry_policy = Some(route::RetryPolicy {
            retry_on: "5xx,reset".into(),
            num_retries: Some(UInt32Value { value: 1 }),
            retry_back_off: Some(route::retry_policy::RetryBackOff {
                base_interval: Some(duration(Duration::from_millis(1))),
                ..Default::default()
            }),
            ..Default::default()
        });
    })
}

/// A cluster whose circuit breaker admits no retry.
fn without_retries(name: &str, endpoint: SocketAddr) -> cluster::Cluster {
    let mut found = static_cluster(name, &[endpoint]);
    found.circuit_breakers = Some(cluster::CircuitBreakers {
        thresholds: vec![cluster::circuit_breakers::Thresholds {
            max_retries: Some(UInt32Value { value: 0 }),
            ..Default::default()
        }],
        ..Default::default()
    });
    found
}

/// A proxy that logs status, flags, details, attempts and failure of the transport.
async fn logging(
    clusters: Vec<cluster::Cluster>,
    routes: Vec<route::Route>,
) -> (Running, SocketAddr) {
    let mut manager = manager(inline(table("r", routes)));
    let format = "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
                  %UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_TRANSPORT_FAILURE_REASON% \
                  %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%\n";
    manager.access_log = vec![log_as("/dev/stdout", format)];
    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let at = running.at("in").await;

    (running, at)
}

#[tokio::test]
async fn flags_stand_in_the_order_in_which_they_were_set() {
    let unwilling =
        peers::http_server(|_, _| b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
    let leaving = peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        let _ = peers::read_message(&mut stream, &mut waiting).await;
    })
    .await;

    let clusters = vec![
        static_cluster("down", &[peers::nobody().await]),
        static_cluster("none", &[]),
        without_retries("unwilling", unwilling),
        without_retries("leaving", leaving),
    ];
    let routes = ["down", "none", "unwilling", "leaving"]
        .map(|name| retried(&format!("/{name}"), name))
        .to_vec();
    let (running, at) = logging(clusters, routes).await;

    let refused = "delayed_connect_error:_Connection_refused";
    for (path, line) in [
        (
            "/down",
            format!(
                "503 URX,UF upstream_reset_before_response_started{{remote_connection_failure|{refused}}} 2 {refused} "
            ),
        ),
        ("/none", "503 UH no_healthy_upstream 1 - ".to_owned()),
        // The circuit breaker refused the retry.
        ("/unwilling", "503 UO via_upstream 1 - ".to_owned()),
        (
            "/leaving",
            "503 UO,UC upstream_reset_before_response_started{connection_termination} 1 - "
                .to_owned(),
        ),
    ] {
        peers::get(at, path).await;
        running.log.line_with(&format!("{path} {line}")).await;
    }
}

#[tokio::test]
async fn an_http1_response_that_ends_too_early_breaks_the_protocol() {
    let short = peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await else {
            return;
        };
        let answer: &[u8] = match head.contains("/head") {
            true => b"HTTP/1.1 200 OK\r\ncontent-le",
            false => b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        };
        let _ = stream.write_all(answer).await;
    })
    .await;

    let clusters = vec![static_cluster("short", &[short])];
    let (running, at) = logging(clusters, vec![forward("/", "short")]).await;
    for (path, line) in [
        (
            "/head",
            "502 UPE upstream_reset_before_response_started{protocol_error} 1 - ",
        ),
        (
            "/body",
            "200 UPE upstream_reset_after_response_started{protocol_error} 1 - ",
        ),
    ] {
        let mut client = peers::Client::connect(at).await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        client.receive().await;
        running.log.line_with(&format!("{path} {line}")).await;
    }
}

#[tokio::test]
async fn a_connection_that_takes_too_long_is_no_failure_of_the_transport() {
    // A listener whose queue is full takes no further connection.
    let full = tokio::net::TcpSocket::new_v4().expect("a socket");
    full.bind(([127, 0, 0, 1], 0).into()).expect("bound");
    let listening = full.listen(1).expect("listens");
    let to = listening.local_addr().expect("bound");
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(
        Duration::from_millis(200),
        tokio::net::TcpStream::connect(to),
    )
    .await
    {
        queued.push(stream);
    }

    let mut slow = static_cluster("slow", &[to]);
    slow.connect_timeout = Some(duration(Duration::from_millis(50)));
    let (running, at) = logging(vec![slow], vec![forward("/", "slow")]).await;
    peers::get(at, "/").await;
    running
        .log
        .line_with(
            "503 UF upstream_reset_before_response_started{connection_timeout} 1 - slow slow",
        )
        .await;
}

#[tokio::test]
async fn a_cluster_is_named_as_in_statistics() {
    let mut up = static_cluster("outbound|80||a.svc", &[peers::echo("up").await]);
    up.alt_stat_name = "outbound|80||a.svc;".into();
    let (running, at) = logging(vec![up], vec![forward("/", "outbound|80||a.svc")]).await;
    peers::get(at, "/").await;
    running
        .log
        .line_with("200 - via_upstream 1 - outbound|80||a.svc; outbound|80||a.svc")
        .await;
}
