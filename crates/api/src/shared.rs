//! Messages that several kinds share: selectors, targets, string matches, ports.

use std::collections::BTreeMap;

use meltemi_types::Selector;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::schema::{Field, Report, message};

message! {
    /// Which workloads an object is for, by label; without labels: all of the namespace.
    pub struct WorkloadSelector {
        /// Pairs that must all be among the workload's labels.
        match_labels: Selector = "matchLabels",
    }

    /// The older spelling of [`WorkloadSelector`], in ServiceEntry, Sidecar and EnvoyFilter.
    pub struct LabelSelector {
        /// Pairs that must all be among the workload's labels.
        labels: Selector = "labels",
    }

    /// The object that a policy attaches to, in the policy's own namespace.
    pub struct TargetReference {
        /// API group; empty is core.
        group: String = "group",
        /// Kind: Gateway, GatewayClass, Service or ServiceEntry.
        kind: String = "kind" [required, non_empty],
        name: String = "name" [required, non_empty],
        /// Only the policy's own namespace is supported.
        namespace: String = "namespace",
    }

    /// A port, by number only.
    pub struct PortSelector {
        /// 1 to 65535.
        number: u32 = "number",
    }

    /// A share of requests.
    pub struct Percent {
        /// 0 to 100, fractions allowed.
        value: f64 = "value",
    }
}

/// How a string is compared. Written `{exact: ..}`, `{prefix: ..}`, `{regex: ..}`; `{}` asks for
/// presence only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StringMatch {
    /// Anything, as long as it is there.
    #[default]
    Present,
    /// The same bytes.
    Exact(String),
    /// These bytes first.
    Prefix(String),
    /// An RE2 expression that covers the whole string.
    Regex(String),
}

impl StringMatch {
    /// The text compared with; `None` for presence.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Present => None,
            Self::Exact(text) | Self::Prefix(text) | Self::Regex(text) => Some(text),
        }
    }
}

impl Field for StringMatch {
    fn read(&mut self, value: &Value, report: &mut Report) {
        // `headers: {x-debug: null}` and `{x-debug: {}}` both mean presence.
        if value.is_null() {
            *self = Self::Present;
            return;
        }

        let Some(map) = report.object(value) else {
            return;
        };
        let mut chosen = 0;
        for (key, value) in map {
            let form: fn(String) -> Self = match key.as_str() {
                "exact" => Self::Exact,
                "prefix" => Self::Prefix,
                "regex" => Self::Regex,
                _ => {
                    report.unknown_field(key, &["exact", "prefix", "regex"]);
                    continue;
                }
            };

            if value.is_null() {
                continue;
            }
            let mut text = String::new();
            report.field(key, |report| text.read(value, report));
            *self = form(text);
            chosen += 1;
        }

        if chosen > 1 {
            report.error(
                "MEL0112",
                "only one of exact, prefix or regex can be set",
                "keep one of them",
            );
        }
    }

    fn is_unset(&self) -> bool {
        *self == Self::Present
    }
}

impl Serialize for StringMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (key, text) = match self {
            Self::Present => return serializer.serialize_map(Some(0))?.end(),
            Self::Exact(text) => ("exact", text),
            Self::Prefix(text) => ("prefix", text),
            Self::Regex(text) => ("regex", text),
        };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(key, text)?;
        map.end()
    }
}

/// Matches by name: of a header or a query parameter.
pub type StringMatches = BTreeMap<String, StringMatch>;
