//! Parses templates and paths.

use std::str::FromStr;

use anyhow::{Context as _, Error, Result, bail, ensure};
use serde_json::Value;

use super::{Operand, Operator, Path, Piece, Step, Template};

impl FromStr for Template {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The pieces of the template, then of each range that is open, with its path.
        let mut done = Vec::new();
        let mut open: Vec<(Path, Vec<Piece>)> = Vec::new();

        let mut rest = text;
        while !rest.is_empty() {
            let (literal, tail) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            let mut pieces = Vec::new();
            if !literal.is_empty() {
                pieces.push(Piece::Text(literal.to_owned()));
            }

            let mut words = Vec::new();
            rest = "";
            if let Some(tail) = tail.strip_prefix('{') {
                let end = unquoted(tail, '}').context("unclosed action: a } is missing")?;
                words = split(&tail[..end])?;
                rest = &tail[end + 1..];
            }

            let target = |open: &mut Vec<(Path, Vec<Piece>)>, done: &mut Vec<Piece>, new| {
                open.last_mut()
                    .map_or(done, |(_, body)| body)
                    .extend::<Vec<Piece>>(new);
            };
            target(&mut open, &mut done, pieces);

            let mut words = words.into_iter();
            while let Some(word) = words.next() {
                match word {
                    "range" => {
                        let path = words.next().context("range needs a path")?;
                        open.push((path_of(path)?, Vec::new()));
                    }
                    "end" => {
                        let (path, body) =
                            open.pop().context("not in range: {end} has no {range}")?;
                        target(&mut open, &mut done, vec![Piece::Range(path, body)]);
                    }
                    word if word.starts_with(['"', '\'']) => {
                        target(&mut open, &mut done, vec![Piece::Text(unquote(word)?)]);
                    }
                    word => target(&mut open, &mut done, vec![Piece::Path(path_of(word)?)]),
                }
            }
        }

        ensure!(open.is_empty(), "unclosed range: {{end}} is missing");
        Ok(Self(done))
    }
}

impl FromStr for Path {
    type Err = Error;

    /// Takes `{.metadata.name}`, `.metadata.name` and `metadata.name`, as kubectl does for columns
    /// and for the order.
    fn from_str(text: &str) -> Result<Self> {
        let inner = match text.strip_prefix('{') {
            Some(inner) => inner
                .strip_suffix('}')
                .context("unclosed action: a } is missing")?,
            None => text,
        };
        if inner.starts_with(['.', '[', '$', '@']) || inner.is_empty() {
            path_of(inner)
        } else {
            path_of(&format!(".{inner}"))
        }
    }
}

/// The position of a character outside of quotes.
fn unquoted(text: &str, wanted: char) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match quote {
            _ if escaped => escaped = false,
            _ if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == wanted => return Some(at),
            None if c == '"' || c == '\'' => quote = Some(c),
            None => {}
        }
    }

    None
}

/// The words of an action. Blanks inside brackets and quotes belong to a word.
fn split(action: &str) -> Result<Vec<&str>> {
    let mut words = Vec::new();
    let mut rest = action.trim_start();
    while !rest.is_empty() {
        let mut end = rest.len();
        let (mut depth, mut quote, mut escaped) = (0_u32, None, false);
        for (at, c) in rest.char_indices() {
            match quote {
                _ if escaped => escaped = false,
                _ if c == '\\' => escaped = true,
                Some(open) if c == open => quote = None,
                Some(_) => {}
                None if c == '"' || c == '\'' => quote = Some(c),
                None if c == '[' => depth += 1,
                None if c == ']' => depth = depth.saturating_sub(1),
                None if c.is_whitespace() && depth == 0 => {
                    end = at;
                    break;
                }
                None => {}
            }
        }

        ensure!(quote.is_none(), "unterminated quoted string");
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }

    Ok(words)
}

/// A quoted string's text.
fn unquote(word: &str) -> Result<String> {
    let quote = &word[..1];
    let inner = word[1..].strip_suffix(quote);
    let inner = inner.with_context(|| format!("{word}: unterminated quoted string"))?;

    let mut out = String::new();
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(c @ ('\\' | '"' | '\'')) => out.push(c),
                _ => bail!("{word}: unknown escape; \\n, \\t, \\r, \\\\ and quotes are known"),
            },
            c => out.push(c),
        }
    }

    Ok(out)
}

fn path_of(text: &str) -> Result<Path> {
    let mut steps = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = match c {
            '$' | '@' => &rest[1..],
            '.' if rest.starts_with("..") => {
                steps.push(Step::Descend);
                // `..name` and `..[0]`
                let tail = &rest[2..];
                if tail.is_empty() || tail.starts_with('[') {
                    tail
                } else {
                    &rest[1..]
                }
            }
            '.' => {
                let (name, tail) = field(&rest[1..]);
                match name.as_str() {
                    "" => {}
                    "*" => steps.push(Step::Each),
                    _ => steps.push(Step::Field(name)),
                }
                tail
            }
            '[' => {
                let inner = &rest[1..];
                let end = closing(inner).context("unterminated array: a ] is missing")?;
                steps.push(bracket(inner[..end].trim())?);
                &inner[end + 1..]
            }
            _ => {
                bail!("unrecognized identifier {rest}: a path begins with a dot, as in {{.{rest}}}")
            }
        };
    }

    Ok(Path(steps))
}

/// A field's name, in which a backslash takes the next character as it is, and what follows.
fn field(text: &str) -> (String, &str) {
    let (mut name, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            c if escaped => {
                name.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }

    (name, "")
}

/// The position of the bracket that closes, behind nested ones.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0_u32, None);
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c == '[' => depth += 1,
            None if c == ']' && depth == 0 => return Some(at),
            None if c == ']' => depth -= 1,
            None => {}
        }
    }

    None
}

/// The step between brackets.
fn bracket(text: &str) -> Result<Step> {
    if text == "*" {
        return Ok(Step::Each);
    }
    if let Some(filter) = text.strip_prefix("?(") {
        let filter = filter.strip_suffix(')');
        return self::filter(filter.context("unterminated filter: a ) is missing")?);
    }
    if unquoted(text, ',').is_some() {
        let mut paths = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = unquoted(rest, ',').unwrap_or(rest.len());
            paths.push(Path(vec![bracket(rest[..end].trim())?]));
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        return Ok(Step::Union(paths));
    }
    if text.len() >= 2 && text.starts_with('\'') && text.ends_with('\'') {
        let path = path_of(&format!(".{}", &text[1..text.len() - 1]))?;
        return Ok(Step::Union(vec![path]));
    }

    let number = |part: &str| match part.trim() {
        "" => Ok(None),
        part => part.parse().map(Some).with_context(|| {
            format!("invalid array index {text}: write a number, *, 'NAME' or ?(FILTER)")
        }),
    };
    match *text.split(':').collect::<Vec<_>>() {
        [index] => Ok(Step::Index(
            number(index)?.context("an index is missing in []")?,
        )),
        [start, end] => Ok(Step::Slice(number(start)?, number(end)?, None)),
        [start, end, step] => Ok(Step::Slice(number(start)?, number(end)?, number(step)?)),
        _ => bail!("invalid array index {text}"),
    }
}

fn filter(text: &str) -> Result<Step> {
    // Longer operators first, so that <= is not read as <.
    const OPERATORS: [(&str, Operator); 6] = [
        ("==", Operator::Equal),
        ("!=", Operator::Unequal),
        ("<=", Operator::AtMost),
        (">=", Operator::AtLeast),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ];

    for (word, operator) in OPERATORS {
        let first = word.chars().next().unwrap_or_default();
        let Some(at) = unquoted(text, first) else {
            continue;
        };
        if let Some(right) = text[at..].strip_prefix(word) {
            let comparison = Some((operator, operand(right)?));
            return Ok(Step::Filter(operand(&text[..at])?, comparison));
        }
    }

    Ok(Step::Filter(operand(text)?, None))
}

fn operand(text: &str) -> Result<Operand> {
    let text = text.trim();
    Ok(match text.chars().next() {
        Some('@' | '.' | '$' | '[') => Operand::Path(path_of(text)?),
        Some('"' | '\'') => Operand::Literal(Value::String(unquote(text)?)),
        _ => Operand::Literal(serde_json::from_str(text).with_context(|| {
            format!("{text:?}: write a path, a number, true, false or a string in quotes")
        })?),
    })
}
