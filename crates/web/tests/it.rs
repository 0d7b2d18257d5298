//! The server and the client against each other, and against clients that misbehave.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use meltemi_web::{Answer, Limits, WhenFull, call, call_at, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(20);

async fn echo_path<P>(request: Request<Incoming>, _peer: P) -> Answer {
    Answer::new(Full::new(Bytes::from(request.uri().path().to_owned())))
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path)
        .header("host", "localhost")
        .body(Full::default())
        .expect("a request")
}

/// A server, and the way to stop it.
async fn server(limits: Limits) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = oneshot::channel();
    let serving = tokio::spawn(serve(listener, limits, echo_path, async {
        let _ = stopped.await;
    }));
    (address, stop, serving)
}

/// Waits until the other end closes.
async fn read_to_end(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await;
    // A reset closes as well as an end.
    let _ = read.expect("the server closes the connection");
    text
}

#[tokio::test]
async fn a_request_is_answered_over_tcp_and_over_a_unix_socket() {
    let (address, _stop, _serving) = server(Limits::default()).await;
    let answer = call_at(address, get("/a"), 100, PATIENCE).await;
    assert_eq!(answer.expect("an answer").into_body(), "/a");

    let folder = tempfile::tempdir().expect("temp dir");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("binds");
    tokio::spawn(serve(
        listener,
        Limits::default(),
        echo_path,
        std::future::pending(),
    ));
    let stream = UnixStream::connect(&path).await.expect("connects");
    let answer = call(stream, get("/b"), 100).await.expect("an answer");
    assert_eq!(answer.into_body(), "/b");
}

#[tokio::test]
async fn a_longer_answer_than_allowed_and_a_silent_server_are_errors() {
    let (address, _stop, _serving) = server(Limits::default()).await;
    assert!(call_at(address, get("/abc"), 3, PATIENCE).await.is_err());

    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = silent.local_addr().expect("bound");
    let error = call_at(address, get("/"), 3, Duration::from_millis(50))
        .await
        .expect_err("nobody answers");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_connection_beyond_the_limit_takes_the_eldests_place_or_waits() {
    let evicting = Limits {
        connections: 1,
        when_full: WhenFull::Evict,
        ..Limits::default()
    };
    let (address, _stop, _serving) = server(evicting).await;
    let mut first = TcpStream::connect(address).await.expect("connects");
    first
        .write_all(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("written");
    first
        .read_u8()
        .await
        .expect("the first connection has its place");
    let answer = call_at(address, get("/2"), 100, PATIENCE).await;
    assert_eq!(answer.expect("the second has it now").into_body(), "/2");
    assert!(
        read_to_end(first).await.ends_with("/1"),
        "and the first is closed"
    );

    let waiting = Limits {
        connections: 1,
        ..Limits::default()
    };
    let (address, _stop, _serving) = server(waiting).await;
    let mut first = TcpStream::connect(address).await.expect("connects");
    first
        .write_all(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("written");
    first
        .read_u8()
        .await
        .expect("the first connection has its place");
    let second = tokio::spawn(call_at(address, get("/2"), 100, PATIENCE));
    drop(first);
    let answer = second.await.expect("no panic").expect("an answer");
    assert_eq!(answer.into_body(), "/2");
}

#[tokio::test]
async fn clients_that_dawdle_are_cut_off() {
    let impatient = Limits {
        header_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let (address, _stop, _serving) = server(impatient).await;
    let mut slow = TcpStream::connect(address).await.expect("connects");
    slow.write_all(b"GET / HT").await.expect("written");
    assert!(!read_to_end(slow).await.contains("200 OK"));

    let brief = Limits {
        connection_time: Some(Duration::from_millis(50)),
        ..Limits::default()
    };
    let (address, _stop, _serving) = server(brief).await;
    let mut kept = TcpStream::connect(address).await.expect("connects");
    kept.write_all(b"GET /kept HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("written");
    assert!(read_to_end(kept).await.ends_with("/kept"));
}

#[tokio::test]
async fn a_stopped_server_closes_idle_connections_and_returns() {
    let (address, stop, serving) = server(Limits::default()).await;
    let mut idle = TcpStream::connect(address).await.expect("connects");
    idle.write_all(b"GET /idle HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .expect("written");
    idle.read_u8().await.expect("an answer begins");

    stop.send(()).expect("the server runs");
    assert!(read_to_end(idle).await.ends_with("/idle"));
    tokio::time::timeout(PATIENCE, serving)
        .await
        .expect("the server returns")
        .expect("without a panic");
}
