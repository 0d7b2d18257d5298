//! Small conversions that several compilers share.
//!
//! A compile function takes its message apart field by field, without `..`: a field that is new in
//! Envoy's API, or that was forgotten, does not compile until somebody decides what becomes of it.
//! A field that this proxy does not honour goes to [`not_honoured!`]; a field that may be ignored
//! without telling anybody is bound to `_`, with the reason beside it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::metadata::Value;
use meltemi_filters::{Rejection, Scope, format};
use meltemi_lb::SubsetMatch;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::google::protobuf::{BoolValue, Duration as ProtoDuration, UInt32Value};

/// Whether a protobuf field says anything: a field with its default value is not on the wire.
pub(crate) trait IsSet {
    /// False for an absent message, an empty list, map or text, 0 and false.
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}

impl IsSet for i32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

impl IsSet for u32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

/// Warns of each of these fields that is set. The name of the binding is the name in the warning.
macro_rules! not_honoured {
    ($scope:expr, $($field:ident),+ $(,)?) => {
        $($scope.unsupported(stringify!($field), $crate::convert::IsSet::is_set($field));)+
    };
}
pub(crate) use not_honoured;

/// A wrapped boolean with its default.
pub(crate) fn boolean(value: Option<&BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

/// A wrapped number with its default.
pub(crate) fn number(value: Option<&UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

/// A limit in time: absent means `default`, zero means no limit.
pub(crate) fn limit(
    field: &str,
    value: Option<&ProtoDuration>,
    default: Option<Duration>,
    scope: &Scope,
) -> Result<Option<Duration>, Rejection> {
    Ok(match scope.duration(field, value)? {
        None => default,
        Some(duration) => Some(duration).filter(|duration| !duration.is_zero()),
    })
}

/// A duration for which absent and zero both mean `default`.
pub(crate) fn duration_or(
    field: &str,
    value: Option<&ProtoDuration>,
    default: Duration,
    scope: &Scope,
) -> Result<Duration, Rejection> {
    Ok(limit(field, value, None, scope)?.unwrap_or(default))
}

/// Text that is empty where the message has none.
pub(crate) fn non_empty<'m, T: From<&'m str>>(text: &'m str) -> Option<T> {
    (!text.is_empty()).then(|| text.into())
}

/// Refuses a text that would end the line of the head that it is written into. Envoy refuses the
/// same (`well_known_regex: HTTP_HEADER_VALUE`).
pub(crate) fn require_one_line(field: &str, text: &str, scope: &Scope) -> Result<(), Rejection> {
    match meltemi_types::breaks_line(text) {
        true => scope.refuse(format!("{field} holds a line break or a control character")),
        false => Ok(()),
    }
}

/// The lower-case name of a header, as [`meltemi_filters::RequestHead`] looks it up.
pub(crate) fn header_name(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

/// A metadata value as text, the same for equal values: text as it is, all else as JSON.
pub(crate) fn canonical_value(value: &Value) -> Arc<str> {
    match value {
        Value::String(text) => text.clone(),
        value => format::json_of(value).to_string().into(),
    }
}

/// The metadata that endpoints must have: `envoy.lb` of a `metadata_match`.
pub(crate) fn subset_match(metadata: Option<&core::Metadata>) -> Option<SubsetMatch> {
    let fields = metadata?.filter_metadata.get("envoy.lb")?;
    let pairs = fields.fields.iter().map(|(key, value)| {
        (
            Arc::<str>::from(key.as_str()),
            canonical_value(&Value::from_proto(value)),
        )
    });
    Some(SubsetMatch::new(pairs)).filter(|criteria| !criteria.is_empty())
}

/// The `metadata_match` of a weighted cluster laid over the one of the whole action.
pub(crate) fn weighted_subset_match(
    own: Option<&core::Metadata>,
    general: Option<&SubsetMatch>,
) -> Option<SubsetMatch> {
    match (subset_match(own), general) {
        (Some(own), Some(general)) => Some(own.over(general)),
        (own, general) => own.or_else(|| general.cloned()),
    }
}

/// Refuses a resource that would come from elsewhere than the ADS stream: nobody would fetch it,
/// and whatever needs it would wait for ever.
pub(crate) fn require_ads(
    field: &str,
    source: Option<&core::ConfigSource>,
    scope: &Scope,
) -> Result<(), Rejection> {
    use core::config_source::ConfigSourceSpecifier;

    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        None | Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        Some(_) => scope.refuse(format!("{field}: only ADS is known")),
    }
}
