//! Small conversions that several compilers share.

use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::metadata::Value;
use meltemi_filters::{Rejection, Scope, format};
use meltemi_lb::SubsetMatch;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::google::protobuf::{BoolValue, Duration as ProtoDuration, UInt32Value};
use meltemi_types::Keepalive;

use crate::http::{Http1Options, Http2Options};

/// A wrapped boolean with its default.
pub(crate) fn boolean(value: Option<&BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

/// A wrapped number with its default.
pub(crate) fn number(value: Option<&UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

/// A duration of which zero means "none", with its default.
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

/// A metadata value as text, the same for equal values: text as it is, all else as JSON.
pub(crate) fn canonical_value(value: &Value) -> Arc<str> {
    match value {
        Value::String(text) => text.clone(),
        value => format::json_of(value).to_string().into(),
    }
}

/// What endpoints must have: `envoy.lb` of a `metadata_match`.
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

/// Keepalive settings.
pub(crate) fn keepalive(message: &core::TcpKeepalive) -> Keepalive {
    let seconds = |value: &Option<UInt32Value>| {
        value
            .as_ref()
            .map(|value| Duration::from_secs(u64::from(value.value)))
    };

    Keepalive {
        probes: message.keepalive_probes.as_ref().map(|probes| probes.value),
        time: seconds(&message.keepalive_time),
        interval: seconds(&message.keepalive_interval),
    }
}

/// HTTP/1 settings.
pub(crate) fn http1_options(
    message: Option<&core::Http1ProtocolOptions>,
    scope: &mut Scope,
) -> Http1Options {
    let Some(message) = message else {
        return Http1Options::default();
    };
    scope.unsupported("header_key_format", message.header_key_format.is_some());
    scope.unsupported("allow_chunked_length", message.allow_chunked_length);
    scope.unsupported(
        "default_host_for_http_10",
        !message.default_host_for_http_10.is_empty(),
    );

    Http1Options {
        accept_http_10: message.accept_http_10,
        trailers: message.enable_trailers,
    }
}

/// HTTP/2 settings.
pub(crate) fn http2_options(
    message: Option<&core::Http2ProtocolOptions>,
    scope: &mut Scope,
) -> Result<Http2Options, Rejection> {
    let Some(message) = message else {
        return Ok(Http2Options::default());
    };
    let value = |value: &Option<UInt32Value>| value.as_ref().map(|value| value.value);
    let keepalive = message.connection_keepalive.as_ref();
    scope.unsupported("hpack_table_size", message.hpack_table_size.is_some());
    scope.unsupported("allow_connect", message.allow_connect);

    Ok(Http2Options {
        max_concurrent_streams: value(&message.max_concurrent_streams),
        initial_stream_window: value(&message.initial_stream_window_size),
        initial_connection_window: value(&message.initial_connection_window_size),
        keepalive_interval: limit(
            "keepalive.interval",
            keepalive.and_then(|k| k.interval.as_ref()),
            None,
            scope,
        )?,
        keepalive_timeout: limit(
            "keepalive.timeout",
            keepalive.and_then(|k| k.timeout.as_ref()),
            None,
            scope,
        )?,
    })
}
