//! The head of an HTTP/1.1 request: read alike however it is cut, and written so that the next hop
//! reads the same request.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meltemi_proxy::fuzzing::{request, request_written_again};

fuzz_target!(|bytes: &[u8]| {
    let one_by_one: Vec<usize> = (1..=bytes.len()).collect();
    assert_eq!(
        request(bytes, &one_by_one),
        request(bytes, &[bytes.len()]),
        "the pieces change what is read"
    );

    if let Some((first, again)) = request_written_again(bytes) {
        assert_eq!(first, again, "the next hop reads another request");
    }
});
