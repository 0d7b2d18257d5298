//! Packed messages as JSON.

use std::time::SystemTime;

use meltemi_proto::Any;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Value, json};

static TYPES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/types.bin"));

/// The descriptors of all messages. Takes a moment and some memory, so it is made for one dump and dropped after it.
#[derive(Debug)]
pub struct Descriptors(Option<DescriptorPool>);

impl Descriptors {
    /// Reads them.
    pub fn read() -> Self {
        Self(DescriptorPool::decode(TYPES).ok().filter(|_| !TYPES.is_empty()))
    }

    /// The message as JSON with `@type`, in the spelling of Envoy's own dumps. What cannot be read is shown packed.
    pub fn show(&self, any: &Any) -> Value {
        self.try_show(any).unwrap_or_else(|| {
            use std::fmt::Write;
            let hex = any.value.iter().fold(String::new(), |mut out, byte| {
                // Writing to a String cannot fail.
                let _ = write!(out, "{byte:02x}");
                out
            });
            json!({ "@type": any.type_url, "packed": hex })
        })
    }

    fn try_show(&self, any: &Any) -> Option<Value> {
        let name = any.type_url.rsplit('/').next()?;
        let descriptor = self.0.as_ref()?.get_message_by_name(name)?;
        let message = DynamicMessage::decode(descriptor, any.value.as_slice()).ok()?;
        let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
        let mut value = message.serialize_with_options(serde_json::value::Serializer, &options).ok()?;
        if let Value::Object(fields) = &mut value {
            fields.insert("@type".to_owned(), Value::String(any.type_url.clone()));
        }
        Some(value)
    }
}

/// ISO 8601, UTC.
pub fn time(at: SystemTime) -> String {
    let mut out = Vec::new();
    crate::info::write_time(at, "", &mut out);
    String::from_utf8_lossy(&out).into_owned()
}
