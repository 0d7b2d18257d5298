//! Path templates.

use meltemi_proto::envoy::config::core::v3::TypedExtensionConfig;
use meltemi_proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;

use super::FullRegex;
use crate::finding::{Rejection, Scope};

/// A path template: `/a/*/c`, `/a/**`, `/{x}/b`, `/a/{rest=**}.json`. Source: Envoy `uri_template`,
/// which makes a regular expression of it, too.
#[derive(Debug, Clone, PartialEq)]
pub struct PathTemplate(FullRegex);

/// Templates longer than this are refused.
const MAX_TEMPLATE: usize = 4096;
/// One segment: everything but a slash. A character that were left out here would be a way around a
/// DENY policy.
const SEGMENT: &str = "[^/]+";
/// Any rest, also an empty one.
const REST: &str = "(?s:.*)";

impl PathTemplate {
    /// Compiles the extension `envoy.path.match.uri_template.uri_template_matcher`.
    pub fn compile(message: &TypedExtensionConfig, scope: &mut Scope) -> Result<Self, Rejection> {
        let any = scope.required("typed_config", message.typed_config.as_ref())?;
        let config: UriTemplateMatchConfig = scope.unpack(any)?;
        Self::parse(&config.path_template).map_err(|reason| scope.reject(reason))
    }

    /// Parses a template. `**` may be used once, and no operator may follow it.
    pub fn parse(template: &str) -> Result<Self, String> {
        if template.len() > MAX_TEMPLATE {
            return Err("path template is too long".to_owned());
        }
        if !template.starts_with('/') {
            return Err("path template does not begin with /".to_owned());
        }
        let mut pattern = String::with_capacity(template.len() * 2);
        let mut rest_seen = false;
        translate(template, &mut pattern, &mut rest_seen, true)?;

        FullRegex::new(&pattern).map(Self)
    }

    /// Whether a path without query matches.
    pub fn is_match(&self, path: &str) -> bool {
        self.0.is_match(path.as_bytes())
    }
}

fn translate(
    mut text: &str,
    pattern: &mut String,
    rest_seen: &mut bool,
    variables: bool,
) -> Result<(), String> {
    while let Some(next) = text.chars().next() {
        if matches!(next, '*' | '{') && *rest_seen {
            return Err("** must be the last operator of a path template".to_owned());
        }
        if let Some(tail) = text.strip_prefix("**") {
            *rest_seen = true;
            pattern.push_str(REST);
            text = tail;
        } else if let Some(tail) = text.strip_prefix('*') {
            pattern.push_str(SEGMENT);
            text = tail;
        } else if let Some(tail) = text.strip_prefix('{') {
            let (variable, tail) = tail
                .split_once('}')
                .ok_or("unbalanced brace in a path template")?;
            if !variables || variable.is_empty() || variable.contains('{') {
                return Err(
                    "a variable within a variable, or an empty one, in a path template".to_owned(),
                );
            }

            // `{*}` and `{**}` are Istio's spelling, `{name}` and `{name=pattern}` are Envoy's.
            let inner = match variable {
                "*" | "**" => variable,
                _ => variable.split_once('=').map_or("*", |(_, inner)| inner),
            };

            translate(inner, pattern, rest_seen, false)?;
            text = tail;
        } else if next == '}' {
            return Err("unbalanced brace in a path template".to_owned());
        } else {
            let (literal, tail) = text.split_at(next.len_utf8());
            if !next.is_ascii_alphanumeric() && next.is_ascii() {
                pattern.push('\\');
            }
            pattern.push_str(literal);
            text = tail;
        }
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_paths() {
        for (template, path, matches) in [
            ("/a/*/c", "/a/b/c", true),
            ("/a/{*}/c", "/a/b/c", true),
            ("/a/*/c", "/a/*/c", true),
            ("/a/{*}/c", "/a/b*c/c", true),
            ("/a/*/c", "/a/\"<>[]^`{|}/c", true),
            ("/a/**", "/a/b/<", true),
            ("/a/*/c", "/a//c", false),
            ("/a/*/c", "/a/b/x/c", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a", false),
            ("/a/*", "/a/b/", false),
            ("/a/{**}", "/a/b/c/d", true),
            ("/a/**", "/a/", true),
            ("/a/**", "/ab", false),
            ("/{**}/x.json", "/a/b/x.json", true),
            ("/{**}/x.json", "/a/b/xZjson", false),
            ("/foo/{name}.txt", "/foo/bar.txt", true),
            ("/foo/{name}.txt", "/foo/.txt", false),
            ("/a/{rest=b/*/c}", "/a/b/x/c", true),
            ("/a/{rest=**}.m3u8", "/a/b/c.m3u8", true),
            ("/a", "/a", true),
            ("/a", "/a/", false),
        ] {
            let compiled = PathTemplate::parse(template).expect(template);
            assert_eq!(compiled.is_match(path), matches, "{template} on {path}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for template in ["a", "/{a", "/a}", "/**/*", "/{a={b}}", "/{}"] {
            assert!(PathTemplate::parse(template).is_err(), "{template}");
        }
    }
}
