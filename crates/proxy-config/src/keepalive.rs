//! TCP keepalive, of listeners and clusters alike.

use std::time::Duration;

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::google::protobuf::UInt32Value;
use meltemi_types::Keepalive;

pub(crate) fn compile_keepalive(message: &core::TcpKeepalive) -> Keepalive {
    let core::TcpKeepalive {
        keepalive_probes,
        keepalive_time,
        keepalive_interval,
    } = message;

    let number = |value: &Option<UInt32Value>| value.as_ref().map(|value| value.value);
    let seconds = |value| number(value).map(|value| Duration::from_secs(value.into()));

    Keepalive {
        probes: number(keepalive_probes),
        time: seconds(keepalive_time),
        interval: seconds(keepalive_interval),
    }
}
