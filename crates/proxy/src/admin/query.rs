//! The query of an admin page: the part after the question mark.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use regex::Regex;

/// Keys and values, decoded; a key without a value has an empty one.
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Of a URI.
    pub fn of(text: &'a str) -> Self {
        let decoded = |text: &'a str| percent_decode_str(text).decode_utf8_lossy();
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            match pair.split_once('=') {
                Some((key, value)) => (decoded(key), decoded(value)),
                None => (decoded(pair), Cow::Borrowed("")),
            }
        });
        Self(pairs.collect())
    }

    /// All of it, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The first value of this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// Whether the key stands there at all.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value as a regular expression, searched for anywhere in a name. The error is for the one
    /// who asked.
    pub fn regex(&self, key: &str) -> Result<Option<Regex>, String> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        Regex::new(text)
            .map(Some)
            .map_err(|error| format!("{key}={text} is no regular expression: {error}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn values_are_decoded_and_expressions_checked() {
        let query = Query::of("filter=%5Ecds%5C.&usedonly&&format=json");
        assert_eq!(
            (query.get("filter"), query.get("format")),
            (Some("^cds\\."), Some("json"))
        );

        assert!(query.has("usedonly") && !query.has("") && !query.has("json"));
        let filter = query
            .regex("filter")
            .expect("it is one")
            .expect("it is there");

        assert!(filter.is_match("cds.update_success") && !filter.is_match("a.cds."));
        assert!(
            Query::of("filter=%28")
                .regex("filter")
                .expect_err("it is none")
                .starts_with("filter=( is no")
        );

        assert!(
            query
                .regex("name_regex")
                .expect("nothing is no error")
                .is_none()
        );
    }
}
