//! Texts of others, made safe to print.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text with every character escaped that a terminal would act on: control characters, line
/// ends among them, and those that change the direction of writing. A refusal that a proxy sends, or
/// the name of an object, can then neither colour the terminal nor add a line that looks like ours.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, is_active)
}

/// As [`printable`], but for line feeds and tabs: for output that has lines of its own.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_active(c) && !matches!(c, '\n' | '\t'))
}

fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &str, is_active: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_active) {
        return Cow::Borrowed(text);
    }

    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            _ if !is_active(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            // Writing to a String cannot fail.
            _ if u32::from(c) < 0x100 => _ = write!(escaped, "\\x{:02x}", u32::from(c)),
            _ => _ = write!(escaped, "\\u{{{:x}}}", u32::from(c)),
        }
    }

    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_and_readers_are_not_fooled() {
        assert_eq!(
            printable("\x1b[31mred\x1b[0m\nok\r\u{9b}2J\u{202e}evil\x7f"),
            "\\x1b[31mred\\x1b[0m\\nok\\r\\x9b2J\\u{202e}evil\\x7f"
        );
        assert_eq!(printable_lines("a\tb\nc\x1b[2J"), "a\tb\nc\\x1b[2J");
        assert!(matches!(printable("Grüße, 世界"), Cow::Borrowed(_)));
    }
}
