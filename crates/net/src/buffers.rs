//! A worker's spare buffers: whoever has bytes in flight takes one, whoever waits gives it back.

use std::cell::RefCell;
use std::rc::Rc;

/// A free list of byte buffers, for one thread.
#[derive(Debug, Clone)]
pub struct Buffers {
    free: Rc<RefCell<Vec<Vec<u8>>>>,
    size: usize,
}

/// How many buffers a free list keeps.
const KEEP: usize = 64;

impl Default for Buffers {
    fn default() -> Self {
        Self::new(16 * 1024)
    }
}

impl Buffers {
    /// Buffers with `size` bytes of room.
    pub fn new(size: usize) -> Self {
        Self {
            free: Rc::default(),
            size,
        }
    }

    /// How many bytes a buffer has room for.
    pub fn size(&self) -> usize {
        self.size
    }

    /// An empty buffer with room for at least [`Buffers::size`] bytes.
    pub fn take(&self) -> Vec<u8> {
        self.free
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(self.size))
    }

    /// Gives a buffer back. One that has grown or lost its memory is dropped.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        let mut free = self.free.borrow_mut();
        if capacity >= self.size && capacity <= self.size * 2 && free.len() < KEEP {
            buffer.clear();
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grown_buffer_does_not_come_back() {
        let buffers = Buffers::new(1024);
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"secret");
        buffers.give(buffer);
        assert!(buffers.take().is_empty());
        buffers.give(Vec::with_capacity(1 << 20));
        assert!(buffers.take().capacity() <= 2048);
    }
}
