//! RE2's expressions: whatever is taken compiles, unless it is too large, with as many groups.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meltemi_re2::{Error, Pattern};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(pattern) = Pattern::parse(text) else {
        return;
    };

    match pattern.search() {
        Err(Error::TooLarge) => {}
        Err(error) => panic!("{error}"),
        Ok(search) => assert_eq!(search.captures_len(), pattern.groups() + 1),
    }
    if let Ok(full) = pattern.full() {
        full.is_match(bytes);
    }
});
