//! An exception from a lint says why it is made.

use syn::spanned::Spanned;
use syn::visit::Visit;

use super::source::Source;

/// A finding for each `allow` or `expect` of a lint without a reason.
pub fn check(source: &Source) -> Vec<String> {
    let mut unexplained = Unexplained::default();
    unexplained.visit_file(&source.whole);

    let findings = unexplained.lines.iter().map(|line| {
        format!(
            "{}:{line}: an exception from a lint without a reason: write #[expect(LINT, reason = \"...\")]",
            source.shown
        )
    });
    findings.collect()
}

#[derive(Default)]
struct Unexplained {
    lines: Vec<usize>,
}

impl<'ast> Visit<'ast> for Unexplained {
    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let path = attribute.path();
        if !path.is_ident("allow") && !path.is_ident("expect") {
            return;
        }

        let has_reason = match &attribute.meta {
            syn::Meta::List(list) => list.tokens.to_string().contains("reason ="),
            _ => false,
        };
        if !has_reason {
            self.lines.push(attribute.span().start().line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> usize {
        check(&Source::parse("proxy", text).expect("it parses")).len()
    }

    #[test]
    fn an_exception_needs_a_reason() {
        assert_eq!(found("#[allow(dead_code)] fn f() {}"), 1);
        assert_eq!(found("#![expect(unsafe_code)] fn f() {}"), 1);
        assert_eq!(found("fn f() { #[allow(unused_mut)] let mut x = 1; }"), 1);
        assert_eq!(
            found("#[expect(dead_code, reason = \"the next filter reads it\")] fn f() {}"),
            0
        );
        assert_eq!(found("#[derive(Debug)] struct S;"), 0);
    }
}
