//! HTTP/2: frames that break the protocol, streams that nobody reads, and heads that mean something
//! else in HTTP/1.1.

use std::net::SocketAddr;
use std::time::Duration;

use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::*;
use super::{App, Bystander, until};
use crate::config::*;
use crate::peers;

/// A proxy in front of an application, and of one that never answers under `/silent`.
pub async fn in_front(
    app: &App,
    change: impl FnOnce(&mut HttpConnectionManager),
) -> (Running, Bystander) {
    let silent = peers::server(|mut stream, _| async move {
        let mut all = vec![0; 4096];
        while stream.read(&mut all).await.is_ok_and(|n| n > 0) {}
    })
    .await;

    let mut manager = manager(inline(table(
        "r",
        vec![forward("/silent", "silent"), forward("/", "up")],
    )));

    change(&mut manager);
    let clusters = vec![
        static_cluster("up", &[app.at]),
        static_cluster("silent", &[silent]),
    ];

    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let bystander = Bystander::at(running.at("in").await).await;

    (running, bystander)
}

/// The stream of the n-th request.
pub fn nth(n: u32) -> u32 {
    2 * n + 1
}

#[tokio::test]
async fn heads_that_grow_when_they_are_read_are_refused() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    let mut bomb = request("GET", "/a", &[]);

    bomb.extend(remembered(b"x", &[b'y'; 4000]));
    bomb.extend([0x80 | 62; 40]);
    let mut crumbs = request("GET", "/a", &[]);
    crumbs.extend(remembered(b"cookie", &[b'c'; 4000]));
    crumbs.extend([0x80 | 62; 40]);
    let mut small = request("GET", "/a", &[]);
    small.extend(remembered(b"cookie", b"c"));
    small.extend([0x80 | 62; 4000]);
    let mut many = request("GET", "/a", &[]);
    many.extend(remembered(b"x", b"y"));
    many.extend([0x80 | 62; 100]);
    for (name, head, outcome) in [
        ("a large field again and again", bomb, Outcome::Status(431)),
        ("large crumbs", crumbs, Outcome::Status(431)),
        ("small crumbs", small, Outcome::Status(431)),
        ("fields", many, Outcome::Status(431)),
    ] {
        let mut raw = Raw::connect(bystander.at).await;
        let said = raw
            .ask(&frame(HEADERS, END_HEADERS | END, 1, &head), 1)
            .await;
        assert_eq!(said.outcome(1), outcome, "{name}: {said:?}");

        // The connection goes on: whoever sent too much by mistake may ask again.
        assert_eq!(
            raw.ask(&get(3, "/after"), 3).await.outcome(3),
            Outcome::Status(200),
            "{name}"
        );
    }

    // A browser sends each of its cookies as a field.
    let mut cookies = request("GET", "/cookies", &[]);
    for n in 0..180 {
        cookies.extend(field(b"cookie", format!("c{n}=v").as_bytes()));
    }
    let mut raw = Raw::connect(bystander.at).await;
    let said = raw
        .ask(&frame(HEADERS, END_HEADERS | END, 1, &cookies), 1)
        .await;
    assert_eq!(said.outcome(1), Outcome::Status(200));
    bystander.is_served().await;
    assert!(!app.saw("GET /a ") && app.saw("c178=v; c179=v"));
}

#[tokio::test]
async fn streams_that_nobody_reads_are_let_go() {
    let large = peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        while peers::read_message(&mut stream, &mut waiting)
            .await
            .is_some()
        {
            let body = vec![b'x'; 1 << 20];
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream
                .write_all(&[head.as_bytes(), &body].concat())
                .await
                .is_err()
            {
                return;
            }
        }
    })
    .await;

    let app = App::start().await;
    let mut manager = manager(inline(table(
        "r",
        vec![forward("/bystander", "up"), forward("/large", "large")],
    )));

    manager.stream_idle_timeout = Some(duration(Duration::from_secs(1)));
    let clusters = vec![
        static_cluster("up", &[app.at]),
        static_cluster("large", &[large]),
    ];

    let running = Running::with(clusters, vec![listener("in", vec![http_chain(&manager)])]).await;
    let mut bystander = Bystander::at(running.at("in").await).await;
    let at = bystander.at;
    let attack = async {
        // SETTINGS_INITIAL_WINDOW_SIZE: nothing may be sent.
        let mut raw = Raw::with(at, &[(4, 0)]).await;
        let streams: Vec<u8> = (0..100).flat_map(|n| get(nth(n), "/large")).collect();
        raw.send(&streams).await;
        let said = raw.hear_until(|said| said.resets.len() == 100).await;
        assert!(
            said.resets.len() == 100 && said.goodbye.is_none(),
            "{said:?}"
        );

        // Others may come after them.
        raw.ask(&get(301, "/bystander"), 301).await.outcome(301)
    };

    // Its body may not be sent either, but its head may.
    assert_eq!(bystander.while_under(attack).await, Outcome::Status(200));
}

/// Name, frames on stream 1 or after it, the outcomes that are right.
type Broken = (&'static str, fn() -> Vec<u8>, &'static [Outcome]);

/// RFC 9113 has finer words for it, the codec has this one.
const MALFORMED: &[Outcome] = &[Outcome::Goodbye(PROTOCOL_ERROR)];

const BROKEN: &[Broken] = &[
    (
        "an even stream",
        || get(2, "/a"),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "stream 0",
        || get(0, "/a"),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "an older stream",
        || [get(5, "/b"), get(1, "/a")].concat(),
        &[
            Outcome::Goodbye(PROTOCOL_ERROR),
            Outcome::Goodbye(STREAM_CLOSED),
        ],
    ),
    (
        "HEADERS after the end",
        || [get(1, "/silent"), get(1, "/a")].concat(),
        &[
            Outcome::Reset(STREAM_CLOSED),
            Outcome::Goodbye(STREAM_CLOSED),
            Outcome::Goodbye(PROTOCOL_ERROR),
        ],
    ),
    (
        "DATA of an idle stream",
        || frame(DATA, END, 1, b"x"),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "RST_STREAM of an idle stream",
        || frame(RST_STREAM, 0, 1, &[0; 4]),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "WINDOW_UPDATE of an idle stream",
        || frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "CONTINUATION out of place",
        || frame(CONTINUATION, END_HEADERS, 1, b""),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "a frame amid a head",
        || {
            [
                frame(HEADERS, END, 1, &request("GET", "/a", &[])),
                frame(PING, 0, 0, &[0; 8]),
            ]
            .concat()
        },
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "PUSH_PROMISE from a client",
        || frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "SETTINGS of five bytes",
        || frame(SETTINGS, 0, 0, &[0; 5]),
        MALFORMED,
    ),
    (
        "SETTINGS of a stream",
        || frame(SETTINGS, 0, 1, &[]),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "a window of 2^31",
        || frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
        MALFORMED,
    ),
    (
        "PING of seven bytes",
        || frame(PING, 0, 0, &[0; 7]),
        MALFORMED,
    ),
    (
        "a frame of 17 KiB",
        || frame(DATA, 0, 1, &[0; 17 * 1024]),
        &[Outcome::Goodbye(FRAME_SIZE_ERROR)],
    ),
    (
        "a connection window beyond 2^31",
        || frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        &[Outcome::Goodbye(FLOW_CONTROL_ERROR)],
    ),
    (
        "padding longer than the frame",
        || [post(1, "/silent"), frame(DATA, 0x8, 1, &[200, 0, 0])].concat(),
        &[Outcome::Goodbye(PROTOCOL_ERROR)],
    ),
    (
        "a stream that depends on itself",
        || frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 16]),
        &[
            Outcome::Goodbye(PROTOCOL_ERROR),
            Outcome::Reset(PROTOCOL_ERROR),
        ],
    ),
    (
        "more data than the window",
        || {
            let mut all = post(1, "/silent");
            for _ in 0..70 {
                all.extend(frame(DATA, 0, 1, &[0; 16 * 1024]));
            }
            all
        },
        &[
            Outcome::Goodbye(FLOW_CONTROL_ERROR),
            Outcome::Reset(FLOW_CONTROL_ERROR),
        ],
    ),
    (
        "a broken header block",
        || frame(HEADERS, END_HEADERS | END, 1, &[0xff; 20]),
        &[
            Outcome::Goodbye(COMPRESSION_ERROR),
            Outcome::Goodbye(PROTOCOL_ERROR),
        ],
    ),
    (
        "an index beyond the table",
        || frame(HEADERS, END_HEADERS | END, 1, &[0x80 | 70]),
        &[
            Outcome::Goodbye(COMPRESSION_ERROR),
            Outcome::Goodbye(PROTOCOL_ERROR),
        ],
    ),
];

#[tokio::test]
async fn broken_frames_end_with_the_right_error() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    let mut wrong = Vec::new();

    for (name, frames, outcomes) in BROKEN {
        let mut raw = Raw::connect(bystander.at).await;
        let said = raw.ask(&frames(), 1).await;
        if !outcomes.contains(&said.outcome(1)) {
            wrong.push(format!("{name}: {said:?}"));
        }
    }

    assert!(wrong.is_empty(), "{wrong:#?}");
    bystander.is_served().await;
    assert!(!app.saw("/a "));
}

#[tokio::test]
async fn mistakes_that_are_rare_end_no_connection_however_long_it_lives() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    let mut raw = Raw::connect(bystander.at).await;

    for n in 0..400 {
        let mistake = frame(
            HEADERS,
            END_HEADERS | END,
            nth(2 * n),
            &request("GET", "/a", &[("connection", "close")]),
        );

        let said = raw.ask(&mistake, nth(2 * n)).await;
        assert_eq!(
            said.outcome(nth(2 * n)),
            Outcome::Reset(PROTOCOL_ERROR),
            "{n}: {said:?}"
        );

        let said = raw
            .ask(&get(nth(2 * n + 1), "/after"), nth(2 * n + 1))
            .await;
        assert_eq!(
            said.outcome(nth(2 * n + 1)),
            Outcome::Status(200),
            "{n}: {said:?}"
        );
    }

    bystander.is_served().await;
    assert!(!app.saw("/a "));
}

/// A malformed request is an error of its stream; RFC 9113 §8.1.1 lets it be one of the connection.
const MALFORMED_HEAD: &[Outcome] = &[
    Outcome::Reset(PROTOCOL_ERROR),
    Outcome::Goodbye(PROTOCOL_ERROR),
];
const BAD: &[Outcome] = &[Outcome::Status(400)];
const NO_ROUTE: &[Outcome] = &[Outcome::Status(404)];

/// Name, header block, whether a body of three bytes follows, outcome.
type Head = (&'static str, fn() -> Vec<u8>, bool, &'static [Outcome]);

const HEADS: &[Head] = &[
    (
        "upper-case name",
        || request("GET", "/a", &[("X-Upper", "1")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "a blank before a value",
        || request("GET", "/a", &[("x-role", " admin")]),
        false,
        BAD,
    ),
    (
        "a tab after a value",
        || request("GET", "/a", &[("x-role", "admin\t")]),
        false,
        BAD,
    ),
    (
        "two equal lengths",
        || {
            request(
                "POST",
                "/a",
                &[("content-length", "3"), ("content-length", "3")],
            )
        },
        true,
        BAD,
    ),
    (
        "two paths",
        || request("GET", "/a", &[(":path", "/b")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "two methods",
        || request("GET", "/a", &[(":method", "PUT")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "two authorities",
        || request("GET", "/a", &[(":authority", "b")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "unknown pseudo-header",
        || request("GET", "/a", &[(":other", "b")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "a response's pseudo-header",
        || request("GET", "/a", &[(":status", "200")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "pseudo-header after a field",
        || {
            block(&[
                (":method", "GET"),
                (":scheme", "http"),
                ("x", "y"),
                (":path", "/a"),
                (":authority", "a"),
            ])
        },
        false,
        MALFORMED_HEAD,
    ),
    (
        "no path",
        || block(&[(":method", "GET"), (":scheme", "http"), (":authority", "a")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "empty path",
        || request("GET", "", &[]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "no method",
        || block(&[(":scheme", "http"), (":authority", "a"), (":path", "/a")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "empty method",
        || request("", "/a", &[]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "method of two words",
        || request("GET /x", "/a", &[]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "small letters in the method",
        || request("get", "/a", &[]),
        false,
        BAD,
    ),
    (
        "line feed in a value",
        || request("GET", "/a", &[("x", "y\r\nhost: b")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "NUL in a value",
        || request("GET", "/a", &[("x", "y\0")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "line feed in a name",
        || request("GET", "/a", &[("x\r\ny", "z")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "colon in a name",
        || request("GET", "/a", &[("x:y", "z")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "blank in a name",
        || request("GET", "/a", &[("x ", "z")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "empty name",
        || request("GET", "/a", &[("", "z")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "line feed in the path",
        || request("GET", "/a HTTP/1.1\r\nhost: b\r\n\r\n", &[]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "blank in the path",
        || request("GET", "/a b", &[]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "path without slash",
        || request("GET", "a", &[]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "line feed in the authority",
        || {
            block(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "a\r\nx: y"),
                (":path", "/a"),
            ])
        },
        false,
        MALFORMED_HEAD,
    ),
    (
        "transfer-encoding",
        || request("POST", "/a", &[("transfer-encoding", "chunked")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "connection",
        || request("POST", "/a", &[("connection", "close")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "keep-alive",
        || request("POST", "/a", &[("keep-alive", "1")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "proxy-connection",
        || request("POST", "/a", &[("proxy-connection", "close")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "upgrade",
        || request("POST", "/a", &[("upgrade", "websocket")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "te",
        || request("POST", "/a", &[("te", "gzip")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "a body shorter than said",
        || request("POST", "/a", &[("content-length", "5")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "a body longer than said",
        || request("POST", "/a", &[("content-length", "2")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "a length and no body",
        || request("POST", "/a", &[("content-length", "2")]),
        false,
        MALFORMED_HEAD,
    ),
    (
        "two lengths",
        || {
            request(
                "POST",
                "/a",
                &[("content-length", "3"), ("content-length", "4")],
            )
        },
        true,
        MALFORMED_HEAD,
    ),
    (
        "a length that is none",
        || request("POST", "/a", &[("content-length", "+3")]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "unknown scheme",
        || {
            block(&[
                (":method", "GET"),
                (":scheme", "gopher"),
                (":authority", "a"),
                (":path", "/a"),
            ])
        },
        false,
        BAD,
    ),
    (
        "authority and host differ",
        || request("GET", "/a", &[("host", "b")]),
        false,
        BAD,
    ),
    (
        "two hosts",
        || {
            block(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/a"),
                ("host", "a"),
                ("host", "b"),
            ])
        },
        false,
        BAD,
    ),
    (
        "no host at all",
        || block(&[(":method", "GET"), (":scheme", "http"), (":path", "/a")]),
        false,
        BAD,
    ),
    (
        "user information",
        || {
            block(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "b@a"),
                (":path", "/a"),
            ])
        },
        false,
        BAD,
    ),
    (
        "a tunnel",
        || block(&[(":method", "CONNECT"), (":authority", "10.0.0.1:80")]),
        true,
        NO_ROUTE,
    ),
    (
        "a tunnel with a path",
        || request("CONNECT", "/a", &[]),
        true,
        MALFORMED_HEAD,
    ),
    (
        "an extended tunnel that was not offered",
        || request("CONNECT", "/a", &[(":protocol", "websocket")]),
        true,
        MALFORMED_HEAD,
    ),
];

#[tokio::test]
async fn heads_that_mean_something_else_in_http1_are_never_written_there() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    let mut wrong = Vec::new();

    for (name, head, body, outcomes) in HEADS {
        let mut raw = Raw::connect(bystander.at).await;
        let frames = match body {
            true => [
                frame(HEADERS, END_HEADERS, 1, &head()),
                frame(DATA, END, 1, b"abc"),
            ]
            .concat(),
            false => frame(HEADERS, END_HEADERS | END, 1, &head()),
        };

        let said = raw.ask(&frames, 1).await;
        if !outcomes.contains(&said.outcome(1)) {
            wrong.push(format!("{name}: {said:?}"));
        }
    }

    assert!(wrong.is_empty(), "{wrong:#?}");
    bystander.is_served().await;
    assert!(!app.saw("/a") && !app.saw("CONNECT"));

    // Whatever decides, decides without the fragment.
    let mut raw = Raw::connect(bystander.at).await;
    assert_eq!(
        raw.ask(&get(1, "/public#/admin"), 1).await.outcome(1),
        Outcome::Status(200)
    );

    assert!(app.saw("GET /public HTTP/1.1\r\n") && !app.saw("admin"));
}

#[tokio::test]
async fn schemes_are_one_in_any_case_and_there_is_one_authority() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    for (name, fields) in [
        (
            "mixed case",
            [
                (":scheme", "HtTp"),
                (":authority", "one.example"),
                ("host", "one.example"),
            ],
        ),
        (
            "the same host in another case",
            [
                (":scheme", "http"),
                (":authority", "one.example"),
                ("host", "ONE.example"),
            ],
        ),
        (
            "https is said, plaintext is spoken",
            [
                (":scheme", "https"),
                (":authority", "one.example"),
                ("x", "y"),
            ],
        ),
    ] {
        let path = format!("/{}", name.replace(' ', "-"));
        let mut head = block(&[(":method", "GET"), (":path", &path)]);
        head.extend(block(&fields));
        let mut raw = Raw::connect(bystander.at).await;
        let said = raw
            .ask(&frame(HEADERS, END_HEADERS | END, 1, &head), 1)
            .await;
        assert_eq!(said.outcome(1), Outcome::Status(200), "{name}: {said:?}");
        assert!(
            app.saw(&format!("GET {path} HTTP/1.1\r\nhost: one.example\r\n")),
            "{name}"
        );

        assert!(!app.saw("x-forwarded-proto: https"), "{name}");
    }

    bystander.is_served().await;
}

#[tokio::test]
async fn trailers_that_pretend_to_be_more_are_refused() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;
    for (name, trailers) in [
        ("a connection field", block(&[("connection", "close")])),
        ("an upper-case name", block(&[("X", "y")])),
        ("a line feed", block(&[("x", "y\r\nz: a")])),
        ("a blank before a value", block(&[("x", " y")])),
    ] {
        let mut raw = Raw::connect(bystander.at).await;
        let frames = [
            post(1, "/a"),
            frame(DATA, 0, 1, b"abc"),
            frame(HEADERS, END_HEADERS | END, 1, &trailers),
        ];

        let said = raw.ask(&frames.concat(), 1).await;
        assert!(
            [MALFORMED_HEAD, BAD].concat().contains(&said.outcome(1)),
            "{name}: {said:?}"
        );
    }

    assert!(!app.saw("/a "));

    // What a client says in a request's trailers does not arrive: neither another path nor a status
    // it cannot know.
    let mut raw = Raw::connect(bystander.at).await;
    let forged = block(&[
        (":path", "/b"),
        (":status", "200"),
        ("grpc-status", "0"),
        ("x-forwarded-for", "6.6.6.6"),
    ]);

    let frames = [
        post(1, "/forged"),
        frame(DATA, 0, 1, b"abc"),
        frame(HEADERS, END_HEADERS | END, 1, &forged),
    ];

    assert_eq!(
        raw.ask(&frames.concat(), 1).await.outcome(1),
        Outcome::Status(200)
    );

    assert!(
        app.saw("/forged") && !app.saw("grpc-status") && !app.saw("6.6.6.6") && !app.saw("/b ")
    );
    bystander.is_served().await;
}

#[tokio::test]
async fn junk_after_the_preface_and_half_a_preface_are_let_go() {
    let app = App::start().await;
    let limit = Some(duration(Duration::from_millis(200)));
    let (running, mut bystander) = in_front(&app, |m| {
        m.request_headers_timeout = limit;
        m.common_http_protocol_options = Some(
            meltemi_proto::envoy::config::core::v3::HttpProtocolOptions {
                idle_timeout: limit,
                ..Default::default()
            },
        );
    })
    .await;

    let at: SocketAddr = bystander.at;
    let mut held = Vec::new();
    for bytes in [
        &b"PRI * HTTP/2.0\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &preface(&[]),
        &preface(&[])[..30],
    ] {
        for _ in 0..50 {
            let mut client = peers::Client::connect(at).await;
            client.send(bytes).await;
            held.push(client);
        }
    }

    bystander.is_served().await;
    for mut client in held {
        while !super::soon(client.closed()).await {}
    }
    let mut junk = peers::Client::connect(at).await;
    junk.send([&preface(&[])[..], &[0xff; 1000]].concat()).await;
    while !super::soon(junk.closed()).await {}
    drop(bystander);
    until("nobody is left", || running.handle.connections() == 0).await;
}
