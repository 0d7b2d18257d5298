//! What a backslash begins.

use crate::Error;
use crate::class::{self, Class};
use crate::literal;

/// What an escape outside a bracketed class stands for.
pub(crate) enum Escaped<'p> {
    Literal(char),
    Class(Class),
    /// A condition on the place, as the `regex` crate writes it.
    Assertion(&'static str),
    /// The literals between `\Q` and `\E`.
    Quoted(&'p str),
}

/// Reads the escape that `text` begins with, and returns the text behind it.
pub(crate) fn outside_class(text: &str) -> Result<(Escaped<'_>, &str), Error> {
    let letter = text[1..].chars().next().ok_or(Error::TrailingBackslash)?;
    let behind = &text[1 + letter.len_utf8()..];

    let assertion = match letter {
        'A' => Some(r"\A"),
        'z' => Some(r"\z"),
        // RE2 knows ASCII words alone.
        'b' => Some(r"(?-u:\b)"),
        'B' => Some(r"(?-u:\B)"),
        _ => None,
    };
    if let Some(assertion) = assertion {
        return Ok((Escaped::Assertion(assertion), behind));
    }

    if letter == 'Q' {
        let (quoted, rest) = behind.split_once(r"\E").unwrap_or((behind, ""));
        return Ok((Escaped::Quoted(quoted), rest));
    }
    if let Some((class, rest)) = class::escaped(text)? {
        let class = class.alone();
        return Ok((Escaped::Class(class), rest));
    }

    literal::read(text).map(|(literal, rest)| (Escaped::Literal(literal), rest))
}
