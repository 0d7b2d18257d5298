//! Where each field of a document is written.

/// A tree beside the document's value: for each field and item, line and column (from 1) of its
/// key, or of the item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) children: Children,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Children {
    #[default]
    None,
    Fields(Vec<(Box<str>, Positions)>),
    Items(Vec<Positions>),
}

/// A step of a field path.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Positions {
    /// Line and column of a field path such as `spec.http[0].match["x.y"]`, or of the nearest thing
    /// around it that is written.
    pub fn find(&self, path: &str) -> (u32, u32) {
        let mut here = self;
        for step in Steps(path) {
            match here.step(&step) {
                Some(next) => here = next,
                None => break,
            }
        }
        (here.line, here.column)
    }

    /// The tree below a field path; `None` if it is not written.
    pub fn below(&self, path: &str) -> Option<&Self> {
        Steps(path).try_fold(self, |here, step| here.step(&step))
    }

    fn step(&self, step: &Step<'_>) -> Option<&Self> {
        match (step, &self.children) {
            (Step::Key(key), Children::Fields(fields)) => fields
                .iter()
                .find(|(name, _)| &**name == *key)
                .map(|(_, below)| below),
            (Step::Index(index), Children::Items(items)) => items.get(*index),
            _ => None,
        }
    }
}

/// Steps of a path, in order; what is not a path ends them.
struct Steps<'a>(&'a str);

impl<'a> Iterator for Steps<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        let rest = self.0.strip_prefix('.').unwrap_or(self.0);
        if let Some(quoted) = rest.strip_prefix("[\"") {
            // A key may hold anything, `"]` too; the last one that is followed by a new step or the
            // end is its end.
            let end = quoted.match_indices("\"]").map(|(at, _)| at).find(|at| {
                let after = &quoted[at + 2..];
                after.is_empty() || after.starts_with(['.', '['])
            })?;
            self.0 = &quoted[end + 2..];
            return Some(Step::Key(&quoted[..end]));
        }

        if let Some(inner) = rest.strip_prefix('[') {
            let (index, after) = inner.split_once(']')?;
            self.0 = after;
            return index.parse().ok().map(Step::Index);
        }

        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        if end == 0 {
            return None;
        }
        self.0 = &rest[end..];

        Some(Step::Key(&rest[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let steps: Vec<_> = Steps("spec.http[12].headers[\"a.b[0]\"].exact").collect();
        let expected = [
            Step::Key("spec"),
            Step::Key("http"),
            Step::Index(12),
            Step::Key("headers"),
            Step::Key("a.b[0]"),
            Step::Key("exact"),
        ];

        assert_eq!(steps, expected);
        assert_eq!(
            Steps("[").count() + Steps("[\"x").count() + Steps("").count() + Steps("[x]").count(),
            0
        );
    }
}
