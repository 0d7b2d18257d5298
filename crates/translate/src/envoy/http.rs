//! The connection manager's skeleton, listener and HTTP filters as messages.

use meltemi_proto::{Any, pack};
use prost::{Message, Name};

use super::extensions::filters::network::http_connection_manager::v3 as hcm;
use super::value::seconds;
use super::{core, listener};

pub(crate) fn network_filter(name: &str, config: Any) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    }
}

pub(crate) fn listener_filter<M: Message + Name>(
    name: &str,
    config: &M,
) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        filter_disabled: None,
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(pack(
            config,
        ))),
    }
}

pub(crate) fn http_filter<M: Message + Name>(name: &str, config: &M) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(config))),
        ..Default::default()
    }
}

/// What Istio sets on every connection manager; and that `reviews.` is `reviews`, for routes and
/// policies alike.
pub(crate) fn connection_manager(stat_prefix: &str) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager as m;

    hcm::HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        codec_type: m::CodecType::Auto as i32,
        server_name: "istio-envoy".to_owned(),
        // Stream idle timeouts are off: long polls and streams live as long as they like.
        stream_idle_timeout: seconds(0),
        path_with_escaped_slashes_action: m::PathWithEscapedSlashesAction::KeepUnchanged as i32,
        upgrade_configs: vec![m::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        strip_trailing_host_dot: true,
        http_protocol_options: Some(core::Http1ProtocolOptions {
            ..Default::default()
        }),
        ..Default::default()
    }
}
