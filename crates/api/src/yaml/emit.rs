//! JSON values to YAML text, such that reading it again gives the same value.

use serde_json::Value;

use super::scalar;

/// Writes a value as block-style YAML with a newline at its end.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut out),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut out),
        other => {
            inline(other, 0, &mut out);
            out.push('\n');
        }
    }

    out
}

/// A non-empty mapping or list, each line indented.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) => {
            for (index, (key, item)) in map.iter().enumerate() {
                // The first line stands behind its list item's dash.
                if index > 0 || out.is_empty() || out.ends_with('\n') {
                    pad(indent, out);
                }
                text(key, out);
                out.push(':');
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        out.push('\n');
                        block(item, indent + 2, out);
                    }
                    Value::Array(items) if !items.is_empty() => {
                        out.push('\n');
                        block(item, indent, out);
                    }
                    other => {
                        out.push(' ');
                        inline(other, indent + 2, out);
                        out.push('\n');
                    }
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 || out.is_empty() || out.ends_with('\n') {
                    pad(indent, out);
                }
                out.push_str("- ");
                match item {
                    Value::Object(map) if !map.is_empty() => block(item, indent + 2, out),
                    Value::Array(items) if !items.is_empty() => block(item, indent + 2, out),
                    other => {
                        inline(other, indent + 2, out);
                        out.push('\n');
                    }
                }
            }
        }
        _ => {}
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A value that fits behind its key; `indent` is that of a block scalar's lines.
fn inline(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::String(string) if wants_block(string) => {
            // Kept or stripped newline at the end; more of them are quoted.
            out.push_str(if string.ends_with('\n') { "|" } else { "|-" });
            for line in string.strip_suffix('\n').unwrap_or(string).split('\n') {
                out.push('\n');
                if !line.is_empty() {
                    pad(indent, out);
                    out.push_str(line);
                }
            }
        }
        Value::String(string) => text(string, out),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

/// Several lines of plain text, none of which could be mistaken for indentation or lose blanks.
fn wants_block(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && !text.ends_with("\n\n")
        && text
            .trim_end_matches('\n')
            .lines()
            .all(|line| !line.ends_with([' ', '\t']))
        && !text
            .split('\n')
            .any(|line| line.starts_with("---") || line.starts_with("..."))
        && text.chars().all(|c| {
            c == '\n'
                || (!c.is_control()
                    && !matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}'))
        })
}

fn text(text: &str, out: &mut String) {
    if is_plain(text) {
        out.push_str(text);
    } else {
        // JSON's escapes are a subset of YAML's; what JSON leaves bare and YAML does not is escaped
        // here.
        for c in Value::String(text.to_owned()).to_string().chars() {
            match c {
                '\u{7f}'..='\u{9f}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{feff}'
                | '\u{fffe}'
                | '\u{ffff}' => {
                    out.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                c => out.push(c),
            }
        }
    }
}

/// Whether a string can stand without quotes: it resolves to itself, and no character has a
/// meaning.
fn is_plain(text: &str) -> bool {
    let safe = |b: u8| {
        b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'_' | b'-' | b'.' | b'/' | b'+' | b'~' | b'(' | b')' | b'^' | b'$' | b' ' | b':'
            )
    };

    let first = text.as_bytes().first().copied();
    first.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'.'))
        && text.len() < 512
        && text.bytes().all(safe)
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.starts_with("...")
        && scalar::resolve(text).is_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::parse_one;
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let long = "x".repeat(5000);
        let value = json!({
            "plain": "text", "word": "yes", "number": "80", "null": "null", "empty": "", "tilde": "~",
            "colon": "a: b", "host:port": "reviews:9080", "hash": "a #b", "quote": "\"'", "lines": "a\nb\n", "open": "a\nb",
            "blank": "a\n\nb\n", "lead": " a\nb", "twice": "a\n\n", "tab": "a\tb\n c", "control": "\u{1}\u{85}\u{2028}\u{feff}",
            "dashes": "a\n---\nb", "star": "*", "amp": "&x", "bang": "!x", "at": "@x", "percent": "%x", "long": long,
            "emptyList": [], "emptyMap": {}, "list": [1, "2", [3, [4]], {"a": [{"b": 1, "c": {"d": []}}]}, [], {}, null, true, 1.5, -3],
            "": 1, "yes": 2, "80": 3, "a b": 4, "- x": 5, "<<": "no merge",
        });

        let text = to_yaml(&value);
        let read = parse_one(&text).unwrap_or_else(|fault| panic!("{fault:?}\n{text}"));
        assert_eq!(read.value, value, "{text}");

        for scalar in [json!("x"), json!(null), json!([]), json!({}), json!("a\nb")] {
            let text = to_yaml(&scalar);
            assert_eq!(parse_one(&text).expect("valid").value, scalar, "{text}");
        }
    }
}
