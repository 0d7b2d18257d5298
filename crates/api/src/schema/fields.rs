//! What a field can hold: scalars, lists, maps, messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_types::{Labels, Selector};
use serde::Serialize;
use serde_json::Value;

use super::Report;

/// Something that can be read from configuration.
pub trait Field: Sized {
    /// Reads `value` into `self`; what `value` leaves out stays as it is. Faults go to the report.
    fn read(&mut self, value: &Value, report: &mut Report);

    /// Whether writing this field again would say nothing.
    fn is_unset(&self) -> bool;
}

impl Field for String {
    fn read(&mut self, value: &Value, report: &mut Report) {
        match value.as_str() {
            Some(text) => text.clone_into(self),
            None => report.wrong_type("string", value),
        }
    }

    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

impl Field for bool {
    fn read(&mut self, value: &Value, report: &mut Report) {
        match value.as_bool() {
            Some(flag) => *self = flag,
            None => report.wrong_type("boolean", value),
        }
    }

    fn is_unset(&self) -> bool {
        !*self
    }
}

/// `1` and `1.0` are both integers to the API server; `1.5` and `"1"` are not.
fn integer(value: &Value) -> Option<i128> {
    let number = value.as_number()?;
    if let Some(integer) = number.as_i128() {
        return Some(integer);
    }
    let float = number.as_f64()?;
    (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i128)
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn read(&mut self, value: &Value, report: &mut Report) {
                let Some(number) = integer(value) else {
                    return report.wrong_type("integer", value);
                };
                match <$type>::try_from(number) {
                    Ok(number) => *self = number,
                    Err(_) => report.error(
                        "MEL0110",
                        format!("{} in body should be between {} and {}", report.path(), <$type>::MIN, <$type>::MAX),
                        "write a number in this range",
                    ),
                }
            }

            fn is_unset(&self) -> bool {
                *self == 0
            }
        }
    )*};
}

integers!(u16, u32, u64, i32, i64);

impl Field for f64 {
    fn read(&mut self, value: &Value, report: &mut Report) {
        match value.as_f64() {
            Some(number) => *self = number,
            None => report.wrong_type("number", value),
        }
    }

    fn is_unset(&self) -> bool {
        *self == 0.0
    }
}

impl<T: Field + Default> Field for Option<T> {
    fn read(&mut self, value: &Value, report: &mut Report) {
        self.get_or_insert_with(T::default).read(value, report);
    }

    fn is_unset(&self) -> bool {
        self.is_none()
    }
}

impl<T: Field + Default + Clone> Field for Arc<T> {
    fn read(&mut self, value: &Value, report: &mut Report) {
        Arc::make_mut(self).read(value, report);
    }

    fn is_unset(&self) -> bool {
        (**self).is_unset()
    }
}

impl<T: Field + Default> Field for Vec<T> {
    fn read(&mut self, value: &Value, report: &mut Report) {
        let Some(items) = report.list(value) else {
            return;
        };
        self.clear();
        for (index, item) in items.iter().enumerate() {
            let mut read = T::default();
            report.index(index, |report| read.read(item, report));
            self.push(read);
        }
    }

    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Field + Default> Field for BTreeMap<String, T> {
    fn read(&mut self, value: &Value, report: &mut Report) {
        let Some(map) = report.object(value) else {
            return;
        };
        for (key, item) in map {
            let mut read = T::default();
            report.field(key, |report| read.read(item, report));
            self.insert(key.clone(), read);
        }
    }

    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

impl Field for Labels {
    fn read(&mut self, value: &Value, report: &mut Report) {
        self.0.read(value, report);
    }

    fn is_unset(&self) -> bool {
        self.0.is_empty()
    }
}

impl Field for Selector {
    fn read(&mut self, value: &Value, report: &mut Report) {
        self.0.read(value, report);
    }

    fn is_unset(&self) -> bool {
        self.0.is_empty()
    }
}

/// Free-form configuration: kept as it is.
impl Field for Value {
    fn read(&mut self, value: &Value, _: &mut Report) {
        self.clone_from(value);
    }

    fn is_unset(&self) -> bool {
        self.is_null()
    }
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(i64),
    /// A name.
    String(String),
}

impl Default for IntOrString {
    fn default() -> Self {
        Self::Int(0)
    }
}

impl Field for IntOrString {
    fn read(&mut self, value: &Value, report: &mut Report) {
        if let Some(text) = value.as_str() {
            // Kubernetes reads "8080" in quotes as a name; nobody means that, so it is a number
            // here.
            *self = text
                .parse()
                .map_or_else(|_| Self::String(text.to_owned()), Self::Int);
        } else {
            match integer(value).and_then(|number| i64::try_from(number).ok()) {
                Some(number) => *self = Self::Int(number),
                None => report.wrong_type("integer or string", value),
            }
        }
    }

    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

/// Bytes, written in base64.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Base64Bytes(pub Vec<u8>);

/// What base64 carries is mostly keys: a debug line shows its length only.
impl std::fmt::Debug for Base64Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Base64Bytes({} bytes)", self.0.len())
    }
}

impl Serialize for Base64Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

impl Field for Base64Bytes {
    fn read(&mut self, value: &Value, report: &mut Report) {
        use base64::Engine as _;

        let Some(text) = value.as_str() else {
            return report.wrong_type("string", value);
        };
        let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();

        match base64::engine::general_purpose::STANDARD.decode(compact) {
            Ok(bytes) => self.0 = bytes,
            Err(error) => report.error(
                "MEL0102",
                format!("illegal base64 data: {error}"),
                "encode the value with base64",
            ),
        }
    }

    fn is_unset(&self) -> bool {
        self.0.is_empty()
    }
}
