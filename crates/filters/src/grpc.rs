//! gRPC: counting of messages in a body that passes by. Source: gRPC over HTTP/2,
//! "Length-Prefixed-Message".

/// The gRPC status that an HTTP status stands for. Source: gRPC "HTTP to gRPC Status Code Mapping",
/// and Envoy for 429.
pub fn status_of_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The length of a message's prefix: one byte of flags, four of length.
const PREFIX: u8 = 5;

/// Where one direction of a gRPC exchange stands. Sees every byte of the body once, in order, in
/// pieces of any size; a message counts once its prefix is whole. Looks at prefixes alone, so a
/// large message costs as little as a small one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MessageCount {
    messages: u64,
    /// Bytes of the current message that are still to pass.
    left: u32,
    /// The length in the prefix, as far as it has been read.
    length: u32,
    /// Bytes of the prefix that have been read.
    read: u8,
    /// The body is not made of messages: nothing after that point is counted.
    lost: bool,
}

impl MessageCount {
    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The next bytes of the body.
    pub fn see(&mut self, mut bytes: &[u8]) {
        while !self.lost && !bytes.is_empty() {
            if self.left > 0 {
                let passed = bytes.len().min(self.left as usize);
                bytes = &bytes[passed..];
                // No more than `left`, which is a u32.
                self.left -= passed as u32;
                continue;
            }

            let byte = bytes[0];
            bytes = &bytes[1..];
            if self.read == 0 {
                // Compressed or not; the other bits are reserved, and Envoy reads no further
                // either.
                self.lost = byte > 1;
                self.length = 0;
            } else {
                self.length = self.length << 8 | u32::from(byte);
            }

            self.read += 1;
            if self.read == PREFIX && !self.lost {
                self.messages += 1;
                self.left = self.length;
                self.read = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::MessageCount;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![(length % 2) as u8];
        bytes.extend_from_slice(&(length as u32).to_be_bytes());
        bytes.resize(5 + length, 7);
        bytes
    }

    #[test]
    fn what_is_no_message_ends_the_count() {
        let mut count = MessageCount::default();
        count.see(&message(3));
        count.see(b"<html>and so on</html>");
        count.see(&message(0));
        assert_eq!(count.messages(), 1);
        let mut unfinished = MessageCount::default();
        unfinished.see(&[0, 0, 0, 0]);
        assert_eq!(unfinished.messages(), 0);
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_count_the_same(lengths in prop::collection::vec(0_usize..300, 0..20), cut in 1_usize..64) {
            let body: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut count = MessageCount::default();
            body.chunks(cut).for_each(|piece| count.see(piece));
            prop_assert_eq!(count.messages(), lengths.len() as u64);
        }

        #[test]
        fn foreign_bytes_are_survived(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..10)) {
            let mut count = MessageCount::default();
            pieces.iter().for_each(|piece| count.see(piece));
        }
    }
}
