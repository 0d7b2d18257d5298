//! Searching code for paths such as `SystemTime::now`, blind to comments, strings and line breaks.

use std::str::FromStr;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::UseTree;
use syn::visit::Visit;

/// The tokens and the imports of a file or of a part of it.
pub struct Code {
    tokens: Vec<Token>,
    /// The full path of each name in a `use`, groups taken apart.
    imports: Vec<Token>,
}

struct Token {
    text: String,
    line: usize,
}

impl Code {
    pub fn of(file: &syn::File) -> Self {
        let mut tokens = Vec::new();
        flatten(file.to_token_stream(), &mut tokens);

        let mut imports = Imports(Vec::new());
        imports.visit_file(file);

        Self {
            tokens,
            imports: imports.0,
        }
    }

    /// The lines where a path is used, written out or imported: `std::fs` is found in
    /// `std::fs::read(..)` and in `use std::{fs, net}`.
    pub fn lines_with(&self, path: &str) -> Vec<usize> {
        let pattern = words(path);
        let written = self.tokens.windows(pattern.len()).filter(|window| {
            let texts = window.iter().map(|token| &token.text);
            texts.eq(&pattern)
        });

        let below = format!("{path}::");
        let imported = self
            .imports
            .iter()
            .filter(|import| import.text == path || import.text.starts_with(&below));

        let mut lines: Vec<usize> = written.map(|window| window[0].line).collect();
        lines.extend(imported.map(|import| import.line));
        lines.sort_unstable();
        lines.dedup();
        lines
    }
}

fn words(path: &str) -> Vec<String> {
    let stream = TokenStream::from_str(path).expect("patterns are constants that parse");
    let mut tokens = Vec::new();
    flatten(stream, &mut tokens);
    tokens.into_iter().map(|token| token.text).collect()
}

fn flatten(stream: TokenStream, out: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => flatten(group.stream(), out),
            other => out.push(Token {
                text: other.to_string(),
                line,
            }),
        }
    }
}

struct Imports(Vec<Token>);

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add(String::new(), &item.tree);
    }
}

impl Imports {
    fn add(&mut self, prefix: String, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                self.add(format!("{prefix}{}::", path.ident), &path.tree);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add(prefix.clone(), tree);
                }
            }
            UseTree::Name(syn::UseName { ident })
            | UseTree::Rename(syn::UseRename { ident, .. }) => {
                let text = match ident.to_string().as_str() {
                    "self" => prefix.trim_end_matches("::").to_owned(),
                    name => format!("{prefix}{name}"),
                };
                let line = ident.span().start().line;
                self.0.push(Token { text, line });
            }
            UseTree::Glob(glob) => {
                let line = glob.star_token.span.start().line;
                let text = format!("{prefix}*");
                self.0.push(Token { text, line });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, path: &str) -> Vec<usize> {
        let file = syn::parse_file(text).expect("it parses");
        Code::of(&file).lines_with(path)
    }

    #[test]
    fn a_path_is_found_across_lines_and_within_macros() {
        let text = "fn f() {\n let now = SystemTime\n ::now();\n vec![SystemTime::now()];\n}";

        assert_eq!(lines(text, "SystemTime::now"), [2, 4]);
    }

    #[test]
    fn comments_strings_and_longer_names_are_no_use() {
        let text =
            "/// std::fs\nfn f() {\n // std::fs\n g(\"std::fs\");\n mystd::fs();\n std::fsx();\n}";

        assert_eq!(lines(text, "std::fs"), Vec::<usize>::new());
    }

    #[test]
    fn imports_are_taken_apart() {
        let text = "use std::{\n net,\n fs::{self, File as F},\n};\nuse std::fs;\nuse std::time;";

        assert_eq!(lines(text, "std::fs"), [3, 5]);
        assert_eq!(lines(text, "std::fs::File"), [3]);
    }
}
