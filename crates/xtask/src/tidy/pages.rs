//! Every crate has a front page: its responsibility, input, output, and what it never imports.

use super::source::Source;

pub fn check(source: &Source) -> Option<String> {
    let is_front = source.path.ends_with("src/lib.rs") || source.path.ends_with("src/main.rs");
    let has_page = source.text.starts_with("//!");
    (is_front && !has_page).then(|| format!("{} has no front page (//! ...)", source.shown))
}
