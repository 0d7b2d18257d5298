//! Istio's filters that arrive as a `TypedStruct`: fields by name, beside the type that they stand
//! for. Istio sends its own filters so, since Envoy's Go library does not know their messages.

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::Any;
use meltemi_proto::google::protobuf::{Struct, value::Kind};
use meltemi_proto::istio::{
    IstioHeaders, PeerMetadataConfig, PeerMethod, StatsConfig, TypedStruct,
};
use prost::Message;

use crate::any::{last_segment, type_name};

/// The types of messages that hold a struct in place of their own fields.
const TYPED_STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];

/// Whether a struct stands in the place of the message itself.
pub(crate) fn is_typed_struct(any: &Any) -> bool {
    TYPED_STRUCTS.contains(&type_name(any))
}

/// The full name of the type that a `TypedStruct` stands for.
pub(crate) fn kind(any: &Any, scope: &Scope) -> Result<String, Rejection> {
    Ok(last_segment(&decode(any, scope)?.type_url).to_owned())
}

/// The message of Istio's filter `peer_metadata`, in either form.
pub(crate) fn peer_metadata(any: &Any, scope: &Scope) -> Result<PeerMetadataConfig, Rejection> {
    if !is_typed_struct(any) {
        return scope.unpack(any);
    }

    let fields = decode(any, scope)?.value.unwrap_or_default();
    Ok(PeerMetadataConfig {
        downstream_discovery: peer_methods(&fields, "downstream_discovery"),
        upstream_discovery: peer_methods(&fields, "upstream_discovery"),
        downstream_propagation: peer_methods(&fields, "downstream_propagation"),
        upstream_propagation: peer_methods(&fields, "upstream_propagation"),
    })
}

/// The message of Istio's filter `stats`: its own, a struct, or none where the filter is only named.
pub(crate) fn stats(any: &Any, scope: &Scope) -> Result<StatsConfig, Rejection> {
    if is_typed_struct(any) {
        let fields = decode(any, scope)?.value.unwrap_or_default();
        return Ok(StatsConfig {
            disable_host_header_fallback: boolean(&fields, "disable_host_header_fallback"),
            ..StatsConfig::default()
        });
    }
    if any.type_url.is_empty() {
        return Ok(StatsConfig::default());
    }

    scope.unpack(any)
}

fn decode(any: &Any, scope: &Scope) -> Result<TypedStruct, Rejection> {
    TypedStruct::decode(any.value.as_slice()).map_err(|error| scope.reject(error.to_string()))
}

/// A list of methods. A method that is unknown becomes an empty one, of which the filter warns.
fn peer_methods(fields: &Struct, name: &str) -> Vec<PeerMethod> {
    let Some(Kind::ListValue(list)) = field(fields, name) else {
        return Vec::new();
    };

    let method = |value: &meltemi_proto::google::protobuf::Value| {
        let Some(Kind::StructValue(method)) = &value.kind else {
            return PeerMethod::default();
        };
        let Some(Kind::StructValue(headers)) = field(method, "istio_headers") else {
            return PeerMethod::default();
        };
        PeerMethod {
            istio_headers: Some(IstioHeaders {
                skip_external_clusters: boolean(headers, "skip_external_clusters"),
            }),
        }
    };

    list.values.iter().map(method).collect()
}

fn boolean(fields: &Struct, name: &str) -> bool {
    field(fields, name) == Some(&Kind::BoolValue(true))
}

/// A field by its name in the proto file, or by the camelCase name of its JSON form.
fn field<'a>(fields: &'a Struct, name: &str) -> Option<&'a Kind> {
    let value = fields
        .fields
        .get(name)
        .or_else(|| fields.fields.get(&camel_case(name)))?;

    value.kind.as_ref()
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }

    camel
}

#[cfg(test)]
mod tests {
    use meltemi_filters::PeerMetadata;
    use meltemi_filters::http::HttpFilter;
    use meltemi_proto::envoy::extensions::filters::http::compressor::v3::Compressor;
    use meltemi_proto::google::protobuf::{ListValue, Value};
    use meltemi_proto::pack;
    use serde_json::json;

    use super::*;
    use crate::compile_listener;
    use crate::listener::Terminal;
    use crate::tests::{http_filter, manager, router, simple};

    fn value(json: &serde_json::Value) -> Value {
        let kind = match json {
            serde_json::Value::Bool(bool) => Kind::BoolValue(*bool),
            serde_json::Value::String(text) => Kind::StringValue(text.clone()),
            serde_json::Value::Array(values) => Kind::ListValue(ListValue {
                values: values.iter().map(value).collect(),
            }),
            serde_json::Value::Object(fields) => Kind::StructValue(Struct {
                fields: fields
                    .iter()
                    .map(|(name, json)| (name.clone(), value(json)))
                    .collect(),
            }),
            other => panic!("no test needs {other}"),
        };

        Value { kind: Some(kind) }
    }

    /// A message in the form in which istiod sends the filters of Istio's own.
    fn as_struct(type_name: &str, fields: &serde_json::Value) -> Any {
        let Some(Kind::StructValue(fields)) = value(fields).kind else {
            panic!("{fields} is no object");
        };
        let mut any = pack(&TypedStruct {
            type_url: format!("type.googleapis.com/{type_name}"),
            value: Some(fields),
        });
        any.type_url = "type.googleapis.com/udpa.type.v1.TypedStruct".to_owned();
        any
    }

    #[test]
    fn peer_metadata_of_istiod_is_read_field_by_field() {
        let config = as_struct(
            "io.istio.http.peer_metadata.Config",
            &json!({
                "upstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
                "upstream_propagation": [{"istio_headers": {"skip_external_clusters": true}}],
                "additional_labels": ["team"],
            }),
        );
        let filters = vec![http_filter("istio.metadata_exchange", config), router()];
        let (listener, warnings) =
            compile_listener(&simple("l", "0.0.0.0", 80, vec![manager(filters)]))
                .expect("istiod's listener is taken");

        let Terminal::Http(manager) = &listener.chains.all[0].terminal else {
            panic!("an HTTP chain");
        };
        let slots: Vec<_> = manager
            .filters
            .slots()
            .map(|(_, slot)| &slot.filter)
            .collect();
        let [HttpFilter::PeerMetadata(filter)] = slots[..] else {
            panic!("one filter: {slots:?}");
        };
        assert_eq!(
            *filter,
            PeerMetadata {
                upstream_discovery: true,
                upstream_propagation: true,
                skip_external: true,
                ..PeerMetadata::default()
            }
        );
        assert_eq!(warnings.len(), 1, "workload_discovery: {warnings:?}");
    }

    #[test]
    fn a_struct_for_any_other_filter_is_refused_by_its_name() {
        let config = as_struct("envoy.extensions.filters.http.lua.v3.Lua", &json!({}));
        let filters = vec![http_filter("lua", config), router()];
        let rejection = compile_listener(&simple("l", "0.0.0.0", 80, vec![manager(filters)]))
            .expect_err("an unknown filter");
        assert!(rejection.reason.contains("\"lua\""), "{rejection}");
    }

    #[test]
    fn a_compressor_is_left_out_with_a_warning() {
        let filters = vec![
            http_filter(
                "envoy.filters.http.compressor.gzip",
                pack(&Compressor::default()),
            ),
            router(),
        ];
        let (_, warnings) = compile_listener(&simple("l", "0.0.0.0", 80, vec![manager(filters)]))
            .expect("a listener that serves uncompressed");
        assert!(warnings[0].reason.contains("uncompressed"), "{warnings:?}");
    }

    #[test]
    fn camel_case_names_are_those_of_json() {
        assert_eq!(
            camel_case("disable_host_header_fallback"),
            "disableHostHeaderFallback"
        );
        assert_eq!(camel_case("tag"), "tag");
    }
}
