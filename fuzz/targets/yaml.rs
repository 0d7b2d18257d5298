//! YAML documents of users: every finding points into the text.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };

    // YAML 1.2 §5.4: a carriage return alone ends a line as well.
    let lines = text.split(['\n', '\r']).count() as u32;
    let (objects, diagnostics) = meltemi_api::parse_documents("fuzz.yaml", text);
    for diagnostic in &diagnostics {
        assert!(diagnostic.position.line <= lines, "{diagnostic:?}");
    }

    // Equal text gives equal findings: nothing depends on the order of a hash map.
    let (again, same) = meltemi_api::parse_documents("fuzz.yaml", text);
    assert_eq!(objects.len(), again.len());
    assert_eq!(diagnostics, same);
});
