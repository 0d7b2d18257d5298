//! Servers and clients that say exactly what a test wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server on a port of its own that answers each connection with `serve`.
pub async fn server<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let count = AtomicUsize::new(0);
        while let Ok((stream, _)) = listener.accept().await {
            let number = count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream, number));
        }
    });

    address
}

/// Reads one request: head and a body of known length or in chunks.
pub async fn read_message(
    stream: &mut TcpStream,
    waiting: &mut Vec<u8>,
) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(at) = waiting.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(waiting).await.ok()? == 0 {
            return None;
        }
    };

    let head: Vec<u8> = waiting.drain(..end).collect();
    let head = String::from_utf8_lossy(&head).into_owned();
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();

    if let Some(length) = lower
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next())
    {
        let length: usize = length.parse().expect("a length");
        while waiting.len() < length {
            if stream.read_buf(waiting).await.ok()? == 0 {
                return None;
            }
        }
        body.extend(waiting.drain(..length));
    } else if lower.contains("transfer-encoding: chunked") {
        loop {
            while !waiting.windows(2).any(|w| w == b"\r\n") {
                if stream.read_buf(waiting).await.ok()? == 0 {
                    return None;
                }
            }

            let line = waiting
                .windows(2)
                .position(|w| w == b"\r\n")
                .expect("just seen");

            let size =
                usize::from_str_radix(std::str::from_utf8(&waiting[..line]).expect("hex"), 16)
                    .expect("hex");
            while waiting.len() < line + 2 + size + 2 {
                if stream.read_buf(waiting).await.ok()? == 0 {
                    return None;
                }
            }

            body.extend_from_slice(&waiting[line + 2..line + 2 + size]);
            waiting.drain(..line + 2 + size + 2);
            if size == 0 {
                break;
            }
        }
    }

    Some((head, body))
}

/// Reads one response with a length, from a stream of many.
pub async fn read_body(stream: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> String {
    use tokio::io::AsyncBufReadExt;

    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("a line");
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().expect("a length");
        }
        if line == "\r\n" || line.is_empty() {
            break;
        }
    }

    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");

    String::from_utf8(body).expect("text")
}

/// An HTTP/1.1 server: `answer` turns head and body into a whole response.
pub async fn http_server<F>(answer: F) -> SocketAddr
where
    F: Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    server(move |mut stream, _| {
        let answer = answer.clone();
        async move {
            let mut waiting = Vec::new();
            while let Some((head, body)) = read_message(&mut stream, &mut waiting).await {
                if stream.write_all(&answer(&head, &body)).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Says who it is and what it was asked.
pub async fn echo(name: &'static str) -> SocketAddr {
    http_server(move |head, body| {
        let text = format!("{name}\n{head}{}", String::from_utf8_lossy(body));
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-name: {name}\r\n\r\n{text}",
            text.len()
        )
        .into_bytes()
    })
    .await
}

/// A port where nobody listens.
pub async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds")
        .local_addr()
        .expect("bound")
}

/// A client that writes bytes and reads messages.
pub struct Client {
    pub stream: TcpStream,
    waiting: Vec<u8>,
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(to).await.expect("connects"),
            waiting: Vec::new(),
        }
    }

    /// Connects from an address of the loopback network.
    pub async fn connect_from(source: [u8; 4], to: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("bound");
        Self {
            stream: socket.connect(to).await.expect("connects"),
            waiting: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .await
            .expect("written");
    }

    /// The next response; `None` if the connection ends first.
    pub async fn receive(&mut self) -> Option<(String, Vec<u8>)> {
        read_message(&mut self.stream, &mut self.waiting).await
    }

    /// The next head, of a response without a body.
    pub async fn read_head(&mut self) -> String {
        loop {
            if let Some(end) = self.waiting.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.waiting.drain(..end + 4).collect();
                return String::from_utf8(head).expect("text");
            }
            let read = self.stream.read_buf(&mut self.waiting).await;
            assert!(read.expect("reads") > 0, "the connection ended");
        }
    }

    pub async fn ask(&mut self, request: &str) -> (String, String) {
        self.send(request.replace('\n', "\r\n")).await;
        let (head, body) = self.receive().await.expect("a response");
        (head, String::from_utf8(body).expect("text"))
    }

    /// Whether the proxy closes the connection.
    pub async fn closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 16]).await, Ok(0) | Err(_))
    }
}

/// One GET on a connection of its own: status line and body.
pub async fn get(at: SocketAddr, path: &str) -> (String, String) {
    let mut client = Client::connect(at).await;
    client
        .ask(&format!("GET {path} HTTP/1.1\nhost: example\n\n"))
        .await
}
