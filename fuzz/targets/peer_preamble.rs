//! What a peer says of itself, as a preamble of a TCP connection and as a header: an accepted one
//! is written and read back unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meltemi_filters::peer_metadata::PeerInfo;
use meltemi_filters::peer_metadata::preamble::{self, Read};

fuzz_target!(|bytes: &[u8]| {
    let whole = preamble::read(bytes);
    for end in 0..bytes.len() {
        match (preamble::read(&bytes[..end]), &whole) {
            (Read::More(needed), _) => assert!(needed > end),
            (part, whole) => assert_eq!(part, *whole, "cut at {end}"),
        }
    }

    if let Read::Peer(_, Some(info)) = whole {
        let written = preamble::write("id", &info);
        let length = written.len();
        assert_eq!(preamble::read(&written), Read::Peer(length, Some(info)));
    }

    if let Some(info) = PeerInfo::decode(bytes) {
        assert_eq!(PeerInfo::decode(info.encode().as_bytes()), Some(info));
    }
});
