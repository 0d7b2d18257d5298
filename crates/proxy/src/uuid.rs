//! UUIDs from the worker's random numbers.

use uuid::Builder;

/// A version 4 UUID of 128 random bits, as text. RFC 9562 §5.4.
pub fn uuid(high: u64, low: u64) -> [u8; 36] {
    let bits = u128::from(high) << 64 | u128::from(low);
    let uuid = Builder::from_random_bytes(bits.to_be_bytes()).into_uuid();

    let mut text = [0; 36];
    uuid.hyphenated().encode_lower(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_variant_are_set() {
        assert_eq!(
            &uuid(u64::MAX, u64::MAX),
            b"ffffffff-ffff-4fff-bfff-ffffffffffff"
        );
        assert_eq!(&uuid(0, 0), b"00000000-0000-4000-8000-000000000000");
    }
}
