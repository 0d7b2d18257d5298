//! Floods over HTTP/2: frames that cost the proxy more than the client.

use std::time::Duration;

use super::frames::*;
use super::http2::{in_front, nth};
use super::{App, until};

/// Name, what opens the connection, what is then repeated.
type Flood = (&'static str, fn() -> Vec<u8>, fn(u32) -> Vec<u8>);

const FLOODS: &[Flood] = &[
    ("rapid reset", Vec::new, |n| {
        [
            get(nth(n), "/silent"),
            frame(RST_STREAM, 0, nth(n), &8_u32.to_be_bytes()),
        ]
        .concat()
    }),
    ("rapid reset of uploads", Vec::new, |n| {
        [
            post(nth(n), "/silent"),
            frame(RST_STREAM, 0, nth(n), &8_u32.to_be_bytes()),
        ]
        .concat()
    }),
    ("more streams than are allowed", Vec::new, |n| {
        post(nth(n), "/silent")
    }),
    ("empty window updates", Vec::new, |n| {
        [
            post(nth(n), "/silent"),
            frame(WINDOW_UPDATE, 0, nth(n), &[0; 4]),
        ]
        .concat()
    }),
    ("windows beyond 2^31", Vec::new, |n| {
        [
            post(nth(n), "/silent"),
            frame(WINDOW_UPDATE, 0, nth(n), &[0x7f, 0xff, 0xff, 0xff]),
        ]
        .concat()
    }),
    ("data after the end", Vec::new, |n| {
        [get(nth(n), "/silent"), frame(DATA, 0, nth(n), b"x")].concat()
    }),
    ("heads that break the protocol", Vec::new, |n| {
        frame(
            HEADERS,
            END_HEADERS | END,
            nth(n),
            &request("GET", "/silent", &[("connection", "close")]),
        )
    }),
    ("bodies that are not as long as said", Vec::new, |n| {
        let head = request("POST", "/silent", &[("content-length", "1")]);
        [
            frame(HEADERS, END_HEADERS, nth(n), &head),
            frame(DATA, END, nth(n), b"too long"),
        ]
        .concat()
    }),
    (
        "CONTINUATION without bytes",
        || frame(HEADERS, END, 1, &request("GET", "/", &[])),
        |_| frame(CONTINUATION, 0, 1, b""),
    ),
    (
        "CONTINUATION with fields",
        || frame(HEADERS, END, 1, &request("GET", "/", &[])),
        |_| frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(1000))])),
    ),
    (
        "a large field again and again",
        || {
            let mut head = request("GET", "/", &[]);
            head.extend(remembered(b"x", &[b'y'; 4000]));
            frame(HEADERS, END, 1, &head)
        },
        |_| frame(CONTINUATION, 0, 1, &[0x80 | 62; 16_000]),
    ),
    (
        "empty DATA",
        || post(1, "/silent"),
        |_| frame(DATA, 0, 1, b""),
    ),
    (
        "padding and nothing else",
        || post(1, "/silent"),
        |_| frame(DATA, 0x8, 1, &[0]),
    ),
    ("SETTINGS", Vec::new, |_| frame(SETTINGS, 0, 0, &[])),
    ("SETTINGS that change something", Vec::new, |n| {
        frame(
            SETTINGS,
            0,
            0,
            &[&4_u16.to_be_bytes()[..], &(n & 0xffff).to_be_bytes()].concat(),
        )
    }),
    ("PING", Vec::new, |n| {
        frame(PING, 0, 0, &u64::from(n).to_be_bytes())
    }),
    ("PING answers", Vec::new, |n| {
        frame(PING, END, 0, &u64::from(n).to_be_bytes())
    }),
    ("PRIORITY", Vec::new, |n| {
        frame(PRIORITY, 0, nth(n % 1000), &[0, 0, 0, 0, 16])
    }),
    ("WINDOW_UPDATE", Vec::new, |_| {
        frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())
    }),
    (
        "WINDOW_UPDATE of a stream",
        || post(1, "/silent"),
        |_| frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()),
    ),
    ("frames of no known type", Vec::new, |_| {
        frame(0xfe, 0, 0, b"")
    }),
];

#[tokio::test]
async fn floods_end_the_connection_and_only_that() {
    let app = App::start().await;
    let (running, mut bystander) = in_front(&app, |_| {}).await;
    let at = bystander.at;
    let mut wrong = Vec::new();

    for (name, open, more) in FLOODS {
        let attack = async {
            let mut raw = Raw::connect(at).await;
            raw.send(&open()).await;
            raw.flood(200_000, more).await
        };

        let said = bystander.while_under(attack).await;

        // Where one such frame is an error of the connection already, that is as good. Whoever
        // sends and does not listen may miss the reason.
        if !matches!(
            (said.goodbye, said.cut),
            (Some(CALM | PROTOCOL_ERROR), _) | (None, true)
        ) {
            wrong.push(format!("{name}: {:?}", said.goodbye));
        }
    }

    assert!(wrong.is_empty(), "{wrong:#?}");
    until("only the bystander is left", || {
        running.handle.connections() == 1
    })
    .await;

    let metrics = running.handle.metrics();
    assert!(
        metrics.contains("meltemi_refused_connections_total{cause_kind=\"overload\",flag=\"OM\"}"),
        "{metrics}"
    );
}

#[tokio::test]
async fn resets_of_requests_that_a_fault_delays_are_a_flood_too() {
    let app = App::start().await;
    let (running, mut bystander) = in_front(&app, |manager| {
        manager.http_filters.insert(
            0,
            crate::filters::delay(Duration::from_secs(3600), Some("/delayed")),
        );
    })
    .await;

    let at = bystander.at;
    let reset = frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    let mut one = Raw::connect(at).await;

    one.send(&[get(1, "/delayed/one"), reset].concat()).await;
    running
        .log
        .line_with("0 DI,DC downstream_remote_disconnect /delayed/one up ")
        .await;

    drop(one);
    let attack = async {
        Raw::connect(at)
            .await
            .flood(20_000, |n| {
                [
                    get(nth(n), "/delayed"),
                    frame(RST_STREAM, 0, nth(n), &8_u32.to_be_bytes()),
                ]
                .concat()
            })
            .await
    };

    let said = bystander.while_under(attack).await;
    assert!(
        matches!((said.goodbye, said.cut), (Some(CALM), _) | (None, true)),
        "{:?}",
        said.goodbye
    );

    until("only the bystander is left", || {
        running.handle.connections() == 1
    })
    .await;
}

#[tokio::test]
async fn what_looks_busy_and_is_honest_is_no_flood() {
    let app = App::start().await;
    let (_running, mut bystander) = in_front(&app, |_| {}).await;

    // As many frames of control as of payload, for a long time.
    let mut raw = Raw::connect(bystander.at).await;
    for n in 0..2000 {
        let busy = [
            frame(PING, 0, 0, &[0; 8]),
            post(nth(n), "/busy"),
            frame(PRIORITY, 0, nth(n), &[0, 0, 0, 0, 16]),
            frame(DATA, 0, nth(n), &[b'x'; 100]),
            frame(DATA, END, nth(n), b""),
            frame(WINDOW_UPDATE, 0, 0, &1000_u32.to_be_bytes()),
        ];

        let said = raw.ask(&busy.concat(), nth(n)).await;
        assert_eq!(said.outcome(nth(n)), Outcome::Status(200), "{n}: {said:?}");
    }

    bystander.is_served().await;
}
