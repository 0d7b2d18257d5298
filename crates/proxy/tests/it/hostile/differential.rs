//! Odd names, paths and heads through stock Envoy and through us, under the options that Istio and
//! operators set: what Envoy refuses we refuse, and what both let pass arrives in the same form.
//! Where we are stricter the case says why.

use std::net::SocketAddr;
use std::time::Duration;

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use meltemi_proto::google::protobuf::BoolValue;
use meltemi_proxy::ProxyOptions;
use tokio::io::AsyncWriteExt;

use crate::config::*;
use crate::envoy::{self, Envoy};
use crate::peers::{self, Client};

/// Headers that differ from request to request.
const VOLATILE: [&str; 3] = [
    "x-request-id",
    "x-forwarded-for",
    "x-envoy-external-address",
];

/// Answers with the request line and the sorted fields that it saw.
async fn witness() -> SocketAddr {
    peers::http_server(|head, _| {
        let mut lines = head.trim_end().split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let mut fields: Vec<String> = lines
            .map(str::to_ascii_lowercase)
            .filter(|line| {
                !VOLATILE.iter().any(|name| line.starts_with(name)) && line != "content-length: 0"
            })
            .collect();

        fields.sort_unstable();
        let text = format!("{first}\n{}", fields.join("\n"));
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        )
        .into_bytes()
    })
    .await
}

fn on() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}

/// The options, by the name of the listener that has them.
fn listeners() -> Vec<Listener> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Underscores;
    use hcm::http_connection_manager::{PathWithEscapedSlashesAction as Slashes, StripPortMode};

    let with = |name: &str, change: &dyn Fn(&mut hcm::HttpConnectionManager)| {
        let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
        manager.access_log.clear();
        change(&mut manager);
        listener(name, vec![http_chain(&manager)])
    };

    let underscores = |action: Underscores| {
        Some(core::HttpProtocolOptions {
            headers_with_underscores_action: action as i32,
            ..Default::default()
        })
    };

    vec![
        with("default", &|_| {}),
        with("sidecar", &|m| m.normalize_path = on()),
        with("edge", &|m| {
            m.normalize_path = on();
            m.merge_slashes = true;
            m.path_with_escaped_slashes_action = Slashes::UnescapeAndRedirect as i32;
            m.common_http_protocol_options = underscores(Underscores::RejectRequest);
            m.use_remote_address = on();
        }),
        with("fold", &|m| {
            m.normalize_path = on();
            m.merge_slashes = true;
            m.path_with_escaped_slashes_action = Slashes::UnescapeAndForward as i32;
            m.common_http_protocol_options = underscores(Underscores::DropHeader);
            m.strip_port_mode = Some(StripPortMode::StripAnyHostPort(true));
            m.strip_trailing_host_dot = true;
        }),
        with("refuse", &|m| {
            m.path_with_escaped_slashes_action = Slashes::RejectRequest as i32;
            m.http_protocol_options = Some(core::Http1ProtocolOptions {
                accept_http_10: true,
                ..Default::default()
            });
        }),
    ]
}

/// Targets of a GET.
const TARGETS: &[&str] = &[
    "/",
    "/a",
    "/a/../b",
    "/a/./b",
    "/a/..",
    "/a/.",
    "/..",
    "/../../b",
    "/a//b",
    "//a//b//",
    "/a/%2e%2e/b",
    "/a/%2E/b",
    "/%61",
    "/%7Euser",
    "/%7euser",
    "/a%20b",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a%5Cb",
    "/a%252fb",
    "/%%32%65/a",
    "/a\\b",
    "/a\\..\\b",
    "/a;x=y",
    "/a;/../b",
    "/a?b=/../c",
    "/a?b=%2f",
    "/a?b#c",
    "/a#b",
    "/%00",
    "/a%",
    "/a%z1",
    "/a%2",
    "/a%ff",
    "/a|b",
    "/a\"b",
    "/a<b>",
    "/a{b}",
    "/a^b`c",
    "/[a]",
    "/a:b@c",
    "/...",
    "/.hidden",
    "/a/...//b",
    "http://b.example/a",
    "http://b.example",
    "http://b.example:80/a/../c",
    "http://b.example?x",
    "https://b.example/a",
    "HTTP://b.example/a",
    "http:///a",
    "http://u@b.example/a",
    "ftp://b.example/a",
    "a",
    "*",
    "?a",
    "a:80",
];

/// Values of Host.
const HOSTS: &[&str] = &[
    "a.example",
    "A.Example",
    "a.example.",
    "a.example:80",
    "a.example.:80",
    "a.example:",
    "a.example:http",
    "a.example:99999",
    "[::1]",
    "[::1]:80",
    "::1",
    "10.0.0.1",
    "a_b.example",
    "a..example",
    ".",
    "a,b",
    "a@b",
    "a/b",
    "a b",
    "a%2eexample",
    "",
    "*",
    "a#b",
    "a?b",
];

/// The rest of a GET with its fields.
const FIELDS: &[&str] = &[
    "x-a: 1\nx-a: 2",
    "x_a: 1",
    "X_A: 1\nx-b: 2",
    "x-a:1",
    "x-a:  1  ",
    "x-a:",
    "x-a: a,b",
    "x.a: 1",
    "x!#$%&'*+^`|~: 1",
    "x(a: 1",
    "x@a: 1",
    "x\u{e9}: 1",
    "x-a: \u{e9}",
    "x-a: a\tb",
    "x-a: \u{1}",
    "x-a: \u{7f}",
    "connection: x-a\nx-a: 1",
    "connection: close, x-a\nx-a: 1",
    "connection: te\nte: trailers",
    "te: trailers",
    "te: gzip",
    "keep-alive: timeout=1",
    "proxy-connection: keep-alive",
    "upgrade: websocket",
    "connection: upgrade",
    "connection: upgrade\nupgrade: h2c",
    "connection: upgrade, http2-settings\nupgrade: h2c\nhttp2-settings: AAMAAABk",
    "connection: upgrade\nupgrade: h2c, foo",
    "connection: upgrade\nupgrade: foo",
    "connection: upgrade\nupgrade: foo, websocket",
    "connection: x-forwarded-for\nx-forwarded-for: 1.1.1.1",
    "connection: authorization\nauthorization: x",
    "connection: host",
    "connection: content-length\ncontent-length: 0",
    "connection: :path",
    "connection: cookie\ncookie: a=b",
    "connection: x-request-id\nx-request-id: 1",
    "trailer: x",
    "transfer-encoding: chunked",
    "transfer-encoding: Chunked",
    "transfer-encoding: chunked, chunked",
    "transfer-encoding: gzip, chunked",
    "transfer-encoding: identity",
    "transfer-encoding: chunked\ntransfer-encoding: chunked",
    "transfer-encoding: chunked\ncontent-length: 5",
    "content-length: 0",
    "content-length: 00",
    "content-length: 0\ncontent-length: 0",
    "content-length: 0, 0",
    "content-length: +0",
    "content-length: -0",
    "content-length: 0x0",
    "content-length: 0\ncontent-length: 1",
    "content-length: 18446744073709551616",
    "expect: 200-ok",
    "host: other.example",
    "x-forwarded-proto: https",
    "x-forwarded-proto: gopher",
    "x-forwarded-host: evil",
    "x-forwarded-client-cert: URI=spiffe://a",
    "x-envoy-internal: true",
    "x-envoy-retry-on: 5xx",
    "x-envoy-original-path: /a",
    "x-envoy-decorator-operation: x",
    "x-envoy-peer-metadata: x",
    "cookie: a=1\ncookie: b=2",
];

/// Requests that are no GET of HTTP/1.1.
const LINES: &[&str] = &[
    "TRACE / HTTP/1.1",
    "get / HTTP/1.1",
    "FOO / HTTP/1.1",
    "CONNECT a:80 HTTP/1.1",
    "CONNECT /a HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "OPTIONS / HTTP/1.1",
    "GET / HTTP/1.0",
    "GET / HTTP/0.9",
    "GET / HTTP/1.2",
    "GET / HTTP/2.0",
    "GET / http/1.1",
    "GET /",
    "GET  / HTTP/1.1",
    "GET / HTTP/1.1 ",
    " GET / HTTP/1.1",
    "G\u{e9}T / HTTP/1.1",
    "G/T / HTTP/1.1",
    "PRI * HTTP/2.0",
];

/// Where we decide otherwise than Envoy: how the case ends, our status, and why that is right.
const OTHERWISE: &[(&str, u16, &str)] = &[
    (
        "target http://b.example?x",
        200,
        "RFC 9112 §3.2.2: the path is empty, which is /",
    ),
    (
        "target http://u@b.example/a",
        400,
        "whose host is read how is anybody's guess",
    ),
    (
        "sidecar: target /%%32%65/a",
        400,
        "decoded twice it is another path",
    ),
    (
        "edge: target /%%32%65/a",
        400,
        "decoded twice it is another path",
    ),
    (
        "fold: target /%%32%65/a",
        400,
        "decoded twice it is another path",
    ),
    (
        "edge: target https://b.example/a",
        200,
        "what is said of the scheme is not believed, and says nothing",
    ),
    ("host a@b", 400, "whose host is read how is anybody's guess"),
    (
        "fold: host a.example:",
        200,
        "the port is empty; what is the same host is written the same",
    ),
    (
        "fold: host a.example:http",
        200,
        "no port, and none is left",
    ),
    (
        "fields expect: 200-ok",
        417,
        "RFC 9110 §10.1.1: nobody here meets it",
    ),
    ("fields host: other.example", 400, "RFC 9112 §3.2: one host"),
    (
        "fields x-forwarded-proto: gopher",
        200,
        "no scheme, so it is replaced by ours",
    ),
    (
        "fields connection: x-forwarded-for\nx-forwarded-for: 1.1.1.1",
        200,
        "what proxies have set stays",
    ),
    (
        "fields connection: authorization\nauthorization: x",
        200,
        "what policies are about stays",
    ),
    (
        "fields connection: cookie\ncookie: a=b",
        200,
        "what policies are about stays",
    ),
    ("fields connection: host", 200, "the host stays"),
    ("fields connection: :path", 200, "no field has that name"),
    (
        "line FOO / HTTP/1.1",
        200,
        "RFC 9110 §9: methods are for servers to know",
    ),
    ("line GET / HTTP/0.9", 400, "no such version"),
    ("line GET / HTTP/1.2", 400, "no such version"),
    ("line GET / HTTP/2.0", 400, "no such version in these words"),
    ("line GET /", 400, "no version"),
    ("line GET  / HTTP/1.1", 400, "RFC 9112 §3: one blank"),
    (
        "line GET / HTTP/1.1 ",
        400,
        "RFC 9112 §3: nothing after the version",
    ),
    (
        "line PRI * HTTP/2.0",
        400,
        "half a preface is an answer's worth",
    ),
];

/// The status, and what arrived or where the client is sent; 0 for a connection that ends without
/// an answer.
async fn outcome(at: SocketAddr, request: &str) -> (u16, String) {
    let mut client = Client::connect(at).await;
    let _ = client
        .stream
        .write_all(request.replace('\n', "\r\n").as_bytes())
        .await;

    let answer = tokio::time::timeout(Duration::from_secs(5), client.receive()).await;
    let Some((head, body)) = answer.unwrap_or_else(|_| panic!("no answer and no end: {request:?}"))
    else {
        return (0, String::new());
    };

    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");

    let location = head
        .lines()
        .find(|line| line.starts_with("location: "))
        .unwrap_or_default();

    (
        status,
        if status == 200 {
            String::from_utf8_lossy(&body).into_owned()
        } else {
            location.to_owned()
        },
    )
}

#[tokio::test]
async fn envoy_and_we_refuse_alike() {
    let Some(program) = envoy::program("envoy_and_we_refuse_alike") else {
        return;
    };
    let clusters = vec![static_cluster("up", &[witness().await])];
    let theirs = Envoy::start(program, clusters.clone(), |_| listeners()).await;
    let ours = Running::start(ProxyOptions::default());

    ours.apply(clusters, listeners()).await;
    let targets = TARGETS.iter().map(|target| {
        (
            format!("target {target}"),
            format!("GET {target} HTTP/1.1\nhost: a.example\nconnection: close\n\n"),
        )
    });

    let hosts = HOSTS.iter().map(|host| {
        (
            format!("host {host}"),
            format!("GET / HTTP/1.1\nhost: {host}\nconnection: close\n\n"),
        )
    });

    let fields = FIELDS.iter().map(|fields| {
        let body = if fields.contains("transfer-encoding: ") {
            "0\n\n"
        } else {
            ""
        };
        (
            format!("fields {fields}"),
            format!("GET / HTTP/1.1\nhost: a.example\n{fields}\n\n{body}"),
        )
    });

    let lines = LINES.iter().map(|line| {
        (
            format!("line {line}"),
            format!("{line}\nhost: a.example\n\n"),
        )
    });

    let all: Vec<(String, String)> = targets.chain(hosts).chain(fields).chain(lines).collect();
    let mut different = Vec::new();
    for listener in listeners() {
        let (their, our) = (
            theirs.at(&listener.name).await,
            ours.at(&listener.name).await,
        );

        for (case, request) in &all {
            let case = format!("{}: {case}", listener.name);
            let (envoy, we) = (outcome(their, request).await, outcome(our, request).await);
            let known = OTHERWISE.iter().find(|(end, ..)| case.ends_with(end));
            let right = match known {
                Some((_, status, _)) => we.0 == *status,
                None => envoy == we,
            };

            if !right {
                different.push(format!("{case:?}:\n  Envoy {envoy:?}\n  we    {we:?}"));
            }
        }
    }

    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );
}
