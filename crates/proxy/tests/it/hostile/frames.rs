//! HTTP/2 frame by frame, for what no honest library would send.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use meltemi_net::inspect::H2_PREFACE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::soon;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// END_STREAM, and ACK of SETTINGS and PING.
pub const END: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const COMPRESSION_ERROR: u32 = 9;
pub const CALM: u32 = 11;

/// A frame on the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    let mut out = length.to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// RFC 7541 §5.1.
fn number(out: &mut Vec<u8>, prefix: u8, first: u8, value: usize) {
    let max = (1 << prefix) - 1;
    if value < max {
        out.push(first | value as u8);
        return;
    }

    out.push(first | max as u8);
    let mut rest = value - max;
    while rest >= 128 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }

    out.push(rest as u8);
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    number(out, 7, 0, text.len());
    out.extend_from_slice(text);
}

/// A field that is not to be remembered. RFC 7541 §6.2.2.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    text(&mut out, name);
    text(&mut out, value);
    out
}

/// A field that is to be remembered as the newest, index 62. RFC 7541 §6.2.1.
pub fn remembered(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0x40];
    text(&mut out, name);
    text(&mut out, value);
    out
}

/// A header block of these fields.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes()))
        .collect()
}

/// The header block of an ordinary request, with more fields.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut out = block(&[
        (":method", method),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", path),
    ]);
    out.extend(block(more));
    out
}

/// HEADERS of a whole GET.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END,
        stream,
        &request("GET", path, &[]),
    )
}

/// HEADERS of a POST whose body is still to come.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request("POST", path, &[]))
}

/// The preface and SETTINGS of these values.
pub fn preface(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in settings {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    [H2_PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()
}

/// What a server said, up to the end of its connection.
#[derive(Debug, Default)]
pub struct Said {
    /// The error of its last GOAWAY.
    pub goodbye: Option<u32>,
    /// Streams that it reset, with the error.
    pub resets: BTreeMap<u32, u32>,
    /// Streams that it answered, with the status.
    pub statuses: BTreeMap<u32, u16>,
    /// It ended the connection before it had all that was sent.
    pub cut: bool,
}

impl Said {
    fn hear(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        let word = |at: usize| {
            payload
                .get(at..at + 4)
                .map(|b| b.iter().fold(0, |n, b| n << 8 | u32::from(*b)))
        };

        match kind {
            HEADERS => {
                _ = self
                    .statuses
                    .entry(stream)
                    .or_insert_with(|| status(payload))
            }
            RST_STREAM => _ = self.resets.insert(stream, word(0).expect("a code")),
            GOAWAY => self.goodbye = word(4),
            _ => {}
        }
    }

    /// What became of a stream: its status, else its reset, else the end of the connection.
    pub fn outcome(&self, stream: u32) -> Outcome {
        match (
            self.statuses.get(&stream),
            self.resets.get(&stream),
            self.goodbye,
        ) {
            (Some(status), ..) => Outcome::Status(*status),
            (None, Some(code), _) => Outcome::Reset(*code),
            (None, None, Some(code)) => Outcome::Goodbye(code),
            (None, None, None) => Outcome::Nothing,
        }
    }
}

/// See [`Said::outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Status(u16),
    Reset(u32),
    Goodbye(u32),
    Nothing,
}

/// The status at the beginning of a response's header block; digits may be in Huffman's code. RFC
/// 7541. 0: it was said before, and is only referred to.
fn status(block: &[u8]) -> u16 {
    // A change of the table's size may come first.
    let start = block
        .iter()
        .position(|b| b & 0xe0 != 0x20)
        .expect("a field");

    let block = &block[start..];
    if block[0] & 0x80 != 0 {
        let known = [200, 204, 206, 304, 400, 404, 500];
        return known
            .get(usize::from(block[0] & 0x7f) - 8)
            .copied()
            .unwrap_or(0);
    }

    let length = usize::from(block[1] & 0x7f);
    let value = &block[2..2 + length];
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(value)
            .expect("digits")
            .parse()
            .expect("a status");
    }

    let bits: String = value.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut rest, mut status) = (bits.as_str(), 0);
    for _ in 0..3 {
        let (digit, used) = match rest.get(..5).expect("a digit") {
            "00000" => (0, 5),
            "00001" => (1, 5),
            "00010" => (2, 5),
            _ => (
                u16::from_str_radix(&rest[..6], 2).expect("bits") - 0b011001 + 3,
                6,
            ),
        };

        status = status * 10 + digit;
        rest = &rest[used..];
    }

    status
}

/// A connection of the test's own.
pub struct Raw {
    stream: TcpStream,
    waiting: Vec<u8>,
}

impl Raw {
    /// Connects and says the preface.
    pub async fn connect(at: SocketAddr) -> Self {
        Self::with(at, &[]).await
    }

    /// With SETTINGS of these values.
    pub async fn with(at: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut stream = TcpStream::connect(at).await.expect("connects");
        stream.write_all(&preface(settings)).await.expect("written");
        Self {
            stream,
            waiting: Vec::new(),
        }
    }

    /// Sends frames as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("written");
    }

    /// Sends `make(0)`, `make(1)`, … up to `most` of them or until the proxy has had enough, then
    /// ends its own side; listens all the while.
    pub async fn flood(self, most: u32, mut make: impl FnMut(u32) -> Vec<u8>) -> Said {
        let (mut read, mut write) = self.stream.into_split();
        let writing = async {
            let mut batch = Vec::new();
            for n in 0..most {
                batch.extend(make(n));
                if batch.len() > 16 * 1024 || n + 1 == most {
                    if write.write_all(&batch).await.is_err() {
                        return true;
                    }
                    batch.clear();
                }
            }

            let _ = write.shutdown().await;
            false
        };

        let listening = async {
            let mut said = Said::default();
            let mut waiting = self.waiting;
            while read.read_buf(&mut waiting).await.is_ok_and(|n| n > 0) {
                hear_all(&mut said, &mut waiting);
            }
            said
        };

        let (cut, said) = soon(async { tokio::join!(writing, listening) }).await;

        Said { cut, ..said }
    }

    /// Sends frames, and then listens to the end of the connection, or until a stream has its
    /// outcome.
    pub async fn ask(&mut self, bytes: &[u8], stream: u32) -> Said {
        // Closed already: what was said before is still to be heard.
        let _ = self.stream.write_all(bytes).await;
        self.hear_until(|said| said.outcome(stream) != Outcome::Nothing)
            .await
    }

    /// Listens until it has heard enough, or the connection ends.
    pub async fn hear_until(&mut self, enough: impl Fn(&Said) -> bool) -> Said {
        let mut said = Said::default();
        soon(async {
            while !enough(&said) {
                match self.stream.read_buf(&mut self.waiting).await {
                    Ok(n) if n > 0 => hear_all(&mut said, &mut self.waiting),
                    _ => break,
                }
            }
        })
        .await;

        said
    }
}

/// Takes whole frames off.
fn hear_all(said: &mut Said, waiting: &mut Vec<u8>) {
    while let Some(length) = waiting
        .get(..3)
        .map(|b| b.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    {
        let Some(whole) = waiting.get(..9 + length) else {
            return;
        };
        let stream = u32::from_be_bytes([whole[5], whole[6], whole[7], whole[8]]);
        said.hear(whole[3], stream, &whole[9..]);
        waiting.drain(..9 + length);
    }
}
