// Part of the tests of every crate that needs more than the machine may have: they include this
// file.

/// Says why a test is skipped, and counts it in the file that `MELTEMI_SKIPS` names; `cargo xtask
/// test` shows them all.
pub fn skip(test: &str, why: &str) {
    use std::io::Write;
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("SKIPPED {test}: {why}");
    if let Some(file) = std::env::var_os("MELTEMI_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| writeln!(file, "{test}: {why}"));
    }
}
