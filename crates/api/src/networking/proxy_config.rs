//! ProxyConfig (the resource): settings that a proxy takes when it starts.

use std::collections::BTreeMap;

use crate::schema::message;
use crate::shared::WorkloadSelector;

message! {
    /// Settings of proxies.
    pub struct ProxyConfigResource {
        /// Workloads; absent is the whole namespace (or mesh, in the root namespace).
        selector: Option<WorkloadSelector> = "selector",
        /// Worker threads; 0 is all cores.
        concurrency: Option<i32> = "concurrency",
        /// Environment of the agent.
        environment_variables: BTreeMap<String, String> = "environmentVariables",
        /// Image of the proxy.
        image: Option<ProxyImage> = "image",
    }

    /// Image of the proxy.
    pub struct ProxyImage {
        /// `default`, `debug` or `distroless`.
        image_type: String = "imageType",
    }
}
