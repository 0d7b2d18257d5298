//! Keeps the comments of a YAML document whose content is replaced.
//!
//! The lines of both documents are compared. A comment stays with its line where the new document
//! has that line or another value of the same field; any other comment gets a line of its own. No
//! comment is lost, and none changes the content.

use std::ops::Range;

use meltemi_api::value_of;
use similar::{Algorithm, DiffOp, capture_diff_slices};

/// One line of a document.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    text: &'a str,
    /// Where the comment begins, with the blanks before it.
    comment: Option<usize>,
}

impl<'a> Line<'a> {
    fn code(&self) -> &'a str {
        self.text[..self.comment.unwrap_or(self.text.len())].trim_end()
    }

    fn comment(&self) -> Option<&'a str> {
        self.comment.map(|at| self.text[at..].trim())
    }

    /// What two lines have to share to be the same line.
    fn key(&self) -> &'a str {
        match self.code() {
            "" => self.text.trim(),
            code => code,
        }
    }

    /// `  timeout:` of `  timeout: 5s`.
    fn field(&self) -> Option<&'a str> {
        let code = self.code();
        code.find(':').map(|colon| &code[..=colon])
    }

    /// The comment as a line of its own, indented like its line.
    fn comment_line(&self) -> Option<String> {
        let comment = self.comment()?;
        let indent = self.text.len() - self.text.trim_start().len();
        Some(format!("{}{comment}", &self.text[..indent]))
    }
}

/// The content of `new` with the comments of `old`. `None` if `old` is not valid YAML.
pub(super) fn with_comments_of(old: &str, new: &str) -> Option<String> {
    let wanted = value_of(new)?;
    let (old, new_lines) = (lines(old)?, lines(new)?);

    let text = merge(&old, &new_lines).join("\n") + "\n";
    if value_of(&text).as_ref() == Some(&wanted) {
        return Some(text);
    }

    // A comment got into a text of several lines. In front of the document it cannot.
    let comments = old.iter().filter_map(Line::comment);
    Some(
        comments
            .flat_map(|comment| [comment, "\n"])
            .chain([new])
            .collect(),
    )
}

/// The comment lines before the first and after the last line of a document's content. They may
/// speak of its neighbours.
pub(super) fn around(document: &str) -> String {
    let is_content = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let all: Vec<&str> = document.lines().collect();
    let first = all.iter().position(&is_content);
    let last = all.iter().rposition(is_content);

    let inner = first.unwrap_or(all.len())..last.map_or(all.len(), |last| last + 1);
    let outer = all
        .iter()
        .enumerate()
        .filter(|(number, line)| !inner.contains(number) && !line.trim().is_empty());
    outer.flat_map(|(_, line)| [*line, "\n"]).collect()
}

/// Splits a document into lines and finds its comments: what can be cut off without a change of
/// the content. `None` if the document is not valid YAML.
fn lines(document: &str) -> Option<Vec<Line<'_>>> {
    let wanted = value_of(document)?;
    let mut lines: Vec<Line<'_>> = document
        .lines()
        .map(|text| Line {
            text,
            comment: candidates(text).next(),
        })
        .collect();

    let is_same = |lines: &[Line<'_>]| {
        let is_left = |line: &&Line<'_>| line.comment.is_none() || !line.code().is_empty();
        let cut = lines.iter().filter(is_left).flat_map(|line| {
            let end = line.comment.unwrap_or(line.text.len());
            [&line.text[..end], "\n"]
        });
        value_of(&cut.collect::<String>()).as_ref() == Some(&wanted)
    };
    let all = 0..lines.len();
    settle(&mut lines, all, &is_same);
    Some(lines)
}

/// Where a comment may begin in a line.
fn candidates(text: &str) -> impl Iterator<Item = usize> {
    let starts = text
        .match_indices('#')
        .map(|(at, _)| text[..at].trim_end().len())
        .filter(|start| *start == 0 || text[*start..].starts_with([' ', '\t']));
    starts.collect::<Vec<_>>().into_iter()
}

/// Decides which candidates of a range are comments, by halves: mostly all of them are.
fn settle(lines: &mut [Line<'_>], range: Range<usize>, is_same: &impl Fn(&[Line<'_>]) -> bool) {
    let held: Vec<Option<usize>> = lines.iter().map(|line| line.comment).collect();
    let undecided = |lines: &[Line<'_>]| lines[range.clone()].iter().any(|l| l.comment.is_some());
    if !undecided(lines) {
        return;
    }

    // Only this range is cut.
    for (number, line) in lines.iter_mut().enumerate() {
        if !range.contains(&number) {
            line.comment = None;
        }
    }
    let is_fine = is_same(lines);
    for (line, comment) in lines.iter_mut().zip(&held) {
        line.comment = *comment;
    }
    if is_fine {
        return;
    }

    if range.len() > 1 {
        let middle = range.start + range.len() / 2;
        settle(lines, range.start..middle, is_same);
        settle(lines, middle..range.end, is_same);
        return;
    }

    // A sign within quotes: a comment may begin at a later one.
    let number = range.start;
    let line = &mut lines[number];
    let later = line
        .comment
        .and_then(|start| candidates(line.text).find(|candidate| *candidate > start));
    line.comment = later;
    settle(lines, range, is_same);
}

fn merge(old: &[Line<'_>], new: &[Line<'_>]) -> Vec<String> {
    let keys = |lines: &[Line<'_>]| {
        lines
            .iter()
            .map(|line| line.key().to_owned())
            .collect::<Vec<_>>()
    };
    let mut merged = Vec::new();
    for operation in capture_diff_slices(Algorithm::Patience, &keys(old), &keys(new)) {
        match operation {
            DiffOp::Equal {
                old_index,
                new_index,
                len,
            } => {
                let pairs = old[old_index..old_index + len]
                    .iter()
                    .zip(&new[new_index..new_index + len]);
                merged.extend(pairs.map(|(old, new)| {
                    let line = if old.comment.is_some() { old } else { new };
                    line.text.to_owned()
                }));
            }
            DiffOp::Delete {
                old_index, old_len, ..
            } => {
                let gone = &old[old_index..old_index + old_len];
                merged.extend(gone.iter().filter_map(Line::comment_line));
            }
            DiffOp::Insert {
                new_index, new_len, ..
            } => {
                let added = &new[new_index..new_index + new_len];
                merged.extend(added.iter().map(|line| line.text.to_owned()));
            }
            DiffOp::Replace {
                old_index,
                old_len,
                new_index,
                new_len,
            } => merged.extend(replace(
                &old[old_index..old_index + old_len],
                &new[new_index..new_index + new_len],
            )),
        }
    }
    merged
}

/// The new lines with the comments of the old ones: beside or above the line of the same field,
/// else at the end.
fn replace(old: &[Line<'_>], new: &[Line<'_>]) -> Vec<String> {
    let mut merged = Vec::new();
    let mut waiting = Vec::new();
    let mut next = 0;
    for line in old {
        let same_field = new[next..]
            .iter()
            .position(|new| line.field().is_some() && new.field() == line.field());
        let Some(at) = same_field else {
            waiting.extend(line.comment_line());
            continue;
        };

        merged.extend(new[next..next + at].iter().map(|line| line.text.to_owned()));
        merged.append(&mut waiting);
        let paired = new[next + at];
        merged.push(match (line.comment(), paired.comment()) {
            (Some(comment), None) => format!("{} {comment}", paired.code()),
            _ => paired.text.to_owned(),
        });
        if let (Some(comment), Some(_)) = (line.comment_line(), paired.comment()) {
            waiting.push(comment);
        }
        next += at + 1;
    }

    merged.extend(new[next..].iter().map(|line| line.text.to_owned()));
    merged.append(&mut waiting);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "\
# routes of the shop
apiVersion: v1
kind: ConfigMap
metadata:
  name: a   # stays
# on-call, read runbook 17
data:
  timeout: 5s # longer than the disk
  color: 'blue # not a comment' # a comment
  script: |
    # part of the text
    run
  gone: x # why it is here
# the end
";

    #[test]
    fn comments_stay_beside_their_fields() {
        let new = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: a
data:
  timeout: 6s
  color: 'red # not a comment'
  script: |
    # part of the text
    walk
  added: y
";
        let merged = with_comments_of(OLD, new).expect("valid");
        assert_eq!(value_of(&merged), value_of(new));
        assert_eq!(
            merged,
            "\
# routes of the shop
apiVersion: v1
kind: ConfigMap
metadata:
  name: a   # stays
# on-call, read runbook 17
data:
  timeout: 6s # longer than the disk
  color: 'red # not a comment' # a comment
  script: |
    # part of the text
    walk
  added: y
  # why it is here
# the end
"
        );
    }

    #[test]
    fn a_comment_never_becomes_content() {
        let old = "data:\n  a: 1\n  # one\n  b: 2\n";
        let new = "data:\n  a: |\n    first\n\n    # text\n  c: 3\n  b: |\n    last\n";
        let merged = with_comments_of(old, new).expect("valid");
        assert_eq!(value_of(&merged), value_of(new));
        assert!(merged.contains("# one"), "{merged}");

        // The whole form changes: from lines to braces.
        let merged = with_comments_of(OLD, "{apiVersion: v1, kind: ConfigMap}\n").expect("valid");
        assert_eq!(
            value_of(&merged),
            value_of("{apiVersion: v1, kind: ConfigMap}")
        );
        assert_eq!(merged.matches('#').count(), 7, "{merged}");
    }

    #[test]
    fn what_is_no_yaml_has_no_comments_to_keep() {
        assert_eq!(with_comments_of("a: [1 # open\n", "a: 1\n"), None);
    }

    #[test]
    fn the_comments_around_a_document_are_found() {
        assert_eq!(
            around("# head\n\na: 1\n# inner\nb: 2\n\n# tail\n"),
            "# head\n# tail\n"
        );
    }
}
