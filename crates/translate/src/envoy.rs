//! Small constructors for Envoy's messages, which keep the builders short.
//!
//! Nothing here decides anything.

pub(crate) mod http;
pub(crate) mod matcher;
pub(crate) mod tls;
pub(crate) mod value;

pub(crate) use meltemi_proto::envoy::config::accesslog::v3 as accesslog;
pub(crate) use meltemi_proto::envoy::config::cluster::v3 as cluster;
pub(crate) use meltemi_proto::envoy::config::core::v3 as core;
pub(crate) use meltemi_proto::envoy::config::endpoint::v3 as endpoint;
pub(crate) use meltemi_proto::envoy::config::listener::v3 as listener;
pub(crate) use meltemi_proto::envoy::config::rbac::v3 as rbac;
pub(crate) use meltemi_proto::envoy::config::route::v3 as route;
pub(crate) use meltemi_proto::envoy::extensions;
pub(crate) use meltemi_proto::envoy::r#type as types;
pub(crate) use meltemi_proto::google::protobuf as wkt;
