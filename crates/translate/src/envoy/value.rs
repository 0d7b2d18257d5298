//! Wrappers, durations, addresses, structs, configuration sources.

use std::collections::BTreeMap;
use std::time::Duration;

use meltemi_proto::{Any, pack, value_of};
use meltemi_types::Cidr;
use prost::{Message, Name};

use super::{core, types, wkt};

pub(crate) fn u32v(value: u32) -> Option<wkt::UInt32Value> {
    Some(wkt::UInt32Value { value })
}

pub(crate) fn u64v(value: u64) -> Option<wkt::UInt64Value> {
    Some(wkt::UInt64Value { value })
}

pub(crate) fn boolv(value: bool) -> Option<wkt::BoolValue> {
    Some(wkt::BoolValue { value })
}

pub(crate) fn duration(value: Duration) -> Option<wkt::Duration> {
    // Envoy refuses more than 315,576,000,000 s; nothing a user may write comes near, but no cast
    // may wrap.
    let seconds = i64::try_from(value.as_secs())
        .unwrap_or(i64::MAX)
        .min(315_576_000_000);
    let nanos = i32::try_from(value.subsec_nanos()).expect("below 10^9");
    Some(wkt::Duration { seconds, nanos })
}

pub(crate) fn seconds(value: u64) -> Option<wkt::Duration> {
    duration(Duration::from_secs(value))
}

pub(crate) fn address(host: &str, port: u32) -> core::Address {
    use core::socket_address::PortSpecifier;
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

pub(crate) fn pipe(path: &str) -> core::Address {
    core::Address {
        address: Some(core::address::Address::Pipe(core::Pipe {
            path: path.to_owned(),
            mode: 0,
        })),
    }
}

pub(crate) fn cidr_range(network: &Cidr) -> core::CidrRange {
    core::CidrRange {
        address_prefix: network.address().to_string(),
        prefix_len: u32v(network.prefix().into()),
    }
}

pub(crate) fn text_struct<K: Into<String>, V: Into<String>>(
    pairs: impl IntoIterator<Item = (K, V)>,
) -> wkt::Struct {
    wkt::Struct {
        fields: pairs
            .into_iter()
            .map(|(key, value)| (key.into(), value_of(value)))
            .collect(),
    }
}

pub(crate) fn struct_value(value: wkt::Struct) -> wkt::Value {
    wkt::Value {
        kind: Some(wkt::value::Kind::StructValue(value)),
    }
}

pub(crate) fn list_value(values: Vec<wkt::Value>) -> wkt::Value {
    wkt::Value {
        kind: Some(wkt::value::Kind::ListValue(wkt::ListValue { values })),
    }
}

/// Filter metadata from (namespace, fields); `None` if there is nothing to say.
pub(crate) fn metadata(parts: BTreeMap<&str, wkt::Struct>) -> Option<core::Metadata> {
    let filter_metadata = parts
        .into_iter()
        .filter(|(_, fields)| !fields.fields.is_empty());
    let filter_metadata: std::collections::HashMap<_, _> = filter_metadata
        .map(|(namespace, fields)| (namespace.to_owned(), fields))
        .collect();
    (!filter_metadata.is_empty()).then(|| core::Metadata {
        filter_metadata,
        typed_filter_metadata: Default::default(),
    })
}

pub(crate) fn extension<M: Message + Name>(name: &str, message: &M) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(pack(message)),
    }
}

pub(crate) fn transport_socket(name: &str, config: Any) -> core::TransportSocket {
    core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// Resources over the stream that brought this one.
pub(crate) fn ads() -> Option<core::ConfigSource> {
    use core::config_source::ConfigSourceSpecifier;
    Some(core::ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        // A listener or cluster waits for its resources however long the control plane takes.
        // Source: Istio.
        initial_fetch_timeout: seconds(0),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    })
}

/// Secrets from the agent, by the bootstrap's cluster `sds-grpc`. Their listener or cluster waits for
/// `seconds_at_most`; 0: however long it takes.
pub(crate) fn sds_grpc(seconds_at_most: u64) -> Option<core::ConfigSource> {
    use core::config_source::ConfigSourceSpecifier;
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};

    Some(core::ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(
            core::ApiConfigSource {
                api_type: core::api_config_source::ApiType::Grpc as i32,
                transport_api_version: core::ApiVersion::V3 as i32,
                grpc_services: vec![core::GrpcService {
                    target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                        cluster_name: "sds-grpc".to_owned(),
                        ..Default::default()
                    })),
                    ..Default::default()
                }],
                set_node_on_first_message_only: true,
                ..Default::default()
            },
        )),
        initial_fetch_timeout: seconds(seconds_at_most),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    })
}

/// A share of a million parts, for percentages with fractions.
pub(crate) fn fraction(parts_per_million: u32) -> types::v3::FractionalPercent {
    use types::v3::fractional_percent::DenominatorType;

    if parts_per_million.is_multiple_of(10_000) {
        let numerator = parts_per_million / 10_000;
        return types::v3::FractionalPercent {
            numerator,
            denominator: DenominatorType::Hundred as i32,
        };
    }

    types::v3::FractionalPercent {
        numerator: parts_per_million,
        denominator: DenominatorType::Million as i32,
    }
}

pub(crate) fn runtime_fraction(parts_per_million: u32) -> core::RuntimeFractionalPercent {
    core::RuntimeFractionalPercent {
        default_value: Some(fraction(parts_per_million)),
        runtime_key: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_keep_whole_percents_readable() {
        assert_eq!(fraction(500_000).numerator, 50);
        assert_eq!(fraction(1).numerator, 1);
    }
}
