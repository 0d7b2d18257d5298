//! Sets of characters.

use crate::Error;
use crate::literal::{self, shorten};
use crate::unicode;

/// Instructions of RE2 for a class that holds most characters, in UTF-8.
pub(crate) const ANY_SIZE: u64 = 12;
/// Instructions of RE2 for a script or a category, which has many ranges.
const UNICODE_SIZE: u64 = 600;

/// The names between `[:` and `:]`; the `regex` crate has the same sets under the same names.
const POSIX: &[&str] = &[
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// A set as the `regex` crate writes it.
pub(crate) struct Class {
    /// An item of a bracketed class, or a class with its brackets.
    pub text: String,
    /// Instructions that RE2 needs for it, at most.
    pub size: u64,
}

impl Class {
    /// An item as a class of its own.
    pub fn alone(self) -> Self {
        Self {
            text: format!("[{}]", self.text),
            size: self.size,
        }
    }
}

/// Reads `[...]` at the start of the text, and returns the text behind it.
pub(crate) fn bracketed(whole: &str) -> Result<(Class, &str), Error> {
    let missing = || Error::MissingBracket(shorten(whole));
    let mut rest = &whole[1..];
    let is_negated = rest.starts_with('^');
    if is_negated {
        rest = &rest[1..];
    }

    let mut text = String::from(if is_negated { "[^" } else { "[" });
    let mut size = if is_negated { ANY_SIZE } else { 1 };
    let mut is_first = true;

    // A closing bracket that comes first is a member.
    while is_first || !rest.starts_with(']') {
        is_first = false;
        let (item, behind) = match rest.chars().next().ok_or_else(missing)? {
            '[' if rest.starts_with("[:") => match posix(rest)? {
                Some(found) => found,
                None => range(rest, whole)?,
            },
            '\\' => match escaped(rest)? {
                Some(found) => found,
                None => range(rest, whole)?,
            },
            _ => range(rest, whole)?,
        };

        text.push_str(&item.text);
        size += item.size;
        rest = behind;
        if rest.is_empty() {
            return Err(missing());
        }
    }

    text.push(']');
    Ok((Class { text, size }, &rest[1..]))
}

/// `[:name:]` at the start of the text; `None` if it is no such thing, but a bracket.
fn posix(text: &str) -> Result<Option<(Class, &str)>, Error> {
    let Some((name, rest)) = text[2..].split_once(":]") else {
        return Ok(None);
    };
    if !POSIX.contains(&name.strip_prefix('^').unwrap_or(name)) {
        return Err(Error::BadRange(shorten(&text[..name.len() + 4])));
    }

    let class = Class {
        text: format!("[:{name}:]"),
        size: ANY_SIZE,
    };
    Ok(Some((class, rest)))
}

/// A character, or two with a hyphen between them.
fn range<'p>(text: &'p str, whole: &str) -> Result<(Class, &'p str), Error> {
    let (low, mut rest) = member(text, whole)?;
    let mut high = low;
    if rest.starts_with('-') && !rest.starts_with("-]") && rest.len() > 1 {
        (high, rest) = member(&rest[1..], whole)?;
        if high < low {
            let length = text.len() - rest.len();
            return Err(Error::BadRange(shorten(&text[..length])));
        }
    }

    let mut out = String::new();
    literal::push(&mut out, low);
    if high != low {
        out.push('-');
        literal::push(&mut out, high);
    }

    // A range within ASCII is one instruction; each longer encoding adds a few.
    let size = if high.is_ascii() { 2 } else { ANY_SIZE };
    Ok((Class { text: out, size }, rest))
}

fn member<'p>(text: &'p str, whole: &str) -> Result<(char, &'p str), Error> {
    match text.chars().next() {
        None => Err(Error::MissingBracket(shorten(whole))),
        Some('\\') => literal::read(text),
        Some(plain) => Ok((plain, &text[plain.len_utf8()..])),
    }
}

/// `\d` and its siblings, `\pN` and `\p{Greek}`, as an item of a class; `None` for other escapes.
pub(crate) fn escaped(text: &str) -> Result<Option<(Class, &str)>, Error> {
    let Some(letter) = text[1..].chars().next() else {
        return Ok(None);
    };

    // RE2's Perl classes are ASCII, and `\s` is without the vertical tab.
    let perl = match letter {
        'd' => Some(r"0-9"),
        'D' => Some(r"[^0-9]"),
        's' => Some(r"\t\n\f\r\x20"),
        'S' => Some(r"[^\t\n\f\r\x20]"),
        'w' => Some(r"0-9A-Za-z_"),
        'W' => Some(r"[^0-9A-Za-z_]"),
        'p' | 'P' => return unicode_class(text, letter == 'P').map(Some),
        _ => None,
    };

    Ok(perl.map(|item| {
        let class = Class {
            text: item.to_owned(),
            size: ANY_SIZE,
        };
        (class, &text[2..])
    }))
}

/// `\pN`, `\p{Name}` or `\p{^Name}`.
fn unicode_class(text: &str, is_negated: bool) -> Result<(Class, &str), Error> {
    let bad = || Error::BadRange(shorten(text.get(..12).unwrap_or(text)));
    let behind = &text[2..];
    let (name, rest) = match behind.strip_prefix('{') {
        Some(inner) => inner.split_once('}').ok_or_else(bad)?,
        None => {
            let letter = behind.chars().next().ok_or_else(bad)?;
            behind.split_at(letter.len_utf8())
        }
    };

    let (name, is_negated) = match name.strip_prefix('^') {
        Some(name) => (name, !is_negated),
        None => (name, is_negated),
    };
    if !unicode::is_known(name) {
        return Err(bad());
    }

    let text = match (name, is_negated) {
        // No text holds a surrogate.
        ("Cs", false) => r"[^\x00-\x{10FFFF}]".to_owned(),
        ("Cs", true) => r"\x00-\x{10FFFF}".to_owned(),
        (name, false) => format!(r"\p{{{name}}}"),
        (name, true) => format!(r"\P{{{name}}}"),
    };
    let size = UNICODE_SIZE;

    Ok((Class { text, size }, rest))
}
