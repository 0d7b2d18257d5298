//! A Service's port that the user publishes on the machine.

use serde::{Deserialize, Serialize};

/// A Service's port to publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePublication {
    /// The Service's name.
    pub name: String,
    /// The Service's namespace.
    pub namespace: String,
    /// Number of the Service's port.
    pub port: u16,
    /// Port of the machine; 0 lets the kernel choose.
    pub machine_port: u16,
}

impl ServicePublication {
    /// `web:80`, or `web.shop:80` in another namespace than `default`.
    pub(crate) fn label(&self) -> String {
        format!("{}:{}", self.shown_name(), self.port)
    }

    /// `web`, or `web.shop`.
    pub(crate) fn shown_name(&self) -> String {
        match self.namespace.as_str() {
            "default" => self.name.clone(),
            namespace => format!("{}.{namespace}", self.name),
        }
    }
}
