//! Expressions: alternatives, groups, flags and repetitions.

use std::collections::BTreeSet;

use crate::class;
use crate::escape::{self, Escaped};
use crate::literal::{self, shorten};
use crate::{Error, MAX_DEPTH, MAX_PROGRAM};

/// The most that a repetition may repeat, nested ones multiplied.
const MAX_REPEAT: u64 = 1000;

/// One level of nesting: the whole expression, or a group of it.
#[derive(Default)]
struct Level {
    /// Instructions that RE2 needs for what has been read so far.
    size: u64,
    /// The largest product of repetitions around one atom.
    repeats: u64,
}

/// What a repetition operator would apply to.
struct Atom {
    /// Where it begins in the output.
    start: usize,
    size: u64,
    repeats: u64,
}

/// What stands before the next character.
enum Before {
    /// The start of an alternative: there is nothing to repeat.
    Nothing,
    Atom(Atom),
    /// A repetition, with its operator: another one may not follow.
    Repeat(String),
}

pub(crate) struct Parser<'p> {
    rest: &'p str,
    out: String,
    groups: usize,
    names: BTreeSet<&'p str>,
    depth: usize,
}

impl<'p> Parser<'p> {
    pub fn new(pattern: &'p str) -> Self {
        Self {
            rest: pattern,
            out: String::with_capacity(pattern.len() + 16),
            groups: 0,
            names: BTreeSet::new(),
            depth: 0,
        }
    }

    /// The translated expression and the number of its groups.
    pub fn run(mut self) -> Result<(String, usize), Error> {
        self.alternatives()?;
        match self.rest.is_empty() {
            true => Ok((self.out, self.groups)),
            false => Err(Error::UnexpectedParen),
        }
    }

    /// Reads to the end of the level: the end of the text, or a closing parenthesis.
    fn alternatives(&mut self) -> Result<Level, Error> {
        let mut level = Level {
            size: 1,
            repeats: 1,
        };
        let mut before = Before::Nothing;

        while let Some(next) = self.rest.chars().next() {
            if next == ')' {
                break;
            }
            if let Some(operator) = self.repetition()? {
                before = self.repeat(operator, before, &mut level)?;
                continue;
            }

            let start = self.out.len();
            before = match next {
                '|' => {
                    self.skip(1);
                    self.out.push('|');
                    level.size += 1;
                    Before::Nothing
                }
                _ => match self.atom(next)? {
                    None => Before::Nothing,
                    Some(inner) => {
                        level.size += inner.size;
                        level.repeats = level.repeats.max(inner.repeats);
                        Before::Atom(Atom {
                            start,
                            size: inner.size,
                            repeats: inner.repeats,
                        })
                    }
                },
            };

            if level.size > MAX_PROGRAM {
                return Err(Error::TooLarge);
            }
        }

        Ok(level)
    }

    /// One atom; `None` for flags alone, which nothing can repeat.
    fn atom(&mut self, next: char) -> Result<Option<Level>, Error> {
        let one = |size| Some(Level { size, repeats: 1 });

        Ok(match next {
            '(' => self.group()?,
            '[' => {
                let (class, rest) = class::bracketed(self.rest)?;
                self.rest = rest;
                self.out.push_str(&class.text);
                one(class.size)
            }
            '^' | '$' => {
                self.skip(1);
                self.out.push(next);
                one(1)
            }
            '.' => {
                self.skip(1);
                self.out.push('.');
                one(class::ANY_SIZE)
            }
            '\\' => {
                let (escaped, rest) = escape::outside_class(self.rest)?;
                self.rest = rest;
                match escaped {
                    Escaped::Literal(literal) => {
                        literal::push(&mut self.out, literal);
                        one(literal_size(literal))
                    }
                    Escaped::Class(class) => {
                        self.out.push_str(&class.text);
                        one(class.size)
                    }
                    Escaped::Assertion(text) => {
                        self.out.push_str(text);
                        one(1)
                    }
                    Escaped::Quoted(text) => return self.quoted(text),
                }
            }
            literal => {
                self.skip(literal.len_utf8());
                literal::push(&mut self.out, literal);
                one(literal_size(literal))
            }
        })
    }

    /// `\Q..\E`: every character stands for itself, and a repetition applies to the last one. So
    /// all but the last are read here, and the last is the atom.
    fn quoted(&mut self, text: &'p str) -> Result<Option<Level>, Error> {
        let Some(last) = text.chars().next_back() else {
            return Ok(None);
        };
        // A group of its own would change where a repetition applies: characters before the last
        // go straight to the output.
        for literal in text[..text.len() - last.len_utf8()].chars() {
            literal::push(&mut self.out, literal);
        }
        let start = self.out.len();
        literal::push(&mut self.out, last);

        // Whoever repeats this atom finds it in a group of its own.
        let atom = format!("(?:{})", &self.out[start..]);
        self.out.truncate(start);
        self.out.push_str(&atom);

        Ok(Some(Level {
            size: text.chars().map(literal_size).sum(),
            repeats: 1,
        }))
    }

    /// A group, or flags; see [`Parser::atom`].
    fn group(&mut self) -> Result<Option<Level>, Error> {
        let whole = self.rest;
        self.skip(1);
        if self.rest.starts_with('?') {
            if let Some(name) = self.group_name(whole)? {
                if !self.names.insert(name) {
                    return Err(Error::BadName(shorten(whole)));
                }
            } else {
                return self.flags(whole);
            }
        }

        self.groups += 1;
        self.out.push('(');
        self.group_end(whole).map(Some)
    }

    /// The inside of a group and its closing parenthesis.
    fn group_end(&mut self, whole: &str) -> Result<Level, Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        let mut level = self.alternatives()?;
        self.depth -= 1;

        if !self.rest.starts_with(')') {
            return Err(Error::MissingParen(shorten(whole)));
        }
        self.skip(1);
        self.out.push(')');
        level.size += 2;

        Ok(level)
    }

    /// The name of `(?P<name>` or `(?<name>`; `None` if it is another operator.
    fn group_name(&mut self, whole: &str) -> Result<Option<&'p str>, Error> {
        let named = self
            .rest
            .strip_prefix("?P<")
            .or_else(|| self.rest.strip_prefix("?<"));
        let Some(tail) = named else { return Ok(None) };

        let bad = || Error::BadName(shorten(whole));
        let (name, rest) = tail.split_once('>').ok_or_else(bad)?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_word) {
            return Err(bad());
        }
        self.rest = rest;

        Ok(Some(name))
    }

    /// `(?flags)` or `(?flags:...)`.
    fn flags(&mut self, whole: &str) -> Result<Option<Level>, Error> {
        let bad = || Error::BadPerlOperator(shorten(whole));
        self.skip(1);

        let (mut on, mut off) = (BTreeSet::new(), BTreeSet::new());
        let (mut is_negative, mut since_sign) = (false, false);
        loop {
            let next = self.rest.chars().next().ok_or_else(bad)?;
            self.skip(next.len_utf8());
            match next {
                'i' | 'm' | 's' | 'U' => {
                    since_sign = true;
                    // What is said last counts; the regex crate takes no flag twice.
                    let (gains, loses) = match is_negative {
                        true => (&mut off, &mut on),
                        false => (&mut on, &mut off),
                    };
                    gains.insert(next);
                    loses.remove(&next);
                }
                '-' if !is_negative => (is_negative, since_sign) = (true, false),
                ':' | ')' if !is_negative || since_sign => {
                    let text = flag_text(&on, &off);
                    if next == ':' {
                        self.out.push_str(&format!("(?{text}:"));
                        return self.group_end(whole).map(Some);
                    }
                    if !text.is_empty() {
                        self.out.push_str(&format!("(?{text})"));
                    }
                    return Ok(None);
                }
                _ => return Err(bad()),
            }
        }
    }

    /// The repetition operator that the text goes on with, as `(text, minimum, maximum)`. A brace
    /// that begins no repetition is a literal.
    fn repetition(&mut self) -> Result<Option<(String, u64, Option<u64>)>, Error> {
        let (mut length, bounds) = match self.rest.as_bytes().first() {
            Some(b'*') => (1, (0, None)),
            Some(b'+') => (1, (1, None)),
            Some(b'?') => (1, (0, Some(1))),
            Some(b'{') => match braces(self.rest) {
                Some((length, bounds)) => (length, bounds),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };

        if self.rest[length..].starts_with('?') {
            length += 1;
        }
        let operator = self.rest[..length].to_owned();
        self.skip(length);

        Ok(Some((operator, bounds.0, bounds.1)))
    }

    fn repeat(
        &mut self,
        (operator, minimum, maximum): (String, u64, Option<u64>),
        before: Before,
        level: &mut Level,
    ) -> Result<Before, Error> {
        let atom = match before {
            Before::Nothing => return Err(Error::MissingRepeatArgument(operator)),
            Before::Repeat(first) => {
                return Err(Error::BadRepeatOperator(format!("{first}{operator}")));
            }
            Before::Atom(atom) => atom,
        };

        let most = maximum.unwrap_or(minimum);
        let is_reversed = maximum.is_some_and(|maximum| minimum > maximum);
        if is_reversed || minimum > MAX_REPEAT || most > MAX_REPEAT {
            return Err(Error::BadRepeatSize(operator));
        }

        // Only `{..}` multiplies; `*` and `+` loop.
        let factor = if operator.starts_with('{') { most } else { 1 };
        let repeats = atom.repeats * factor.max(1);
        if factor > 1 && repeats > MAX_REPEAT {
            return Err(Error::BadRepeatSize(operator));
        }
        level.repeats = level.repeats.max(repeats);
        level.size += atom.size * factor.saturating_sub(1) + 1;
        if level.size > MAX_PROGRAM {
            return Err(Error::TooLarge);
        }

        // An assertion is repeated only within a group.
        if matches!(self.out[atom.start..].chars().next(), Some('^' | '$')) {
            self.out.insert_str(atom.start, "(?:");
            self.out.push(')');
        }
        self.out.push_str(&operator);

        Ok(Before::Repeat(operator))
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }
}

/// An instruction for each byte; with `(?i)` there may be a second spelling.
fn literal_size(literal: char) -> u64 {
    2 * literal.len_utf8() as u64
}

fn flag_text(on: &BTreeSet<char>, off: &BTreeSet<char>) -> String {
    let mut text: String = on.iter().collect();
    if !off.is_empty() {
        text.push('-');
        text.extend(off);
    }
    text
}

/// `{n}`, `{n,}` or `{n,m}` at the start of the text: its length, minimum and maximum.
fn braces(text: &str) -> Option<(usize, (u64, Option<u64>))> {
    let end = text.find('}')?;
    let inner = &text[1..end];
    let bounds = match inner.split_once(',') {
        None => {
            let exact = number(inner)?;
            (exact, Some(exact))
        }
        Some((minimum, "")) => (number(minimum)?, None),
        Some((minimum, maximum)) => (number(minimum)?, Some(number(maximum)?)),
    };

    Some((end + 1, bounds))
}

/// Digits without a leading zero. A number too large for any repetition stays too large.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty()
        && text.bytes().all(|digit| digit.is_ascii_digit())
        && (text.len() == 1 || !text.starts_with('0'));
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}
