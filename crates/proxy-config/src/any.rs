//! Messages inside an `Any`: which type they claim to be.

use meltemi_proto::Any;

/// The full name in a type URL, such as `envoy.extensions.filters.http.router.v3.Router`.
pub(crate) fn type_name(any: &Any) -> &str {
    last_segment(&any.type_url)
}

/// The part of a type URL behind its last slash.
pub(crate) fn last_segment(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}
