//! ConfigMap and Secret.

use std::collections::BTreeMap;

use crate::schema::{Base64Bytes, message};

message! {
    /// Texts by key.
    pub struct ConfigMap {
        /// Texts.
        data: BTreeMap<String, String> = "data",
        binary_data: BTreeMap<String, Base64Bytes> = "binaryData",
    }

    /// Bytes by key.
    pub struct Secret {
        /// For example `kubernetes.io/tls`.
        r#type: String = "type",
        data: BTreeMap<String, Base64Bytes> = "data",
        /// Texts; they win over `data`.
        string_data: BTreeMap<String, SecretText> = "stringData",
    }
}

/// A text that debug lines do not show.
#[derive(Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretText({} bytes)", self.0.len())
    }
}

impl crate::schema::Field for SecretText {
    fn read(&mut self, value: &serde_json::Value, report: &mut crate::schema::Report) {
        self.0.read(value, report);
    }

    fn is_unset(&self) -> bool {
        self.0.is_empty()
    }
}

impl Secret {
    /// The bytes under a key.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        match self.string_data.get(key) {
            Some(text) => Some(text.0.as_bytes()),
            None => self.data.get(key).map(|bytes| bytes.0.as_slice()),
        }
    }
}
