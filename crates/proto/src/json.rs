//! Messages as JSON and back, by reflection: for bootstrap files and for dumps that people read.
//!
//! The descriptors cost some 17 MB and 100 ms: make a [`Reflection`] when one is needed, and drop
//! it afterwards.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MessageOptions,
};
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::Any;

static ENVOY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));

/// Why a message cannot be read or written.
#[derive(Debug)]
pub struct JsonError(String);

impl std::fmt::Display for JsonError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for JsonError {}

/// Descriptors of all messages this crate has.
pub struct Reflection {
    pool: DescriptorPool,
}

impl std::fmt::Debug for Reflection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reflection").finish_non_exhaustive()
    }
}

impl Reflection {
    /// Decodes the descriptors.
    pub fn new() -> Result<Self, JsonError> {
        let mut pool = DescriptorPool::decode(ENVOY)
            .map_err(|error| JsonError(format!("descriptors: {error}")))?;
        for file in own_files() {
            pool.add_file_descriptor_proto(file)
                .map_err(|error| JsonError(format!("descriptors: {error}")))?;
        }
        Ok(Self { pool })
    }

    /// A message with nested `Any`s opened, field names as Envoy prints them. What is of an unknown
    /// type stays base64.
    pub fn to_json(&self, any: &Any) -> Value {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        let opened = self.pool.get_message_by_name(name).and_then(|descriptor| {
            let message = DynamicMessage::decode(descriptor, any.value.as_slice()).ok()?;
            let options = SerializeOptions::new()
                .use_proto_field_name(true)
                .stringify_64_bit_integers(false);
            message
                .serialize_with_options(serde_json::value::Serializer, &options)
                .ok()
        });

        match opened {
            Some(Value::Object(fields)) => {
                let mut whole = serde_json::Map::new();
                whole.insert("@type".to_owned(), Value::String(any.type_url.clone()));
                whole.extend(fields);
                Value::Object(whole)
            }
            _ => serde_json::json!({"@type": any.type_url, "value": STANDARD.encode(&any.value)}),
        }
    }

    /// Reads a message from JSON in either spelling of field names; an unknown field or a wrong
    /// value is an error.
    pub fn from_json<M: Message + prost::Name + Default>(
        &self,
        value: &Value,
    ) -> Result<M, JsonError> {
        let name = M::full_name();
        let descriptor = self
            .pool
            .get_message_by_name(&name)
            .ok_or_else(|| JsonError(format!("there is no message {name}")))?;
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        let message = DynamicMessage::deserialize_with_options(descriptor, value, &options)
            .map_err(|error| JsonError(error.to_string()))?;
        M::decode(message.encode_to_vec().as_slice()).map_err(|error| JsonError(error.to_string()))
    }
}

/// Descriptors of the messages that are written by hand in [`crate::istio`].
fn own_files() -> Vec<FileDescriptorProto> {
    use Type::{Bool, Int32, Message as Msg, String as Str};

    let one = Label::Optional;
    let many = Label::Repeated;
    let typed_struct = || {
        message(
            "TypedStruct",
            vec![
                field("type_url", 1, one, Str, ""),
                field("value", 2, one, Msg, ".google.protobuf.Struct"),
            ],
        )
    };

    vec![
        file(
            "stats",
            vec![message(
                "PluginConfig",
                vec![
                    field("disable_host_header_fallback", 6, one, Bool, ""),
                    field(
                        "tcp_reporting_duration",
                        7,
                        one,
                        Msg,
                        ".google.protobuf.Duration",
                    ),
                ],
            )],
        ),
        file(
            "envoy.tcp.metadataexchange.config",
            vec![message(
                "MetadataExchange",
                vec![field("protocol", 1, one, Str, "")],
            )],
        ),
        file(
            "io.istio.http.peer_metadata",
            vec![
                message(
                    "IstioHeaders",
                    vec![field("skip_external_clusters", 1, one, Bool, "")],
                ),
                message(
                    "PeerMethod",
                    vec![field(
                        "istio_headers",
                        3,
                        one,
                        Msg,
                        ".io.istio.http.peer_metadata.IstioHeaders",
                    )],
                ),
                message(
                    "Config",
                    [
                        "downstream_discovery",
                        "upstream_discovery",
                        "downstream_propagation",
                        "upstream_propagation",
                    ]
                    .into_iter()
                    .zip(1..)
                    .map(|(name, number)| {
                        field(
                            name,
                            number,
                            many,
                            Msg,
                            ".io.istio.http.peer_metadata.PeerMethod",
                        )
                    })
                    .collect(),
                ),
            ],
        ),
        file(
            "istio.envoy.config.filter.http.alpn.v2alpha1",
            vec![
                message(
                    "AlpnOverride",
                    vec![
                        field("upstream_protocol", 1, one, Int32, ""),
                        field("alpn_override", 2, many, Str, ""),
                    ],
                ),
                message(
                    "FilterConfig",
                    vec![field(
                        "alpn_override",
                        1,
                        many,
                        Msg,
                        ".istio.envoy.config.filter.http.alpn.v2alpha1.AlpnOverride",
                    )],
                ),
            ],
        ),
        file("xds.type.v3", vec![typed_struct()]),
        file("udpa.type.v1", vec![typed_struct()]),
        file(
            "istio.networking.nds.v1",
            vec![
                message(
                    "NameInfo",
                    vec![
                        field("ips", 1, many, Str, ""),
                        field("registry", 2, one, Str, ""),
                        field("shortname", 3, one, Str, ""),
                        field("namespace", 4, one, Str, ""),
                    ],
                ),
                DescriptorProto {
                    nested_type: vec![DescriptorProto {
                        options: Some(MessageOptions {
                            map_entry: Some(true),
                            ..Default::default()
                        }),
                        ..message(
                            "TableEntry",
                            vec![
                                field("key", 1, one, Str, ""),
                                field("value", 2, one, Msg, ".istio.networking.nds.v1.NameInfo"),
                            ],
                        )
                    }],
                    ..message(
                        "NameTable",
                        vec![field(
                            "table",
                            1,
                            many,
                            Msg,
                            ".istio.networking.nds.v1.NameTable.TableEntry",
                        )],
                    )
                },
            ],
        ),
    ]
}

fn file(package: &str, messages: Vec<DescriptorProto>) -> FileDescriptorProto {
    FileDescriptorProto {
        name: Some(format!("meltemi/{package}.proto")),
        package: Some(package.to_owned()),
        dependency: vec![
            "google/protobuf/struct.proto".to_owned(),
            "google/protobuf/duration.proto".to_owned(),
        ],
        message_type: messages,
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    }
}

fn message(name: &str, fields: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto {
        name: Some(name.to_owned()),
        field: fields,
        ..Default::default()
    }
}

fn field(name: &str, number: i32, label: Label, kind: Type, of: &str) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(label as i32),
        r#type: Some(kind as i32),
        type_name: (!of.is_empty()).then(|| of.to_owned()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::bootstrap::v3::Bootstrap;

    #[test]
    fn a_bootstrap_is_read_and_dumped_with_nested_messages_open() {
        let reflection = Reflection::new().expect("the descriptors decode");
        let value = serde_json::json!({
            "node": {"id": "n"},
            "static_resources": {"clusters": [{
                "name": "c", "connectTimeout": "1s",
                "transport_socket": {"name": "tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": "example"}}
            }]}
        });

        let bootstrap: Bootstrap = reflection.from_json(&value).expect("a good bootstrap");
        let dumped = reflection.to_json(&crate::pack(&bootstrap));
        let cluster = &dumped["static_resources"]["clusters"][0];

        assert_eq!(cluster["connect_timeout"], "1s");
        assert_eq!(
            cluster["transport_socket"]["typed_config"]["sni"],
            "example"
        );

        let wrong = reflection.from_json::<Bootstrap>(&serde_json::json!({"nodee": {}}));
        assert!(
            wrong
                .expect_err("an unknown field")
                .to_string()
                .contains("nodee")
        );
    }

    #[test]
    fn our_own_messages_open_and_unknown_ones_stay_base64() {
        let reflection = Reflection::new().expect("the descriptors decode");
        let stats = crate::istio::StatsConfig {
            disable_host_header_fallback: true,
            tcp_reporting_duration: None,
        };

        assert_eq!(
            reflection.to_json(&crate::pack(&stats))["disable_host_header_fallback"],
            true
        );

        let exchange = crate::istio::MetadataExchange {
            protocol: "istio-peer-exchange".to_owned(),
        };
        assert_eq!(
            reflection.to_json(&crate::pack(&exchange))["protocol"],
            "istio-peer-exchange"
        );

        let table = crate::istio::NameTable {
            table: [(
                "a.b".to_owned(),
                crate::istio::NameInfo {
                    ips: vec!["1.2.3.4".to_owned()],
                    ..Default::default()
                },
            )]
            .into(),
        };

        assert_eq!(
            reflection.to_json(&crate::pack(&table))["table"]["a.b"]["ips"][0],
            "1.2.3.4"
        );

        let unknown = Any {
            type_url: "type.googleapis.com/no.Such".to_owned(),
            value: b"ab".to_vec(),
        };

        assert_eq!(reflection.to_json(&unknown)["value"], "YWI=");
    }
}
