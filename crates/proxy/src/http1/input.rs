//! Bytes that were read from a connection and not used yet. Empty, it holds no memory.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use meltemi_net::Buffers;

use crate::io::Io;

/// The unread part of a connection's input.
#[derive(Debug)]
pub struct Input {
    buffers: Buffers,
    buffer: Vec<u8>,
    at: usize,
}

impl Input {
    /// Starts with bytes that were read before, for example by the sniffer.
    pub fn new(buffers: Buffers, first: Vec<u8>) -> Self {
        Self {
            buffers,
            buffer: first,
            at: 0,
        }
    }

    /// The unread bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.at == self.buffer.len()
    }

    /// Uses up the first `n` bytes. The last one gives the memory back.
    pub fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.buffer.len());
        if self.is_empty() {
            self.at = 0;
            if self.buffer.capacity() > 0 {
                self.buffers.give(std::mem::take(&mut self.buffer));
            }
        }
    }

    /// Takes everything that is there.
    pub fn take(&mut self) -> Vec<u8> {
        let rest = self.bytes().to_vec();
        self.consume(rest.len());
        rest
    }

    /// Reads more; 0 is the end. Memory is held only while bytes are.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, io: &Io) -> Poll<io::Result<usize>> {
        if self.is_empty() {
            let mut buffer = self.buffers.take();
            let read = io.poll_read(cx, &mut buffer);
            match read {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.buffer = buffer;
                    self.at = 0;
                }
                _ => self.buffers.give(buffer),
            }

            return read;
        }

        if self.at > 0 && self.buffer.capacity() - self.buffer.len() < self.buffers.size() / 4 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }

        if self.buffer.capacity() == self.buffer.len() {
            self.buffer.reserve(self.buffers.size());
        }

        io.poll_read(cx, &mut self.buffer)
    }

    /// Reads more; 0 is the end. Cancellation-safe.
    pub async fn fill(&mut self, io: &Io) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx, io)).await
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.consume(self.buffer.len());
    }
}
