//! Hashes, as Envoy computes them.

use twox_hash::XxHash64;

/// xxHash64 with a seed.
pub fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// The seed that libstdc++ uses, so that rings are the same as those of old Envoys.
pub const STD_HASH_SEED: u64 = 0xc70f_6907;

/// Murmur hash 2, 64 bits, as in libstdc++ (`murmurHash2_64` in Envoy).
pub fn murmur2(bytes: &[u8], seed: u64) -> u64 {
    const MUL: u64 = (0xc6a4_a793 << 32) + 0x5bd1_e995;

    let shift_mix = |value: u64| value ^ value >> 47;
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(MUL);
    let mut words = bytes.chunks_exact(8);

    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        hash ^= shift_mix(word.wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = hash.wrapping_mul(MUL);
    }

    let rest = words.remainder();
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        hash ^= u64::from_le_bytes(word);
        hash = hash.wrapping_mul(MUL);
    }

    shift_mix(shift_mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_published_ones() {
        assert_eq!(xxh64(b"", 0), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"foo", 0), 3_728_699_739_546_630_719);
        // Envoy: test/common/common/hash_test.cc.
        assert_eq!(xxh64(b"bar", 0), 5_234_164_152_756_840_025);
        assert_eq!(murmur2(b"foo", STD_HASH_SEED), 9_631_199_822_919_835_226);
        assert_eq!(murmur2(b"bar", STD_HASH_SEED), 11_474_628_671_133_349_555);
    }
}
