//! Messages inside an `Any`: which type they claim to be.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::Any;
use meltemi_proto::istio::TypedStruct;
use prost::Message;

/// The full name in a type URL, such as `envoy.extensions.filters.http.router.v3.Router`.
pub(crate) fn type_name(any: &Any) -> &str {
    last_segment(&any.type_url)
}

/// Decodes a message that was sent as a struct beside the type that it stands for. Istio sends some
/// filters this way.
pub(crate) fn typed_struct(any: &Any, scope: &Scope) -> Result<TypedStruct, Rejection> {
    TypedStruct::decode(any.value.as_slice()).map_err(|error| scope.reject(error.to_string()))
}

/// The full name of the type that a `TypedStruct` stands for.
pub(crate) fn typed_struct_kind(any: &Any, scope: &Scope) -> Result<String, Rejection> {
    Ok(last_segment(&typed_struct(any, scope)?.type_url).to_owned())
}

fn last_segment(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}
