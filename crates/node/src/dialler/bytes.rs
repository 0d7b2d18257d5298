//! Serialises bytes as base64 within JSON. As a list of numbers, a long DNS answer would exceed the
//! maximum size of a message.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize as _, Deserializer, Serializer, de};

pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&BASE64_STANDARD.encode(bytes))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    BASE64_STANDARD
        .decode(String::deserialize(from)?)
        .map_err(de::Error::custom)
}
