//! TLS: hellos that are old, odd, cut into pieces or never end, and whoever stops half-way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meltemi_proto::envoy::config::core::v3::HttpProtocolOptions as CommonOptions;
use meltemi_proto::envoy::config::listener::v3 as proto;
use meltemi_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use meltemi_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use meltemi_proto::google::protobuf::UInt32Value;
use meltemi_proto::pack;
use meltemi_proxy::ProxyOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{App, Bystander, soon, until};
use crate::config::*;
use crate::peers::{self, Client};
use crate::tls::{Authority, inbound_with, outbound_with};

const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

/// A sidecar that wants mutual TLS, and somebody who speaks it, with a handshake for each request.
struct Strict {
    server: Running,
    at: SocketAddr,
    bystander: Bystander,
    _client: Running,
}

async fn strict(app: &App, handshake_within: Duration) -> Strict {
    let authority = Authority::new();
    let server = inbound_with(&authority, app.at, |chain| {
        chain.transport_socket_connect_timeout = Some(duration(handshake_within));
    })
    .await;

    let at = server.at("inbound").await;
    let client = outbound_with(&authority, at, SERVER, |cluster| {
        let options = HttpProtocolOptions {
            common_http_protocol_options: Some(CommonOptions {
                max_requests_per_connection: Some(UInt32Value { value: 1 }),
                ..Default::default()
            }),
            ..Default::default()
        };

        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster
            .typed_extension_protocol_options
            .insert(name.into(), pack(&options));
    })
    .await;

    let bystander = Bystander::at(client.at("outbound").await).await;

    Strict {
        server,
        at,
        bystander,
        _client: client,
    }
}

/// Handshakes that failed for a reason.
fn failed(running: &Running, reason: &str) -> usize {
    let start = format!("meltemi_downstream_tls_errors_total{{reason=\"{reason}\"}} ");
    let metrics = running.handle.metrics();
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(&start))
        .map_or(0, |count| count.parse().expect("a count"))
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [
        &u16::try_from(bytes.len()).expect("short").to_be_bytes()[..],
        bytes,
    ]
    .concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &sized(body)].concat()
}

/// A list of server names of type 0. RFC 6066 §3.
fn names(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|name| [&[0][..], &sized(name)].concat())
        .collect();
    extension(0, &sized(&list))
}

fn protocols(list: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = list
        .iter()
        .flat_map(|name| [&[name.len() as u8][..], name].concat())
        .collect();
    extension(16, &sized(&list))
}

/// A ClientHello of TLS 1.2 or older, with these extensions.
fn hello(version: u16, extensions: &[Vec<u8>]) -> Vec<u8> {
    let common = [
        extension(10, &sized(&[0, 0x1d, 0, 0x17])),
        extension(11, &[1, 0]),
        extension(13, &sized(&[4, 3, 8, 4, 4, 1])),
        extension(23, &[]),
    ]
    .concat();

    let mut body = version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(sized(&[0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x13, 0, 0x2f]));
    body.extend([1, 0]);
    body.extend(sized(&[common, extensions.concat()].concat()));
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();

    [&[1][..], &length[1..], &body].concat()
}

/// Handshake bytes in records of so many bytes.
fn records(handshake: &[u8], size: usize) -> Vec<u8> {
    handshake
        .chunks(size)
        .flat_map(|piece| [&[0x16, 3, 1][..], &sized(piece)].concat())
        .collect()
}

/// A hello as an honest library sends it.
fn honest(name: &'static str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(meltemi_tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();

    let name = name.try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut out = Vec::new();

    client.write_tls(&mut out).expect("to memory");

    out
}

/// The first byte of an answer; `None` if the connection ends without one.
async fn answer(at: SocketAddr, bytes: &[u8]) -> Option<u8> {
    let mut client = Client::connect(at).await;
    let _ = client.stream.write_all(bytes).await;
    soon(client.stream.read_u8()).await.ok()
}

const HANDSHAKE: Option<u8> = Some(0x16);

fn is_refusal(first: Option<u8>) -> bool {
    // An alert, or nothing.
    matches!(first, None | Some(0x15))
}

#[tokio::test]
async fn old_versions_are_refused() {
    let app = App::start().await;
    let mut strict = strict(&app, Duration::from_secs(10)).await;
    for (name, version) in [("SSL 3.0", 0x300), ("TLS 1.0", 0x301), ("TLS 1.1", 0x302)] {
        let first = answer(
            strict.at,
            &records(&hello(version, &[names(&[b"server"])]), 16_000),
        )
        .await;

        assert!(is_refusal(first), "{name}: {first:?}");

        // Whatever it also claims to speak.
        let claims = extension(43, &[2, (version >> 8) as u8, version as u8]);
        let first = answer(strict.at, &records(&hello(0x303, &[claims]), 16_000)).await;
        assert!(is_refusal(first), "{name} in supported_versions: {first:?}");
    }

    // SSL 2.0 has another form altogether.
    let first = answer(
        strict.at,
        &[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80],
    )
    .await;

    assert!(is_refusal(first), "SSL 2.0: {first:?}");
    let counted =
        || failed(&strict.server, "incompatible") == 6 && failed(&strict.server, "plaintext") == 1;
    until("each is counted", counted).await;
    strict.bystander.is_served().await;
}

#[tokio::test]
async fn a_hello_is_one_however_it_is_cut() {
    let app = App::start().await;
    let mut strict = strict(&app, Duration::from_secs(10)).await;
    let whole = honest("server");
    let handshake = &whole[5..];
    let mut bytewise = Client::connect(strict.at).await;

    bytewise.stream.set_nodelay(true).expect("an option");
    for byte in &whole {
        bytewise.send([*byte]).await;
    }
    assert_eq!(
        soon(bytewise.stream.read_u8()).await.ok(),
        HANDSHAKE,
        "in single bytes"
    );

    for size in [1, 2, 3, 5, 100] {
        assert_eq!(
            answer(strict.at, &records(handshake, size)).await,
            HANDSHAKE,
            "in records of {size}"
        );
    }

    strict.bystander.is_served().await;
}

#[tokio::test]
async fn odd_hellos_are_refused_and_cost_nothing() {
    let app = App::start().await;
    let mut strict = strict(&app, Duration::from_secs(2)).await;
    let many: Vec<Vec<u8>> = (0..1000)
        .map(|n: u32| format!("p{n}").into_bytes())
        .collect();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let large = hello(0x303, &[extension(21, &[0; 60_000])]);
    let mut long = hello(0x303, &[]);

    long[1..4].copy_from_slice(&[0xff; 3]);
    let mut zeros = vec![0x16, 3, 1, 0x40, 0];
    zeros.extend([0; 16_384]);
    for (name, bytes) in [
        ("64 KiB", records(&large, 16_000)),
        (
            "a length of 16 MiB",
            [records(&long, 16_000), vec![0; 64 * 1024]].concat(),
        ),
        ("junk in a record", zeros),
        (
            "a record of 64 KiB",
            [&[0x16, 3, 1, 0xff, 0xff][..], &[1; 70_000]].concat(),
        ),
        ("records without bytes", [0x16, 3, 1, 0, 0].repeat(10_000)),
        ("junk", vec![0xff; 1000]),
        (
            "application data",
            [0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5].to_vec(),
        ),
        ("an alert", [0x15, 3, 3, 0, 2, 2, 40].to_vec()),
        (
            "an empty protocol",
            records(&hello(0x303, &[extension(16, &sized(&[0]))]), 16_000),
        ),
        (
            "a list that lies",
            records(
                &hello(0x303, &[extension(16, &[0xff, 0xff, 1, b'x'])]),
                16_000,
            ),
        ),
        (
            "the same extension twice",
            records(&hello(0x303, &[names(&[b"a"]), names(&[b"b"])]), 16_000),
        ),
        (
            "two names",
            records(&hello(0x303, &[names(&[b"a", b"b"])]), 16_000),
        ),
        (
            "no name in the list",
            records(&hello(0x303, &[names(&[])]), 16_000),
        ),
        ("cut off", records(&hello(0x303, &[])[..60], 16_000)),
    ] {
        let first = answer(strict.at, &bytes).await;
        assert!(is_refusal(first), "{name}: {first:?}");
    }

    // Many protocols are many, and none of ours.
    let first = answer(
        strict.at,
        &records(&hello(0x303, &[protocols(&many)]), 16_000),
    )
    .await;

    assert_eq!(first, HANDSHAKE, "1000 protocols");

    // Names that are none: nobody is served under them, whether or not they are an error.
    for name in [
        &b""[..],
        b"a\0b",
        b"10.0.0.1",
        b".",
        b"a..b",
        b"\xff\xfe",
        b"-",
        &[b'a'; 300],
        b"a b",
        b"*.example",
    ] {
        let _ = answer(
            strict.at,
            &records(&hello(0x303, &[names(&[name])]), 16_000),
        )
        .await;
    }

    strict.bystander.is_served().await;
    until("nobody is left", || strict.server.handle.connections() <= 1).await;
}

#[tokio::test]
async fn half_open_handshakes_end_and_cost_nobody_else_anything() {
    const EACH: usize = 100;

    let app = App::start().await;
    let mut strict = strict(&app, Duration::from_millis(300)).await;
    let at = strict.at;
    let whole = honest("server");
    let attack = async {
        let mut held = Vec::new();
        for bytes in [
            &whole[..0],
            &whole[..1],
            &whole[..whole.len() / 2],
            &whole[..],
        ] {
            for _ in 0..EACH {
                let mut client = Client::connect(at).await;
                client.send(bytes).await;
                held.push(client);
            }
        }

        for mut client in held {
            // What was said before the end may be read: a ServerHello, for whoever asked.
            let mut all = Vec::new();
            let _ = soon(client.stream.read_to_end(&mut all)).await;
        }
    };

    strict.bystander.while_under(attack).await;
    until("each is counted", || {
        failed(&strict.server, "timeout") == 4 * EACH
    })
    .await;
}

#[tokio::test]
async fn plaintext_to_a_strict_port_reaches_nobody() {
    let app = App::start().await;
    let mut strict = strict(&app, Duration::from_secs(10)).await;
    for bytes in [
        &b"GET /secret HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"SSH-2.0-x\r\n",
        b"\r\n\r\nGET /secret HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET /secret HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\0",
    ] {
        assert_eq!(answer(strict.at, bytes).await, None, "not a byte");
    }

    strict.bystander.is_served().await;
    assert!(!app.saw("secret"));
    until("each is counted", || {
        failed(&strict.server, "plaintext") == 6
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_no_part_of_the_handshake_end_it() {
    let app = App::start().await;
    let mut strict = strict(&app, Duration::from_secs(10)).await;
    for junk in [
        &b"GET /secret HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        &[0x17, 3, 3, 0, 20],
        &[0x16; 64],
    ] {
        let mut client = Client::connect(strict.at).await;
        client.send(honest("server")).await;
        assert_eq!(soon(client.stream.read_u8()).await.ok(), HANDSHAKE);
        client.send([junk, &[0; 64]].concat()).await;
        let mut all = Vec::new();
        let _ = soon(client.stream.read_to_end(&mut all)).await;
    }

    strict.bystander.is_served().await;
    assert!(!app.saw("secret"));
}

/// Says its name as soon as somebody connects.
async fn named(name: &'static str) -> SocketAddr {
    peers::server(move |mut stream, _| async move {
        let mut first = [0];
        let _ = stream.read_exact(&mut first).await;
        let _ = stream.write_all(name.as_bytes()).await;
        let _ = stream.shutdown().await;
        while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
    })
    .await
}

#[tokio::test]
async fn a_name_is_found_in_any_case_and_nothing_else_passes_for_it() {
    let mut secret = tcp_chain("secret");
    secret.name = "secret".into();
    secret.filter_chain_match = Some(proto::FilterChainMatch {
        server_names: vec!["secret.example".into()],
        transport_protocol: "tls".into(),
        ..Default::default()
    });

    let mut sniffing = listener("in", vec![secret, tcp_chain("other")]);
    sniffing.listener_filters = vec![tls_inspector()];

    sniffing.listener_filters_timeout = Some(duration(Duration::from_secs(2)));
    let clusters = vec![
        static_cluster("secret", &[named("S").await]),
        static_cluster("other", &[named("O").await]),
    ];

    let running = Running::with(clusters, vec![sniffing]).await;
    let at = running.at("in").await;
    let of = |name: &[u8]| records(&hello(0x303, &[names(&[name])]), 16_000);
    let fragmented = records(&hello(0x303, &[names(&[b"secret.example"])]), 3);

    for (name, bytes, chain) in [
        ("the name", of(b"secret.example"), Some(b'S')),
        ("in capitals", of(b"SECRET.Example"), Some(b'S')),
        ("in many records", fragmented, Some(b'S')),
        ("another name", of(b"other.example"), Some(b'O')),
        ("a longer name", of(b"x.secret.example"), Some(b'O')),
        ("no name", records(&hello(0x303, &[]), 16_000), Some(b'O')),
        ("not TLS", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Some(b'O')),
    ] {
        assert_eq!(answer(at, &bytes).await, chain, "{name}");
    }

    for name in [
        &b"secret.example."[..],
        b"secret.example\0",
        b" secret.example",
        b"secret.example\0.other",
        b"",
    ] {
        assert_ne!(answer(at, &of(name)).await, Some(b'S'), "{name:?}");
    }
}

/// Waits for the first bytes of each connection.
fn tls_inspector() -> proto::ListenerFilter {
    proto::ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".into(),
        config_type: Some(proto::listener_filter::ConfigType::TypedConfig(pack(
            &TlsInspector::default(),
        ))),
        ..Default::default()
    }
}

#[tokio::test]
async fn silent_connections_of_one_address_keep_nobody_out() {
    const PLACES: usize = 4;
    const GREEDY: [u8; 4] = [127, 0, 0, 2];

    let app = App::start().await;
    let running = Running::start(ProxyOptions {
        strangers: PLACES,
        ..Default::default()
    });
    let routes = table("r", vec![forward("/", "app")]);
    let mut sniffing = listener("in", vec![http_chain(&manager(inline(routes)))]);
    sniffing.listener_filters = vec![tls_inspector()];
    sniffing.listener_filters_timeout = Some(duration(Duration::ZERO));
    running
        .apply(vec![static_cluster("app", &[app.at])], vec![sniffing])
        .await;
    let at = running.at("in").await;

    // A client that is slow to speak, and another one that has spoken.
    let mut slow = Client::connect(at).await;
    let mut known = Client::connect(at).await;
    let request = "GET /asked HTTP/1.1\nhost: a\n\n";
    assert!(
        soon(known.ask(request))
            .await
            .0
            .starts_with("HTTP/1.1 200 ")
    );

    let mut silent = Vec::new();
    for _ in 0..5 * PLACES {
        silent.push(Client::connect_from(GREEDY, at).await);
    }

    for source in [GREEDY, [127, 0, 0, 3], [127, 0, 0, 1]] {
        let mut newcomer = Client::connect_from(source, at).await;
        let (head, _) = soon(newcomer.ask(request)).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{source:?}: {head}");
    }

    // The eldest of the greedy address have made room, and nobody else has.
    assert!(soon(silent[0].closed()).await);
    for client in [&mut slow, &mut known] {
        let (head, _) = soon(client.ask(request)).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
}
