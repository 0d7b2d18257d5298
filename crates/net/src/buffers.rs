//! A pool of byte buffers for one thread. A connection takes a buffer while bytes are in flight and
//! gives it back while it waits, so that idle connections hold no memory.

use std::cell::RefCell;
use std::rc::Rc;

/// A free list of byte buffers. Cheap to clone; all clones share the list.
#[derive(Debug, Clone)]
pub struct Buffers {
    free: Rc<RefCell<Vec<Vec<u8>>>>,
    size: usize,
}

/// Buffers that a free list keeps at most.
const MAX_FREE: usize = 64;

impl Default for Buffers {
    fn default() -> Self {
        Self::new(16 * 1024)
    }
}

impl Buffers {
    /// Creates a pool of buffers with a capacity of `size` bytes. Default: 16 KiB.
    pub fn new(size: usize) -> Self {
        Self {
            free: Rc::default(),
            size,
        }
    }

    /// Capacity of a buffer in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Takes an empty buffer with a capacity of at least [`Buffers::size`] bytes.
    pub fn take(&self) -> Vec<u8> {
        self.free
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(self.size))
    }

    /// Gives a buffer back. A buffer that is smaller than [`Buffers::size`] or more than twice as
    /// large is dropped.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        let mut free = self.free.borrow_mut();
        if capacity >= self.size && capacity <= self.size * 2 && free.len() < MAX_FREE {
            buffer.clear();
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_grown_ones_are_dropped() {
        let buffers = Buffers::new(1024);
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"secret");
        buffers.give(buffer);
        assert!(buffers.take().is_empty());
        buffers.give(Vec::with_capacity(1 << 20));
        assert!(buffers.take().capacity() <= 2048);
    }
}
