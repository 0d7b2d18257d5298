//! A chunked body: read alike however it is cut, and as a naive parser reads it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meltemi_proxy::fuzzing::{Framing, body, naive_chunks};

fuzz_target!(|bytes: &[u8]| {
    let one_by_one: Vec<usize> = (1..=bytes.len()).collect();
    let (payload, end) = body(bytes, &[bytes.len()], Framing::Chunked);
    let (pieces, end_of_pieces) = body(bytes, &one_by_one, Framing::Chunked);
    assert_eq!((&pieces, &end_of_pieces), (&payload, &end));

    if let Ok(Some(left)) = end {
        assert_eq!(naive_chunks(bytes), Some((payload, left)));
    }
});
