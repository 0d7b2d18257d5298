//! HTTP/1.1: framing that two parties could read in two ways, and messages without end.

use std::time::Duration;

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use meltemi_proto::google::protobuf::BoolValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{App, Bystander, SMUGGLED, soon, until};
use crate::config::*;
use crate::peers::{self, Client};

/// A proxy in front of an application.
async fn in_front(
    app: &App,
    change: impl FnOnce(&mut HttpConnectionManager),
) -> (Running, Bystander) {
    let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
    change(&mut manager);
    let running = Running::with(
        vec![static_cluster("up", &[app.at])],
        vec![listener("in", vec![http_chain(&manager)])],
    )
    .await;
    let bystander = Bystander::at(running.at("in").await).await;
    (running, bystander)
}

/// Sends what it can: the proxy may have closed long before the end.
async fn pour(client: &mut Client, bytes: &[u8]) {
    let _ = client.stream.write_all(bytes).await;
}

/// The request is answered with the status, nothing more comes, and the connection ends.
async fn is_refused(bystander: &Bystander, name: &str, request: &[u8], status: &str) {
    let mut client = Client::connect(bystander.at).await;
    pour(&mut client, request).await;
    let (head, _) = soon(client.receive())
        .await
        .unwrap_or_else(|| panic!("{name}: closed without an answer"));
    assert!(
        head.starts_with(&format!("HTTP/1.1 {status} ")),
        "{name}: {head}"
    );

    assert!(head.contains("\r\nconnection: close\r\n"), "{name}: {head}");
    assert!(
        soon(client.receive()).await.is_none(),
        "{name}: a second answer"
    );
}

/// Name, request head with what follows it, status.
const HEADS: &[(&str, &str, &str)] = &[
    (
        "length, then chunked",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "chunked, then length",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "two lengths",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ncontent-length: 37\r\n\r\n",
        "400",
    ),
    (
        "the same length twice",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n",
        "400",
    ),
    (
        "signed length",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\n",
        "400",
    ),
    (
        "negative length",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        "400",
    ),
    (
        "list of lengths",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5,5\r\n\r\n",
        "400",
    ),
    (
        "hexadecimal length",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\n",
        "400",
    ),
    (
        "length with a blank inside",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1 0\r\n\r\n",
        "400",
    ),
    (
        "length above 64 bits",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551616\r\n\r\n",
        "400",
    ),
    (
        "empty length",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: \r\n\r\n",
        "400",
    ),
    (
        "xchunked",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
        "501",
    ),
    (
        "chunked, identity",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
        "501",
    ),
    (
        "gzip, chunked",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        "501",
    ),
    (
        "identity",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n",
        "501",
    ),
    (
        "chunked twice",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        "501",
    ),
    (
        "quoted",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \"chunked\"\r\n\r\n",
        "501",
    ),
    (
        "vertical tab",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n",
        "400",
    ),
    (
        "blank before the colon",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n",
        "400",
    ),
    (
        "folded",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n",
        "400",
    ),
    (
        "NUL in a value",
        "GET /a HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
        "400",
    ),
    (
        "NUL in a name",
        "GET /a HTTP/1.1\r\nhost: a\r\nx\0: b\r\n\r\n",
        "400",
    ),
    (
        "NUL in the target",
        "GET /a\0b HTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "bare CR in a value",
        "GET /a HTTP/1.1\r\nhost: a\r\nx: a\rb: c\r\n\r\n",
        "400",
    ),
    (
        "bare LF ends a line",
        "GET /a HTTP/1.1\r\nhost: a\r\nx: a\nb: c\r\n\r\n",
        "400",
    ),
    (
        "bare LF ends the head",
        "GET /a HTTP/1.1\r\nhost: a\r\n\n",
        "400",
    ),
    (
        "bare LF after the request line",
        "GET /a HTTP/1.1\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "folded value",
        "GET /a HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n",
        "400",
    ),
    (
        "fold after the request line",
        "GET /a HTTP/1.1\r\n host: a\r\n\r\n",
        "400",
    ),
    (
        "blank before a colon",
        "GET /a HTTP/1.1\r\nhost : a\r\n\r\n",
        "400",
    ),
    (
        "no name",
        "GET /a HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n",
        "400",
    ),
    ("no colon", "GET /a HTTP/1.1\r\nhost: a\r\nx\r\n\r\n", "400"),
    (
        "two blanks in the request line",
        "GET  /a HTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "tab in the request line",
        "GET\t/a\tHTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "a third part of the target",
        "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "lower-case method",
        "get /a HTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "lower-case version",
        "GET /a http/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    ("HTTP/1.2", "GET /a HTTP/1.2\r\nhost: a\r\n\r\n", "400"),
    ("HTTP/2.0", "GET /a HTTP/2.0\r\nhost: a\r\n\r\n", "400"),
    ("no version", "GET /a\r\n\r\n", "400"),
    ("HTTP/1.0", "POST /a HTTP/1.0\r\nhost: a\r\n\r\n", "426"),
    ("no host", "GET /a HTTP/1.1\r\n\r\n", "400"),
    (
        "two hosts",
        "GET /a HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "400",
    ),
    (
        "the same host twice",
        "GET /a HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "user information",
        "GET /a HTTP/1.1\r\nhost: b@a\r\n\r\n",
        "400",
    ),
    (
        "a path in the host",
        "GET /a HTTP/1.1\r\nhost: a/b\r\n\r\n",
        "400",
    ),
    (
        "user information in the target",
        "GET http://b@a/a HTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "no authority in the target",
        "GET http:///a HTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "another scheme",
        "GET ftp://a/a HTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "authority form without CONNECT",
        "GET a:80 HTTP/1.1\r\nhost: a\r\n\r\n",
        "400",
    ),
    (
        "unknown expectation",
        "POST /a HTTP/1.1\r\nhost: a\r\nexpect: 200-ok\r\ncontent-length: 4\r\n\r\n",
        "417",
    ),
];

#[tokio::test]
async fn heads_with_two_readings_are_refused_and_nothing_is_forwarded() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    for (name, request, status) in HEADS {
        is_refused(
            &bystander,
            name,
            format!("{request}{SMUGGLED}").as_bytes(),
            status,
        )
        .await;
    }

    bystander.is_served().await;
    assert!(!app.saw("/a ") && !app.saw("smuggled"));
}

#[tokio::test]
async fn http_1_0_has_no_chunks_even_where_it_is_served() {
    let app = App::start().await;
    let accepts = |m: &mut HttpConnectionManager| {
        m.http_protocol_options = Some(core::Http1ProtocolOptions {
            accept_http_10: true,
            ..Default::default()
        });
    };

    let (_running, mut bystander) = in_front(&app, accepts).await;
    let chunked = format!(
        "POST /a HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
    );
    is_refused(&bystander, "chunked", chunked.as_bytes(), "400").await;

    // Without a length there is no body, and what looks like one is not the next request.
    let mut client = Client::connect(bystander.at).await;
    client
        .send(format!("POST /ten HTTP/1.0\r\nhost: a\r\n\r\n{SMUGGLED}"))
        .await;
    let (head, _) = soon(client.receive()).await.expect("an answer");
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.contains("connection: close"),
        "{head}"
    );

    assert!(soon(client.receive()).await.is_none());
    bystander.is_served().await;
    assert!(app.saw("/ten") && !app.saw("/a ") && !app.saw("smuggled"));
}

#[tokio::test]
async fn broken_chunks_end_the_request_on_both_sides() {
    let app = App::start().await;
    let (running, mut bystander) = in_front(&app, |_| {}).await;
    let extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(1 << 20));
    let trailers = format!("0\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));

    for (name, body) in [
        ("size above 64 bits", "10000000000000000\r\n"),
        ("size just below 64 bits", "fffffffffffffffe\r\n"),
        ("no size", "\r\n\r\n"),
        ("signed size", "+1\r\na\r\n0\r\n\r\n"),
        ("size with a prefix", "0x1\r\na\r\n0\r\n\r\n"),
        ("size in underscores", "1_0\r\n"),
        ("blank before the size", " 1\r\na\r\n0\r\n\r\n"),
        ("LF after the size", "1\na\r\n0\r\n\r\n"),
        ("LF after the data", "1\r\na\n0\r\n\r\n"),
        ("LF after the last size", "0\n\r\n"),
        ("CR alone", "1\r\na\r0\r\n\r\n"),
        ("more data than said", "1\r\nab\r\n0\r\n\r\n"),
        (
            "a quoted line feed in an extension",
            "1;x=\"\n\"\r\na\r\n0\r\n\r\n",
        ),
        ("an extension without end", extension.as_str()),
        ("trailers without end", trailers.as_str()),
        ("a trailer without colon", "0\r\nx\r\n\r\n"),
        ("LF ends a trailer", "0\r\nx: y\n\r\n\r\n"),
    ] {
        let request = format!(
            "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}{SMUGGLED}"
        );
        is_refused(&bystander, name, request.as_bytes(), "400").await;
    }

    bystander.is_served().await;
    assert!(!app.saw("POST /a ") && !app.saw("smuggled"));
    running.log.line_with("400 DPE ").await;
}

#[tokio::test]
async fn bytes_for_another_protocol_are_never_a_request() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    for (name, request, status) in [
        // The application answers 200 where 101 was asked for.
        (
            "upgrade",
            "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            "200",
        ),
        (
            "not allowed",
            "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: spdy\r\n\r\n",
            "403",
        ),
        (
            "with a body",
            "POST /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\ntransfer-encoding: chunked\r\n\r\n",
            "400",
        ),
        (
            "connect",
            "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
            "404",
        ),
    ] {
        is_refused(
            &bystander,
            name,
            format!("{request}{SMUGGLED}").as_bytes(),
            status,
        )
        .await;
    }

    bystander.is_served().await;

    // The upgrade to HTTP/2 is nothing that anybody has to take up, and many clients ask for it.
    let request = "GET /h2c HTTP/1.1\nhost: a\nconnection: Upgrade, HTTP2-Settings\nupgrade: h2c\n\
                   http2-settings: AAMAAABk\n\n";
    let (head, seen) = Client::connect(bystander.at).await.ask(request).await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && !head.contains("connection: close"),
        "{head}"
    );

    assert!(
        !seen.to_ascii_lowercase().contains("upgrade") && !seen.contains("settings"),
        "{seen}"
    );

    assert!(app.saw("GET /ws ") && !app.saw("/a ") && !app.saw("smuggled") && !app.saw("CONNECT"));
}

#[tokio::test]
async fn a_body_nobody_read_is_not_the_next_request() {
    let app = App::start().await;
    let routes = vec![forward("/bystander", "up")];
    let (running, mut bystander) = in_front(&app, |m| {
        m.route_specifier = Some(inline(table("r", routes)))
    })
    .await;

    let at = bystander.at;

    // What fits is read and thrown away, what does not ends the connection.
    let large = 1 << 20;
    let mut body = SMUGGLED.repeat(large / SMUGGLED.len() + 1).into_bytes();

    body.truncate(large);
    let mut client = Client::connect(at).await;
    let head = format!("POST /large HTTP/1.1\r\nhost: a\r\ncontent-length: {large}\r\n\r\n");
    pour(&mut client, &[head.as_bytes(), &body].concat()).await;
    let (head, _) = soon(client.receive()).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert!(soon(client.receive()).await.is_none(), "read from a body");

    // A client that waits for a 100 and gets a final answer may send its body or not: either way it
    // ends here.
    let expecting = format!(
        "POST /expects HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        SMUGGLED.len()
    );

    is_refused(&bystander, "A16", expecting.as_bytes(), "404").await;
    is_refused(
        &bystander,
        "with its body",
        format!("{expecting}{SMUGGLED}").as_bytes(),
        "404",
    )
    .await;

    bystander.is_served().await;
    running.log.line_with(" /large ").await;
    let metrics = running.handle.metrics();
    assert!(
        metrics.contains("meltemi_local_replies_total{cause_kind=\"no_route\",flag=\"NR\"} 3\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_client_cannot_have_fields_of_others_taken_away() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |m| {
        m.use_remote_address = Some(BoolValue { value: true })
    })
    .await;

    let mut client = Client::connect(bystander.at).await;
    let nominated =
        "authorization, x-forwarded-for, x-request-id, x-forwarded-proto, cookie, x-hop, close";
    let (_, seen) = client
        .ask(&format!(
            "GET /a HTTP/1.1\nhost: a\nauthorization: Bearer t\ncookie: a=b\nX-Hop: 1\nconnection: {nominated}\nkeep-alive: 1\n\
             proxy-connection: x\nte: gzip\n\n"
        ))
        .await;

    for kept in [
        "authorization: Bearer t",
        "cookie: a=b",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
    ] {
        assert!(seen.contains(&format!("\r\n{kept}\r\n")), "{kept}: {seen}");
    }

    for gone in [
        "\r\nconnection:",
        "\r\nkeep-alive:",
        "\r\nproxy-connection:",
        "\r\nte:",
        "\r\nx-hop:",
    ] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }

    bystander.is_served().await;
}

#[tokio::test]
async fn heads_without_measure_are_refused() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    let line = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(64 * 1024));
    let many = format!(
        "GET /a HTTP/1.1\r\nhost: a\r\n{}\r\n",
        "x: y\r\n".repeat(10_000)
    );

    let few = format!(
        "GET /a HTTP/1.1\r\nhost: a\r\n{}\r\n",
        "x: y\r\n".repeat(101)
    );

    let large = format!(
        "GET /a HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );

    let method = format!("{} /a HTTP/1.1\r\nhost: a\r\n\r\n", "G".repeat(64 * 1024));
    let host = format!("GET /a HTTP/1.1\r\nhost: {}\r\n\r\n", "a".repeat(8 * 1024));
    let options = format!(
        "GET /a HTTP/1.1\r\nhost: a\r\nconnection: {}\r\n\r\n",
        "x,".repeat(20_000)
    );

    for (name, request, status) in [
        ("line", line, "414"),
        ("many", many, "431"),
        ("a few too many", few, "431"),
        ("large", large, "431"),
        ("method", method, "414"),
        ("host", host, "400"),
        ("connection options", options, "400"),
    ] {
        is_refused(&bystander, name, request.as_bytes(), status).await;
    }

    bystander.is_served().await;
    assert!(!app.saw("/a"));
}

#[tokio::test]
async fn empty_lines_and_nothing_else_are_refused_at_once() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    is_refused(
        &bystander,
        "empty lines",
        "\r\n".repeat(30_000).as_bytes(),
        "400",
    )
    .await;

    let mut client = Client::connect(bystander.at).await;
    let (head, _) = client.ask("\n\nGET /bystander HTTP/1.1\nhost: a\n\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    bystander.is_served().await;
}

#[tokio::test]
async fn many_slow_heads_cost_nobody_else_anything() {
    let app = App::start().await;
    let limit = Duration::from_millis(200);
    let (running, mut bystander) =
        in_front(&app, |m| m.request_headers_timeout = Some(duration(limit))).await;
    let at = bystander.at;
    let slow = async move {
        let mut clients = Vec::new();
        for n in 0..200 {
            clients.push(tokio::spawn(async move {
                let mut client = Client::connect(at).await;
                client.send(format!("GET /slow-{n} HTTP/1.1\r\n")).await;

                // One byte at a time: the head has its time, not each of its bytes.
                let (mut read, mut write) = client.stream.split();
                let mut answer = [0; 12];
                tokio::select! {
                    read = read.read_exact(&mut answer) => {
                        read.expect("an answer");
                    }
                    () = async {
                        while write.write_all(b"x").await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        std::future::pending::<()>().await;
                    } => {}
                }

                answer
            }));
        }

        for client in clients {
            assert_eq!(&soon(client).await.expect("no panic"), b"HTTP/1.1 408");
        }
    };

    bystander.while_under(slow).await;
    assert!(!app.saw("slow"));
    until("only the bystander is left", || {
        running.handle.connections() == 1
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_pipelined_requests_are_answered_in_order() {
    const REQUESTS: usize = 10_000;

    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    let client = Client::connect(bystander.at).await;
    let (read, mut write) = client.stream.into_split();
    let writing = tokio::spawn(async move {
        for n in 0..REQUESTS {
            let request = format!("GET /pipelined-{n} HTTP/1.1\r\nhost: a\r\n\r\n");
            write.write_all(request.as_bytes()).await.expect("written");
        }
        write
    });

    let mut read = tokio::io::BufReader::new(read);
    let reading = async {
        for n in 0..REQUESTS {
            let body = peers::read_body(&mut read).await;
            assert!(
                body.starts_with(&format!("GET /pipelined-{n} HTTP/1.1\r\n")),
                "{n}: {body}"
            );
        }
    };

    bystander.while_under(reading).await;
    writing.await.expect("no panic");
}

#[tokio::test]
async fn clients_that_reset_leave_nothing_behind() {
    let app = App::start().await;
    let routes = vec![forward("/bystander", "up"), forward("/up", "up")];
    let (running, mut bystander) = in_front(&app, |m| {
        m.route_specifier = Some(inline(table("r", routes)))
    })
    .await;

    let at = bystander.at;
    let attack = async move {
        for n in 0..500 {
            let mut client = Client::connect(at).await;
            let path = if n % 2 == 0 { "/none" } else { "/up" };
            client
                .send(format!(
                    "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nabc"
                ))
                .await;
            // Answered locally or half forwarded: a reset either way.
            meltemi_net::socket::reset_on_close(&client.stream);
        }
    };

    bystander.while_under(attack).await;
    until("only the bystander is left", || {
        running.handle.connections() == 1
    })
    .await;

    assert!(!app.saw("/up"), "half a body is no request");
}
