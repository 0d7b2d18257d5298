//! A hasher for tables that are filled from configuration and looked up with what peers send. Peers
//! cannot insert, so they cannot make keys collide; speed is all that counts.

use std::hash::{BuildHasherDefault, Hasher};

/// For `HashMap`.
pub(crate) type FastHash = BuildHasherDefault<Fast>;

/// Multiply and rotate, a word at a time.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Fast(u64);

impl Fast {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for Fast {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.mix(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let rest = words.remainder();

        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }
    fn write_u16(&mut self, value: u16) {
        self.mix(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }
    fn finish(&self) -> u64 {
        // hashbrown takes its tag from the top bits and the bucket from the bottom ones.
        self.0 ^ self.0 >> 32
    }
}
