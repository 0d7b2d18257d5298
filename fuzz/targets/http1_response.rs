//! The head of an HTTP/1.1 response: read alike however it is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meltemi_proxy::fuzzing::response;

fuzz_target!(|bytes: &[u8]| {
    let one_by_one: Vec<usize> = (1..=bytes.len()).collect();
    for method in ["GET", "HEAD", "CONNECT"] {
        assert_eq!(
            response(bytes, &one_by_one, method),
            response(bytes, &[bytes.len()], method),
            "the pieces change what is read"
        );
    }
});
