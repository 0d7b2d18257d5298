//! As much of Rust's tokens as checks of imports need: words, `::`, and single marks. Comments,
//! strings, characters and numbers are left out.

/// A token that names or structures something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// An identifier or keyword.
    Word(String),
    /// `::`
    PathSeparator,
    /// Any other mark.
    Mark(char),
}

/// The tokens of a source text.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut rest = text;

    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' {
            character_or_lifetime(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let end = |c: char| !c.is_alphanumeric() && c != '_';
            let length = rest.find(end).unwrap_or(rest.len());
            if !first.is_numeric() {
                out.push(Token::Word(rest[..length].to_owned()));
            }
            length
        } else if rest.starts_with("::") {
            out.push(Token::PathSeparator);
            2
        } else {
            if !first.is_whitespace() {
                out.push(Token::Mark(first));
            }
            first.len_utf8()
        };

        rest = &rest[length..];
    }

    out
}

/// The length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }

    at
}

/// The length of `r"..."`, `br#"..."#` and the like.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or(text.strip_prefix('r'))?;
    let body = after.trim_start_matches('#');
    let hashes = after.len() - body.len();
    let body = body.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());

    Some(text.len() - body.len() + length)
}

/// The length of a string or character with its quotes.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' {
            is_escaped = true;
        } else if c == quote {
            return at + c.len_utf8();
        }
    }

    text.len()
}

/// `'a'` ends with a quote; in `'a` only the quote is taken, and the name is read as a word.
fn character_or_lifetime(text: &str) -> usize {
    let mut chars = text.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (_, Some('\'')) => quoted(text, '\''),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let each = tokens(text).into_iter().map(|token| match token {
            Token::Word(word) => word,
            Token::PathSeparator => "::".to_owned(),
            Token::Mark(mark) => mark.to_string(),
        });

        each.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn words_and_marks_are_kept() {
        assert_eq!(shown("use a::{b, c1};"), "use a :: { b , c1 } ;");
        assert_eq!(
            shown("fn f<'a>(x: &'a u8) -> u8 { 0x1f }"),
            "fn f < a > ( x : & a u8 ) - > u8 { }"
        );
    }

    #[test]
    fn comments_and_literals_are_left_out() {
        assert_eq!(shown("a // b\nc /* d /* e */ f */ g"), "a c g");
        assert_eq!(shown(r#"a "b \" c" d '"' '\'' e b"f" r"\" g"#), "a d e b g");
        assert_eq!(shown("a r#\"b \" c\"# d br##\"e\"# f\"## g"), "a d g");
    }
}
