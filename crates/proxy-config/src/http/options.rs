//! Settings of HTTP/1 and HTTP/2 connections, in connection managers and clusters alike.

use std::time::Duration;

use meltemi_filters::{Rejection, Scope};
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::google::protobuf::UInt32Value;

use crate::convert::{limit, not_honoured};

/// HTTP/1 settings. Source: Envoy `Http1ProtocolOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http1Options {
    /// Requests of HTTP/1.0 are served; else they are answered 426.
    pub accept_http_10: bool,
}

/// HTTP/2 settings; `None` leaves a part to the codec. Source: Envoy `Http2ProtocolOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http2Options {
    /// Concurrent streams of a connection.
    pub max_concurrent_streams: Option<u32>,
    /// Flow-control window of a stream, in bytes.
    pub initial_stream_window: Option<u32>,
    /// Flow-control window of a connection, in bytes.
    pub initial_connection_window: Option<u32>,
    /// Time between PING frames; `None`: none are sent.
    pub keepalive_interval: Option<Duration>,
    /// A PING must be answered within this time.
    pub keepalive_timeout: Option<Duration>,
}

impl Http1Options {
    pub(crate) fn compile(message: Option<&core::Http1ProtocolOptions>, scope: &mut Scope) -> Self {
        let Some(message) = message else {
            return Self::default();
        };

        #[expect(deprecated, reason = "use_balsa_parser is named to be ignored")]
        let core::Http1ProtocolOptions {
            accept_http_10,
            default_host_for_http_10,
            header_key_format,
            enable_trailers,
            allow_chunked_length,
            override_stream_error_on_invalid_http_message,
            send_fully_qualified_url,
            ignore_http_11_upgrade,
            // A request line with an absolute URL is always read (RFC 9112 §3.2.2).
            allow_absolute_url: _,
            // Every method that is a token is accepted.
            allow_custom_methods: _,
            // Chooses between Envoy's two parsers.
            use_balsa_parser: _,
        } = message;

        // Trailers of HTTP/1 are read and dropped, whatever `enable_trailers` says.
        not_honoured!(
            scope,
            default_host_for_http_10,
            header_key_format,
            enable_trailers,
            allow_chunked_length,
            override_stream_error_on_invalid_http_message,
            send_fully_qualified_url,
            ignore_http_11_upgrade,
        );

        Self {
            accept_http_10: *accept_http_10,
        }
    }
}

impl Http2Options {
    pub(crate) fn compile(
        message: Option<&core::Http2ProtocolOptions>,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let Some(message) = message else {
            return Ok(Self::default());
        };

        #[expect(
            deprecated,
            reason = "the older spelling is warned of like the newer one"
        )]
        let core::Http2ProtocolOptions {
            hpack_table_size,
            max_concurrent_streams,
            initial_stream_window_size,
            initial_connection_window_size,
            allow_connect,
            allow_metadata,
            max_outbound_frames,
            max_outbound_control_frames,
            max_consecutive_inbound_frames_with_empty_payload,
            max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent,
            stream_error_on_invalid_http_messaging,
            override_stream_error_on_invalid_http_message,
            custom_settings_parameters,
            connection_keepalive,
            max_metadata_size,
            max_header_field_size_kb,
            disallow_obs_text,
            stream_reset_burst,
            stream_reset_rate,
            // Chooses between Envoy's two codecs.
            use_oghttp2_codec: _,
            // Huffman coding is the encoder's choice; every decoder reads both (RFC 7541 §5.2).
            enable_huffman_encoding: _,
        } = message;

        // The limits on frames and resets are the codec's own, which no setting loosens.
        not_honoured!(
            scope,
            hpack_table_size,
            allow_connect,
            allow_metadata,
            max_outbound_frames,
            max_outbound_control_frames,
            max_consecutive_inbound_frames_with_empty_payload,
            max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent,
            stream_error_on_invalid_http_messaging,
            override_stream_error_on_invalid_http_message,
            custom_settings_parameters,
            max_metadata_size,
            max_header_field_size_kb,
            disallow_obs_text,
            stream_reset_burst,
            stream_reset_rate,
        );

        let (keepalive_interval, keepalive_timeout) =
            compile_pings(connection_keepalive.as_ref(), scope)?;
        let number = |value: &Option<UInt32Value>| value.as_ref().map(|value| value.value);

        Ok(Self {
            max_concurrent_streams: number(max_concurrent_streams),
            initial_stream_window: number(initial_stream_window_size),
            initial_connection_window: number(initial_connection_window_size),
            keepalive_interval,
            keepalive_timeout,
        })
    }
}

/// The time between PING frames, and the time within which one must be answered.
fn compile_pings(
    message: Option<&core::KeepaliveSettings>,
    scope: &mut Scope,
) -> Result<(Option<Duration>, Option<Duration>), Rejection> {
    let Some(message) = message else {
        return Ok((None, None));
    };

    let core::KeepaliveSettings {
        interval,
        timeout,
        interval_jitter,
        connection_idle_interval,
    } = message;

    not_honoured!(scope, interval_jitter, connection_idle_interval);

    Ok((
        limit("keepalive.interval", interval.as_ref(), None, scope)?,
        limit("keepalive.timeout", timeout.as_ref(), None, scope)?,
    ))
}
