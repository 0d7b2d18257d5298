//! The one home of wire messages: Envoy's, through the `envoy-types` crate, and the few of Istio's
//! that it lacks.
//!
//! In: nothing. Out: message types, their type URLs, packing into and out of `Any`. No meaning, no
//! IO. Encoded bytes are never compared or hashed: prost maps are hash maps, so equal messages have
//! many encodings.

pub mod ca;
pub mod istio;
pub mod json;
mod pack;
pub mod type_url;

pub use envoy_types::pb::{envoy, google, udpa, xds};
pub use google::protobuf::Any;
pub use pack::{UnpackError, pack, unpack, value_of};

/// gRPC stubs of Envoy's discovery services.
pub mod discovery {
    pub use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
    pub use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    };
    pub use envoy_types::pb::envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource,
    };
    pub use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
    pub use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
        SecretDiscoveryService, SecretDiscoveryServiceServer,
    };
}
