//! Filters that hold bodies: `buffer`, alone and beside Envoy.

use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::envoy::extensions::filters::http::buffer::v3 as proto;
use meltemi_proto::google::protobuf::UInt32Value;
use meltemi_proto::pack;
use meltemi_proxy::ProxyOptions;

use crate::config::*;
use crate::differential::{in_order, witness};
use crate::envoy::{self, Envoy};
use crate::peers::Client;

const NAME: &str = "envoy.filters.http.buffer";

fn buffer(max: u32) -> proto::Buffer {
    proto::Buffer {
        max_request_bytes: Some(UInt32Value { value: max }),
    }
}

fn buffered(log: &str) -> Listener {
    use proto::buffer_per_route::Override;

    let route = |path: &str, own: Override| {
        let own = proto::BufferPerRoute {
            r#override: Some(own),
        };
        let mut route = forward(path, "up");
        route
            .typed_per_filter_config
            .insert(NAME.into(), pack(&own));
        route
    };
    let routes = vec![
        route("/off", Override::Disabled(true)),
        route("/more", Override::Buffer(buffer(20))),
        forward("/", "up"),
    ];

    let mut manager = manager(inline(table("r", routes)));
    let filter = http_filter(NAME, pack(&buffer(10)));
    manager.http_filters.insert(0, filter);
    let format = "case=%REQ(X-CASE)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
                  received=%BYTES_RECEIVED%\n";
    manager.access_log = vec![log_as(log, format)];

    listener("in", vec![http_chain(&manager)])
}

/// Name, path, body in pieces; whether its length is told.
const CASES: &[(&str, &str, &[&str], bool)] = &[
    ("none", "/", &[], false),
    ("sized", "/", &["0123456789"], true),
    ("chunked", "/", &["01234", "56789"], false),
    ("chunked-empty", "/", &[], false),
    ("sized-too-long", "/", &["0123456789a"], true),
    ("chunked-too-long", "/", &["01234", "56789", "a"], false),
    ("off", "/off", &["0123456789", "0123456789"], false),
    ("more", "/more", &["0123456789", "01234"], false),
    (
        "more-too-long",
        "/more",
        &["0123456789", "0123456789", "a"],
        false,
    ),
];

async fn send(
    at: std::net::SocketAddr,
    case: &str,
    path: &str,
    pieces: &[&str],
    sized: bool,
) -> String {
    let mut client = Client::connect(at).await;
    let head = format!("POST {path} HTTP/1.1\r\nhost: svc\r\nx-case: {case}\r\n");
    if sized {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        client
            .send(format!(
                "{head}content-length: {length}\r\n\r\n{}",
                pieces.concat()
            ))
            .await;
    } else {
        client
            .send(format!("{head}transfer-encoding: chunked\r\n\r\n"))
            .await;
        for piece in pieces {
            client
                .send(format!("{:x}\r\n{piece}\r\n", piece.len()))
                .await;
        }
        client.send("0\r\n\r\n").await;
    }

    let (head, body) = client.receive().await.expect("a response");
    let status = head.split("\r\n").next().unwrap_or_default();
    format!("{status}\n{}", String::from_utf8_lossy(&body))
}

#[tokio::test]
async fn envoy_and_we_buffer_alike() {
    let Some(program) = envoy::program("envoy_and_we_buffer_alike") else {
        return;
    };
    let clusters = vec![static_cluster("up", &[witness("up").await])];
    let log = "access.log";
    let theirs = Envoy::start(program, clusters.clone(), |folder| {
        vec![buffered(&folder.join(log).display().to_string())]
    })
    .await;
    let ours = Running::start(ProxyOptions::default());
    ours.apply(clusters, vec![buffered("/dev/stdout")]).await;
    let (their, our) = (theirs.at("in").await, ours.at("in").await);

    let mut different = Vec::new();
    for (case, path, pieces, sized) in CASES {
        let start = format!("case={case} ");
        let envoy = send(their, case, path, pieces, *sized).await;
        let envoy_line = in_order(&theirs.line(log, &start).await);
        let we = send(our, case, path, pieces, *sized).await;
        let our_line = in_order(&ours.log.line_with(&start).await);
        if (&envoy, &envoy_line) != (&we, &our_line) {
            different.push(format!(
                "{case}:\nEnvoy {envoy}\n{envoy_line}\nwe {we}\n{our_line}"
            ));
        }
    }

    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[tokio::test]
async fn a_buffered_request_reaches_the_upstream_whole_or_not_at_all() {
    let running = Running::with(
        vec![static_cluster("up", &[witness("up").await])],
        vec![buffered("/dev/stdout")],
    )
    .await;
    let at = running.at("in").await;

    // Both requests share a connection: what was held of the first is no part of the second.
    let mut client = Client::connect(at).await;
    for number in 0..2 {
        client
            .send("POST / HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n")
            .await;
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        client.send("0\r\n\r\n").await;
        let (_, body) = client.receive().await.expect("a response");
        let body = String::from_utf8(body).expect("text");
        assert!(body.contains("content-length: 4\n"), "{number}: {body}");
        assert!(body.ends_with("\nbody"), "{number}: {body}");
    }

    let too_long = send(at, "x", "/", &["0123456789", "0123456789"], false).await;
    assert!(too_long.starts_with("HTTP/1.1 413 "), "{too_long}");

    let mut h2 = crate::http2::connect(at).await;
    let request = ::http::Request::post("http://svc/").body(()).expect("good");
    let (response, mut body) = h2.send_request(request, false).expect("sent");
    body.send_data("0123456789a".into(), true).expect("sent");
    assert_eq!(response.await.expect("a response").status(), 413);
}
