//! Format strings of access logs and headers: the lenient parser agrees with the strict one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use meltemi_filters::format::{NoFacts, Template};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };

    let (lenient, reasons) = Template::parse_what_is_known(text);
    let strict = Template::parse(text);
    assert_eq!(strict.is_ok(), reasons.is_empty(), "{strict:?} {reasons:?}");
    if let Ok(strict) = &strict {
        assert_eq!(*strict, lenient);
    }

    let mut out = Vec::new();
    lenient.render(&NoFacts, "-", &mut out);
    lenient.render_line(&NoFacts, &mut out);
    lenient.render_typed(&NoFacts, &mut out);
});
