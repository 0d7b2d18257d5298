//! Parses names of objects, workloads and labels in kubectl's syntax: `vs`, `vs,dr`, `vs reviews`,
//! `vs/reviews`, `deploy/productpage-v1`, `app=reviews`.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use meltemi_types::ObjectRef;

/// One object, or with an empty name all objects of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedObject {
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl NamedObject {
    fn new(kind: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// Parses the words of a command line: `vs`, `vs,dr`, `vs a b` or `vs/a dr/b`.
pub(crate) fn parse_names(words: &[String]) -> Result<Vec<NamedObject>> {
    let Some((first, names)) = words.split_first() else {
        return Ok(Vec::new());
    };
    if words.iter().any(|word| word.contains('/')) {
        let pair = |word: &String| match word.split_once('/') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() => {
                Ok(NamedObject::new(kind, name))
            }
            _ => bail!("{word:?}: where one object is written KIND/NAME, all of them are"),
        };
        return words.iter().map(pair).collect();
    }

    let kinds: Vec<&str> = first
        .split(',')
        .map(str::trim)
        .filter(|kind| !kind.is_empty())
        .collect();

    ensure!(!kinds.is_empty(), "{first:?} names no kind");
    if names.is_empty() {
        return Ok(kinds
            .into_iter()
            .map(|kind| NamedObject::new(kind, ""))
            .collect());
    }

    Ok(kinds
        .iter()
        .flat_map(|kind| names.iter().map(|name| NamedObject::new(kind, name)))
        .collect())
}

/// The kind as kubectl prints it before a name: `virtualservice`,
/// `httproute.gateway.networking.k8s.io`.
pub(crate) fn resource(object: &ObjectRef) -> String {
    object.qualified_kind().to_lowercase()
}

/// Removes the type that kubectl allows before a workload's name, as in `deploy/reviews-v1`.
pub(crate) fn workload(word: &str) -> &str {
    const TYPES: [&str; 10] = [
        "deploy",
        "deployment",
        "deployments",
        "deployment.apps",
        "deployments.apps",
        "po",
        "pod",
        "pods",
        "workload",
        "workloads",
    ];

    match word.split_once('/') {
        Some((kind, name)) if TYPES.contains(&kind.to_ascii_lowercase().as_str()) => name,
        _ => word,
    }
}

/// An equality-based label selector: (key, value, whether they must be equal). Without a value the
/// key must exist.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelFilter(Vec<(String, Option<String>, bool)>);

impl LabelFilter {
    /// Parses `a=b,c!=d,e`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut terms = Vec::new();
        for term in text
            .split(',')
            .map(str::trim)
            .filter(|term| !term.is_empty())
        {
            let (key, value, must_equal) = if let Some((key, value)) = term.split_once("!=") {
                (key, Some(value), false)
            } else if let Some((key, value)) =
                term.split_once("==").or_else(|| term.split_once('='))
            {
                (key, Some(value), true)
            } else {
                (term, None, true)
            };

            ensure!(
                !key.trim().is_empty() && !key.contains(['(', ' ']),
                "--selector {term:?}: expected KEY=VALUE, KEY!=VALUE or KEY"
            );

            terms.push((
                key.trim().to_owned(),
                value.map(|value| value.trim().to_owned()),
                must_equal,
            ));
        }

        Ok(Self(terms))
    }

    /// Whether the labels satisfy every term.
    pub(crate) fn matches(&self, labels: &BTreeMap<&str, &str>) -> bool {
        self.0.iter().all(
            |(key, value, must_equal)| match (labels.get(key.as_str()), value) {
                (found, Some(value)) => (found == Some(&value.as_str())) == *must_equal,
                (found, None) => found.is_some(),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Vec<(String, String)>> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Ok(parse_names(&words)?
            .into_iter()
            .map(|object| (object.kind, object.name))
            .collect())
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter()
            .map(|(kind, name)| ((*kind).to_owned(), (*name).to_owned()))
            .collect()
    }

    #[test]
    fn objects_are_named_as_with_kubectl() {
        assert_eq!(parse(&["vs"]).unwrap(), pairs(&[("vs", "")]));
        assert_eq!(parse(&["vs,dr"]).unwrap(), pairs(&[("vs", ""), ("dr", "")]));
        assert_eq!(
            parse(&["vs", "a", "b"]).unwrap(),
            pairs(&[("vs", "a"), ("vs", "b")])
        );

        assert_eq!(
            parse(&["vs/a", "dr/b"]).unwrap(),
            pairs(&[("vs", "a"), ("dr", "b")])
        );

        for slip in [&["vs/a", "b"][..], &["vs/"], &[","]] {
            assert!(parse(slip).is_err(), "{slip:?}");
        }
    }

    #[test]
    fn workloads_may_carry_their_type() {
        for word in [
            "reviews-v1",
            "deploy/reviews-v1",
            "Deployment/reviews-v1",
            "pod/reviews-v1",
            "workload/reviews-v1",
        ] {
            assert_eq!(workload(word), "reviews-v1");
        }

        assert_eq!(workload("svc/reviews"), "svc/reviews");
    }

    #[test]
    fn selectors_match_labels() {
        let labels = BTreeMap::from([("app", "reviews"), ("version", "v1")]);
        for (selector, matches) in [
            ("app=reviews", true),
            ("app==reviews,version=v1", true),
            ("app=reviews,version!=v1", false),
            ("tier!=web", true),
            ("version", true),
            ("tier", false),
        ] {
            assert_eq!(
                LabelFilter::parse(selector).unwrap().matches(&labels),
                matches,
                "{selector}"
            );
        }

        assert!(LabelFilter::parse("app in (a, b)").is_err());
    }
}
