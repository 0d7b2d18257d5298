//! The server behind the proxies: answers every request head with the same few bytes, as fast as
//! one thread can.
//!
//! It must cost little beside a proxy: one epoll loop, no parsing beyond the end of heads,
//! pipelined requests answered in one write. Requests have no bodies here.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: bench\r\ncontent-length: 13\r\n\r\nhello, world\n";
const LISTENER: u64 = u64::MAX;
/// A client that never reads what it asked for is dropped at this many bytes.
const MAX_PENDING: usize = 1 << 20;

/// Serves on a port until the process ends: `cargo xtask bench-backend PORT`.
pub fn run(words: &[String]) -> Result<()> {
    let port: u16 = words.first().context("bench-backend PORT")?.parse()?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    listener.set_nonblocking(true)?;
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &poll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;

    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events = Vec::with_capacity(256);
    let mut buffer = vec![0; 64 * 1024];

    loop {
        match epoll::wait(&poll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }

        for event in events.drain(..) {
            let at = event.data.u64();
            if at == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let slot = free.pop().unwrap_or_else(|| {
                        connections.push(None);
                        connections.len() - 1
                    });

                    // Edges: each turn reads and writes until the socket says no.
                    let interest =
                        EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
                    epoll::add(&poll, &stream, EventData::new_u64(slot as u64), interest)?;
                    connections[slot] = Some(Connection {
                        stream,
                        heads: HeadCounter::default(),
                        pending: Vec::new(),
                    });
                }
            } else if let Ok(slot) = usize::try_from(at)
                && let Some(Some(connection)) = connections.get_mut(slot)
                && !connection.turn(&mut buffer)
            {
                // Closing takes it out of epoll, too.
                connections[slot] = None;
                free.push(slot);
            }
        }
    }
}

struct Connection {
    stream: TcpStream,
    heads: HeadCounter,
    pending: Vec<u8>,
}

impl Connection {
    /// Reads and answers all there is; false when the connection is over.
    fn turn(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    for _ in 0..self.heads.count(&buffer[..length]) {
                        self.pending.extend_from_slice(ANSWER);
                    }
                    if !self.flush() || self.pending.len() > MAX_PENDING {
                        return false;
                    }

                    // A short read has emptied the socket: whatever comes next is a new edge.
                    if length < buffer.len() {
                        return true;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.flush(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(0) => return false,
                Ok(length) => drop(self.pending.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }

        true
    }
}

/// Counts ends of heads in a stream of bytes.
#[derive(Debug, Default)]
struct HeadCounter {
    /// How much of CR LF CR LF has just been seen.
    matched: u8,
}

impl HeadCounter {
    fn count(&mut self, bytes: &[u8]) -> usize {
        let mut heads = 0;
        for byte in bytes {
            self.matched = match (self.matched, byte) {
                (0 | 2, b'\r') | (1, b'\n') => self.matched + 1,
                (3, b'\n') => {
                    heads += 1;
                    0
                }
                (_, b'\r') => 1,
                _ => 0,
            };
        }

        heads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_counted_wherever_they_are_cut() {
        let two = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        for cut in 0..=two.len() {
            let mut counter = HeadCounter::default();
            assert_eq!(
                counter.count(&two[..cut]) + counter.count(&two[cut..]),
                2,
                "cut at {cut}"
            );
        }

        assert_eq!(HeadCounter::default().count(b"\r\r\n\r\r\n\r\n"), 1);
    }
}
