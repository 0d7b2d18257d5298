//! A function has fewer than 100 lines of code, or a reason.

use std::collections::BTreeSet;
use std::path::Path;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::source::Source;

/// From the signature to the closing brace. Blank lines and comments do not count: they are what
/// makes a long function readable.
const LIMIT: usize = 100;

const TABLE: &str = "a table: one arm or one block for each field, kind or metric";
const WIRING: &str = "straight wiring: each step runs once, in order";

/// Functions of [`LIMIT`] lines or more: the file or folder below `crates`, the name, and why the
/// function may be as long.
const LONG: &[(&str, &str, &str)] = &[
    ("control/src/http.rs", "answer", TABLE),
    ("control/src/metrics.rs", "encode", TABLE),
    ("control/src/run.rs", "start", WIRING),
    ("filters/src/format/parse.rs", "operator", TABLE),
    ("proto/src/json.rs", "own_files", TABLE),
    ("proxy/src", "answer", TABLE),
    ("proxy/src", "fact", TABLE),
    ("proxy-config/src/http/compile.rs", "check_fields", TABLE),
];

/// Remembers which entries of [`LONG`] were needed, so that the list cannot outlive its functions.
#[derive(Default)]
pub struct Exceptions {
    used: BTreeSet<usize>,
}

impl Exceptions {
    fn covers(&mut self, file: &str, function: &str) -> bool {
        let place = LONG
            .iter()
            .position(|(path, name, _)| is_within(file, path) && function == *name);
        self.used.extend(place);
        place.is_some()
    }

    /// A finding for each entry that no long function needs any more.
    pub fn unused(&self) -> Vec<String> {
        let unused = (0..LONG.len()).filter(|place| !self.used.contains(place));
        unused
            .map(|place| {
                let (file, name, _) = LONG[place];
                format!(
                    "{name} in crates/{file} is no longer long: remove it from tidy/functions.rs"
                )
            })
            .collect()
    }
}

fn is_within(file: &str, path: &str) -> bool {
    file.strip_prefix("crates/")
        .is_some_and(|file| Path::new(file).starts_with(path))
}

pub fn check(source: &Source, exceptions: &mut Exceptions) -> Vec<String> {
    let mut found = Vec::new();
    for function in functions(&source.shipped) {
        let lines = code_lines(&source.text, function.first, function.last);
        if lines >= LIMIT && !exceptions.covers(&source.shown, &function.name) {
            found.push(format!(
                "{}:{}: {} has {lines} lines: cut it below {LIMIT}",
                source.shown, function.first, function.name
            ));
        }
    }

    found
}

/// The lines from `first` to `last` (counted from 1) that hold code.
fn code_lines(text: &str, first: usize, last: usize) -> usize {
    text.lines()
        .skip(first - 1)
        .take(last - first + 1)
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

struct Function {
    name: String,
    first: usize,
    last: usize,
}

fn functions(file: &syn::File) -> Vec<Function> {
    #[derive(Default)]
    struct Functions(Vec<Function>);

    impl Functions {
        fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
            self.0.push(Function {
                name: signature.ident.to_string(),
                first: signature.span().start().line,
                last: block.span().end().line,
            });
        }
    }

    impl<'ast> Visit<'ast> for Functions {
        fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
            self.add(&function.sig, &function.block);
            visit::visit_item_fn(self, function);
        }

        fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
            self.add(&function.sig, &function.block);
            visit::visit_impl_item_fn(self, function);
        }

        fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
            if let Some(block) = &function.default {
                self.add(&function.sig, block);
            }
            visit::visit_trait_item_fn(self, function);
        }
    }

    let mut functions = Functions::default();
    functions.visit_file(file);
    functions.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A method with this many lines from the signature to the closing brace.
    fn method(lines: usize) -> Source {
        let body = "work();\n\n// Why.\n".repeat(lines - 2);
        let text = format!("impl A {{\n/// Not counted.\nfn long(&self) {{\n{body}}}\n}}");
        Source::parse("types", &text).expect("it parses")
    }

    #[test]
    fn a_function_of_100_lines_is_too_long() {
        let mut exceptions = Exceptions::default();

        assert_eq!(check(&method(99), &mut exceptions), Vec::<String>::new());
        assert_eq!(
            check(&method(100), &mut exceptions),
            ["code.rs:3: long has 100 lines: cut it below 100"]
        );
    }

    #[test]
    fn an_exception_that_nothing_needs_is_a_finding() {
        let (file, name, _) = LONG[0];
        let mut exceptions = Exceptions::default();
        assert_eq!(exceptions.unused().len(), LONG.len());

        assert!(exceptions.covers(&format!("crates/{file}"), name));
        assert!(!exceptions.covers(&format!("crates/{file}"), "other"));
        assert!(!exceptions.covers("crates/other/src/lib.rs", name));
        assert_eq!(exceptions.unused().len(), LONG.len() - 1);
    }
}
