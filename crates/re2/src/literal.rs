//! Single characters: escapes that stand for one, and their spelling for the `regex` crate.

use crate::Error;

/// Reads an escape that stands for one character, in a class or outside.
pub(crate) fn read(text: &str) -> Result<(char, &str), Error> {
    let bad = || Error::BadEscape(shorten(text.get(..4).unwrap_or(text)));
    let letter = text[1..].chars().next().ok_or(Error::TrailingBackslash)?;
    let behind = &text[1 + letter.len_utf8()..];

    let plain = match letter {
        'a' => '\x07',
        'f' => '\x0c',
        't' => '\t',
        'n' => '\n',
        'r' => '\r',
        'v' => '\x0b',
        '0'..='7' => return octal(letter, &text[1..]).ok_or_else(bad),
        'x' => return hexadecimal(behind).ok_or_else(bad),
        other if other.is_ascii() && !other.is_ascii_alphanumeric() => other,
        _ => return Err(bad()),
    };

    Ok((plain, behind))
}

/// Up to three octal digits. One digit other than 0 alone would be a back-reference.
fn octal(first: char, digits: &str) -> Option<(char, &str)> {
    let length = digits
        .bytes()
        .take(3)
        .take_while(|digit| matches!(digit, b'0'..=b'7'))
        .count();
    if first != '0' && length == 1 {
        return None;
    }
    let code = u32::from_str_radix(&digits[..length], 8).ok()?;

    char::from_u32(code).map(|literal| (literal, &digits[length..]))
}

/// `xFF`, or `x{10FFFF}`, behind the `x`.
fn hexadecimal(text: &str) -> Option<(char, &str)> {
    let (digits, rest) = match text.strip_prefix('{') {
        Some(inner) => inner.split_once('}')?,
        None => (text.get(..2)?, &text[2..]),
    };
    let is_hexadecimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let code = is_hexadecimal.then(|| u32::from_str_radix(digits, 16).ok())??;

    char::from_u32(code).map(|literal| (literal, rest))
}

/// Writes a character so that it has no other meaning to the `regex` crate.
pub(crate) fn push(out: &mut String, literal: char) {
    if literal.is_ascii_alphanumeric() {
        out.push(literal);
    } else {
        out.push_str(&format!(r"\x{{{:x}}}", u32::from(literal)));
    }
}

/// The beginning of a text, for a message.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
