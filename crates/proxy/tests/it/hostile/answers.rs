//! Answers at the edge of what is allowed, through stock Envoy and through us: what of them reaches
//! an HTTP/1.1 client.

use std::time::Duration;

use meltemi_proxy::ProxyOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::*;
use crate::config::*;
use crate::envoy::{self, Envoy};
use crate::peers::{self, Client};

/// What no body may hold.
const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";

fn fields(n: usize) -> String {
    (0..n).map(|n| format!("x-{n}: y\r\n")).collect()
}

/// Method, path, and what an HTTP/1.1 upstream answers.
fn answers1() -> Vec<(&'static str, String, Vec<u8>)> {
    let chunked = "3\r\nabc\r\n0\r\n\r\n";
    let mut all = vec![
        (
            "GET",
            "/chunked10".to_owned(),
            format!("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"),
        ),
        (
            "GET",
            "/chunked10-alive".to_owned(),
            format!(
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"
            ),
        ),
        (
            "HEAD",
            "/head".to_owned(),
            format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{POISON}"),
        ),
        (
            "GET",
            "/204".to_owned(),
            format!("HTTP/1.1 204 No Content\r\n\r\n{POISON}"),
        ),
        (
            "GET",
            "/304".to_owned(),
            format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\n{POISON}"),
        ),
        (
            "GET",
            "/lf".to_owned(),
            "HTTP/1.1 200 OK\ncontent-length: 3\nx: y\n\nabc".to_owned(),
        ),
        (
            "GET",
            "/lf-mixed".to_owned(),
            "HTTP/1.1 200 OK\r\ncontent-length: 3\nx: y\r\n\nabc".to_owned(),
        ),
        (
            "GET",
            "/lf-close".to_owned(),
            "HTTP/1.1 200 OK\n\nabc".to_owned(),
        ),
        (
            "GET",
            "/cr".to_owned(),
            "HTTP/1.1 200 OK\r\nx: y\rz: 1\r\ncontent-length: 3\r\n\r\nabc".to_owned(),
        ),
        (
            "GET",
            "/600".to_owned(),
            "HTTP/1.1 600 Odd\r\ncontent-length: 3\r\n\r\nabc".to_owned(),
        ),
        (
            "GET",
            "/999".to_owned(),
            "HTTP/1.1 999 Odd\r\ncontent-length: 3\r\n\r\nabc".to_owned(),
        ),
        (
            "GET",
            "/99".to_owned(),
            "HTTP/1.1 099 Odd\r\ncontent-length: 3\r\n\r\nabc".to_owned(),
        ),
    ];

    for n in [97, 98, 99, 100, 101, 102] {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{}\r\n",
            fields(n - 1)
        );
        all.push(("GET", format!("/fields-{n}"), head));
    }

    all.into_iter()
        .map(|(method, path, answer)| (method, path, answer.into_bytes()))
        .collect()
}

/// Method, path, and what an HTTP/2 upstream answers on stream 1.
fn answers2() -> Vec<(&'static str, String, Vec<u8>)> {
    let with_data = |status: &str| {
        let head = frame(HEADERS, END_HEADERS, 1, &block(&[(":status", status)]));
        [head, frame(DATA, END, 1, POISON.as_bytes())].concat()
    };

    let mut all = vec![
        ("GET", "/h2/204".to_owned(), with_data("204")),
        ("GET", "/h2/304".to_owned(), with_data("304")),
        ("HEAD", "/h2/head".to_owned(), with_data("200")),
    ];

    for n in [97, 98, 99, 100, 101, 102] {
        let mut head = block(&[(":status", "200")]);
        (0..n).for_each(|n| head.extend(field(format!("x-{n}").as_bytes(), b"y")));
        all.push((
            "GET",
            format!("/h2/fields-{n}"),
            frame(HEADERS, END_HEADERS | END, 1, &head),
        ));
    }

    all
}

/// Where we decide otherwise than Envoy: path, how our answer begins, and why that is right.
const OTHERWISE: &[(&str, &str, &str)] = &[
    (
        "/cr",
        "HTTP/1.1 502 ",
        "a CR alone ends no line, and no value holds one (RFC 9110 §5.5)",
    ),
    ("/h2/fields-100", "HTTP/1.1 200 ", "the status is no field"),
    (
        "/h2/fields-101",
        "HTTP/1.1 502 ",
        "it was not the upstream that reset the stream",
    ),
    (
        "/h2/fields-102",
        "HTTP/1.1 502 ",
        "it was not the upstream that reset the stream",
    ),
];

/// Status line and body, as far as the client gets them before the connection ends.
async fn outcome(at: std::net::SocketAddr, method: &str, path: &str) -> String {
    let mut client = Client::connect(at).await;
    client
        .send(format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        ))
        .await;

    let mut all = Vec::new();
    let read =
        tokio::time::timeout(Duration::from_secs(5), client.stream.read_to_end(&mut all)).await;
    let end = match read {
        Ok(Ok(_)) => "",
        Ok(Err(_)) => " and a reset",
        Err(_) => " and no end",
    };

    let text = String::from_utf8_lossy(&all).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));

    format!("{} | {body}{end}", head.lines().next().unwrap_or_default())
}

#[tokio::test]
async fn envoy_and_we_pass_the_same_answers_on() {
    let Some(program) = envoy::program("envoy_and_we_pass_the_same_answers_on") else {
        return;
    };
    let one = peers::server(|mut stream, _| async move {
        let mut waiting = Vec::new();
        let Some((head, _)) = peers::read_message(&mut stream, &mut waiting).await else {
            return;
        };
        let path = head.split(' ').nth(1).expect("a path");
        if let Some((.., answer)) = answers1().into_iter().find(|(_, name, _)| name == path) {
            let _ = stream.write_all(&answer).await;
        }
    })
    .await;

    let mut clusters = vec![static_cluster("one", &[one])];
    let mut routes = Vec::new();
    for (_, path, answer) in answers2() {
        clusters.push(http2(static_cluster(
            &path,
            &[super::upstream::h2(answer).await],
        )));
        routes.push(forward(&path, &path));
    }

    routes.push(forward("/", "one"));
    let mut manager = manager(inline(table("r", routes)));
    manager.access_log.clear();
    let listeners = vec![listener("in", vec![http_chain(&manager)])];
    let theirs = Envoy::start(program, clusters.clone(), |_| listeners.clone()).await;
    let ours = Running::start(ProxyOptions::default());

    ours.apply(clusters, listeners.clone()).await;
    let (their, our) = (theirs.at("in").await, ours.at("in").await);
    let mut different = Vec::new();
    for (method, path, _) in answers1().into_iter().chain(answers2()) {
        let (envoy, we) = (
            outcome(their, method, &path).await,
            outcome(our, method, &path).await,
        );

        let right = match OTHERWISE.iter().find(|(name, ..)| *name == path) {
            Some((_, start, _)) => we.starts_with(start),
            None => envoy == we,
        };

        if !right {
            different.push(format!(
                "{method} {path}:\n  Envoy {envoy:?}\n  we    {we:?}"
            ));
        }
    }

    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );
}
