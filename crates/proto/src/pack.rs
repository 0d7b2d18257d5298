//! Packing typed messages into `Any` and out of it.

use prost::{Message, Name};

use crate::Any;
use crate::google::protobuf::{Struct, Value, value::Kind};

/// Why an `Any` is not the message that was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnpackError {
    /// It holds another type.
    Type {
        /// The type that the caller asked for.
        wanted: String,
        /// The type URL that was found.
        found: String,
    },
    /// The bytes are not such a message.
    Decode {
        /// The type that the caller asked for.
        wanted: String,
        /// What the decoder says.
        reason: String,
    },
}

impl std::fmt::Display for UnpackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Type { wanted, found } => write!(f, "expected a {wanted}, found {found:?}"),
            Self::Decode { wanted, reason } => write!(f, "not a valid {wanted}: {reason}"),
        }
    }
}

impl std::error::Error for UnpackError {}

/// Packs a message under its own type URL, `type.googleapis.com/<full name>`.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// Unpacks a message of exactly this type; only the part of the type URL after the last `/` is
/// compared.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    let wanted = M::full_name();
    if any.type_url.rsplit('/').next() != Some(wanted.as_str()) {
        return Err(UnpackError::Type {
            wanted,
            found: any.type_url.clone(),
        });
    }

    M::decode(any.value.as_slice()).map_err(|error| UnpackError::Decode {
        wanted,
        reason: error.to_string(),
    })
}

/// A string as a `google.protobuf.Value`.
pub fn value_of(text: impl Into<String>) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.into())),
    }
}

impl crate::istio::StructExt for Struct {
    fn text(&self, key: &str) -> Option<&str> {
        match self.fields.get(key)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text),
            _ => None,
        }
    }
}
