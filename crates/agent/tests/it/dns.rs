//! DNS over real sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meltemi_agent::dns::{DnsOptions, DnsServer, Forwarder, NameIndex, Names, UpstreamForwarder};
use meltemi_agent::{AgentMetrics, BoxFuture};
use meltemi_proto::istio::{NameInfo, NameTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut out: Vec<u8> = [0x4242u16, 0x0100, 1, 0, 0, 0]
        .into_iter()
        .flat_map(u16::to_be_bytes)
        .collect();

    for label in name.split('.') {
        out.push(u8::try_from(label.len()).expect("short"));
        out.extend(label.bytes());
    }

    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend(1u16.to_be_bytes());

    out
}

/// Response code, number of answers, and the last four bytes: an IPv4 address if there is an
/// answer.
fn read(answer: &[u8]) -> (u8, u16, [u8; 4]) {
    assert!(
        answer.len() >= 12 && answer[..2] == [0x42, 0x42] && answer[2] & 0x80 != 0,
        "{answer:?}"
    );

    let tail = answer[answer.len() - 4..].try_into().expect("four bytes");
    (
        answer[3] & 15,
        u16::from_be_bytes([answer[6], answer[7]]),
        tail,
    )
}

fn names() -> Names {
    let entry = |ips: &[&str]| NameInfo {
        ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
        ..NameInfo::default()
    };

    let many: Vec<String> = (0..120).map(|i| format!("10.44.1.{i}")).collect();
    let table = NameTable {
        table: [
            (
                "details.default.svc.cluster.local".to_owned(),
                entry(&["10.45.0.3"]),
            ),
            ("*.wild.example".to_owned(), entry(&["240.240.0.1"])),
            (
                "many.default.svc.cluster.local".to_owned(),
                entry(&many.iter().map(String::as_str).collect::<Vec<_>>()),
            ),
        ]
        .into(),
    };

    let names = Names::default();
    names.set(NameIndex::from_tables([&table]));

    names
}

fn options() -> DnsOptions {
    let search = [
        "default.svc.cluster.local",
        "svc.cluster.local",
        "cluster.local",
    ]
    .map(str::to_owned)
    .to_vec();

    DnsOptions {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        zones: vec!["cluster.local".into()],
        ..DnsOptions::new(search)
    }
}

async fn serve(
    options: DnsOptions,
    forwarder: Arc<dyn Forwarder>,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let server = DnsServer::bind(options, names(), forwarder, AgentMetrics::default())
        .await
        .expect("bound");
    (server.address().expect("bound"), tokio::spawn(server.run()))
}

async fn ask(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    socket.send_to(query, server).await.expect("sent");
    let mut buffer = vec![0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer))
        .await
        .expect("an answer")
        .expect("received");
    buffer.truncate(length);
    buffer
}

async fn ask_tcp(stream: &mut TcpStream, query: &[u8]) -> Vec<u8> {
    let framed = [
        &u16::try_from(query.len()).expect("short").to_be_bytes()[..],
        query,
    ]
    .concat();

    stream.write_all(&framed).await.expect("sent");
    let length = stream.read_u16().await.expect("an answer");
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.expect("an answer");

    answer
}

/// Answers every query with its own bytes as a response, and 9.9.9.9 behind.
async fn upstream() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let address = socket.local_addr().expect("bound");
    let task = tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let mut answer = buffer[..length].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 9, 9, 9, 9]);
            let _ = socket.send_to(&answer, peer).await;
        }
    });

    (address, task)
}

#[tokio::test]
async fn mesh_names_are_answered_locally_and_others_upstream() {
    let (up, _up) = upstream().await;
    let (server, task) = serve(options(), Arc::new(UpstreamForwarder::new(vec![up], None))).await;
    for name in [
        "details.default.svc.cluster.local",
        "details",
        "DETAILS.default",
    ] {
        assert_eq!(
            read(&ask(server, &query(name, 1)).await),
            (0, 1, [10, 45, 0, 3]),
            "{name}"
        );
    }

    assert_eq!(
        read(&ask(server, &query("x.wild.example", 1)).await),
        (0, 1, [240, 240, 0, 1])
    );

    let (code, count, _) = read(&ask(server, &query("details", 28)).await);
    assert_eq!((code, count), (0, 0), "no IPv6, and no error");
    let (code, count, _) = read(&ask(server, &query("nobody.default.svc.cluster.local", 1)).await);
    assert_eq!((code, count), (3, 0), "denied here");
    assert_eq!(
        read(&ask(server, &query("example.com", 1)).await),
        (0, 1, [9, 9, 9, 9])
    );

    task.abort();
}

#[tokio::test]
async fn an_answer_truncated_over_udp_is_complete_over_tcp() {
    let (server, task) = serve(
        options(),
        Arc::new(UpstreamForwarder::new(Vec::new(), None)),
    )
    .await;

    let udp = ask(server, &query("many", 1)).await;
    assert!(udp.len() <= 512 && udp[2] & 2 == 2);
    let mut stream = TcpStream::connect(server).await.expect("connected");
    let (code, count, _) = read(&ask_tcp(&mut stream, &query("many", 1)).await);
    assert_eq!((code, count), (0, 120));

    // The same connection serves the next query.
    assert_eq!(
        read(&ask_tcp(&mut stream, &query("details", 1)).await),
        (0, 1, [10, 45, 0, 3])
    );

    task.abort();
}

/// A connection to the server from an address of the loopback network.
async fn connect_from(last: u8, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let source = SocketAddr::from(([127, 0, 0, last], 0));
    socket.bind(source).expect("bound");
    socket.connect(server).await.expect("connected")
}

#[tokio::test]
async fn silent_tcp_connections_keep_nobody_from_an_answer() {
    const PLACES: usize = 4;

    let few = DnsOptions {
        connections: PLACES,
        idle: Duration::from_secs(600),
        ..options()
    };
    let (server, task) = serve(few, Arc::new(UpstreamForwarder::new(Vec::new(), None))).await;
    let details = query("details", 1);

    let mut honest = connect_from(1, server).await;
    assert_eq!(read(&ask_tcp(&mut honest, &details).await).1, 1);
    let mut silent = Vec::new();
    for _ in 0..5 * PLACES {
        silent.push(connect_from(2, server).await);
    }

    // A newcomer is answered, whether or not its address is that of the silent ones, and the honest
    // client keeps its connection.
    for last in [2, 3] {
        let mut newcomer = connect_from(last, server).await;
        assert_eq!(read(&ask_tcp(&mut newcomer, &details).await).1, 1);
    }
    assert_eq!(read(&ask_tcp(&mut honest, &details).await).1, 1);

    // The eldest silent connections made room.
    let ended = silent[0].read_u8();
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
    assert!(ended.expect("closed").is_err());

    task.abort();
}

#[tokio::test]
async fn a_tcp_connection_that_asks_again_and_again_outlives_silent_ones_of_its_source() {
    let few = DnsOptions {
        connections: 2,
        idle: Duration::from_secs(600),
        ..options()
    };
    let (server, task) = serve(few, Arc::new(UpstreamForwarder::new(Vec::new(), None))).await;
    let details = query("details", 1);

    let mut busy = connect_from(1, server).await;
    assert_eq!(read(&ask_tcp(&mut busy, &details).await).1, 1);
    for _ in 0..3 {
        let mut silent = connect_from(1, server).await;
        assert_eq!(read(&ask_tcp(&mut silent, &details).await).1, 1);

        // Its place is younger than that of the silent connection from here on.
        assert_eq!(read(&ask_tcp(&mut busy, &details).await).1, 1);
        let _younger = connect_from(1, server).await;
        assert!(silent.read_u8().await.is_err(), "the silent one is closed");
        assert_eq!(read(&ask_tcp(&mut busy, &details).await).1, 1);
    }

    task.abort();
}

#[tokio::test]
async fn an_unreachable_upstream_gives_servfail() {
    let (server, task) = serve(
        options(),
        Arc::new(UpstreamForwarder::new(Vec::new(), None)),
    )
    .await;
    assert_eq!(read(&ask(server, &query("example.com", 1)).await).0, 2);
    let garbage = [0x42, 0x42, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    assert_eq!(ask(server, &garbage).await[3] & 15, 1, "malformed");
    task.abort();
}

/// Never answers.
struct Silent;

impl Forwarder for Silent {
    fn forward<'a>(&'a self, _: &'a [u8], _: bool) -> BoxFuture<'a, io::Result<Vec<u8>>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_flood_of_foreign_names_does_not_stop_the_mesh() {
    let (server, task) = serve(
        DnsOptions {
            in_flight: 4,
            ..options()
        },
        Arc::new(Silent),
    )
    .await;

    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    for _ in 0..100 {
        socket
            .send_to(&query("example.com", 1), server)
            .await
            .expect("sent");
    }

    assert_eq!(
        read(&ask(server, &query("details", 1)).await),
        (0, 1, [10, 45, 0, 3])
    );

    task.abort();
}
