//! Metadata: JSON-like values by filter name and path. Routes, clusters and endpoints have static
//! metadata, a stream has dynamic metadata.

use std::collections::BTreeMap;
use std::sync::Arc;

use meltemi_proto::envoy::config::core::v3::Metadata as ProtoMetadata;
use meltemi_proto::google::protobuf::{ListValue, Struct, Value as ProtoValue, value::Kind};

/// How deep a value may nest; deeper parts become null. Protobuf decoding allows 100 levels.
const MAX_DEPTH: usize = 32;

/// A JSON-like value. Fields are ordered by name, so equal values print alike.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Value {
    /// No value.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A number; protobuf knows only doubles.
    Number(f64),
    /// Text.
    String(Arc<str>),
    List(Vec<Value>),
    /// Fields by name.
    Struct(BTreeMap<Arc<str>, Value>),
}

impl Value {
    pub fn string(text: &str) -> Self {
        Self::String(text.into())
    }

    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// A field, if it is a struct that has it.
    pub fn field(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Struct(fields) => fields.get(name),
            _ => None,
        }
    }

    /// Lowers a protobuf value.
    pub fn from_proto(value: &ProtoValue) -> Self {
        Self::lower(value, 0)
    }

    /// Lowers a protobuf struct.
    pub fn from_struct(fields: &Struct) -> Self {
        Self::lower_struct(fields, 0)
    }

    /// As protobuf's struct, if it is one.
    pub fn to_struct(&self) -> Option<Struct> {
        match self {
            Self::Struct(fields) => Some(raise_struct(fields)),
            _ => None,
        }
    }

    fn to_proto(&self) -> ProtoValue {
        let kind = match self {
            Self::Null => Kind::NullValue(0),
            Self::Bool(value) => Kind::BoolValue(*value),
            Self::Number(value) => Kind::NumberValue(*value),
            Self::String(text) => Kind::StringValue(text.to_string()),
            Self::List(values) => Kind::ListValue(ListValue {
                values: values.iter().map(Self::to_proto).collect(),
            }),
            Self::Struct(fields) => Kind::StructValue(raise_struct(fields)),
        };

        ProtoValue { kind: Some(kind) }
    }

    fn lower(value: &ProtoValue, depth: usize) -> Self {
        if depth > MAX_DEPTH {
            return Self::Null;
        }
        match &value.kind {
            None | Some(Kind::NullValue(_)) => Self::Null,
            Some(Kind::BoolValue(value)) => Self::Bool(*value),
            Some(Kind::NumberValue(value)) => Self::Number(*value),
            Some(Kind::StringValue(value)) => Self::string(value),
            Some(Kind::ListValue(list)) => Self::List(
                list.values
                    .iter()
                    .map(|v| Self::lower(v, depth + 1))
                    .collect(),
            ),
            Some(Kind::StructValue(fields)) => Self::lower_struct(fields, depth + 1),
        }
    }

    fn lower_struct(fields: &Struct, depth: usize) -> Self {
        let fields = fields
            .fields
            .iter()
            .map(|(name, value)| (name.as_str().into(), Self::lower(value, depth + 1)));
        Self::Struct(fields.collect())
    }
}

fn raise_struct(fields: &BTreeMap<Arc<str>, Value>) -> Struct {
    Struct {
        fields: fields
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_proto()))
            .collect(),
    }
}

/// Values by filter name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    filters: BTreeMap<Arc<str>, Value>,
}

impl Metadata {
    /// Lowers Envoy's message. Typed metadata is left out: nothing here reads it.
    pub fn from_proto(metadata: &ProtoMetadata) -> Self {
        let filters = metadata.filter_metadata.iter();
        Self {
            filters: filters
                .map(|(name, fields)| (name.as_str().into(), Value::from_struct(fields)))
                .collect(),
        }
    }

    /// Lowers an optional message; absent means empty.
    pub fn from_option(metadata: Option<&ProtoMetadata>) -> Self {
        metadata.map(Self::from_proto).unwrap_or_default()
    }

    /// The whole value of one filter.
    pub fn filter(&self, filter: &str) -> Option<&Value> {
        self.filters.get(filter)
    }

    /// The value at a path below a filter's struct.
    pub fn at<S: AsRef<str>>(&self, filter: &str, path: &[S]) -> Option<&Value> {
        path.iter()
            .try_fold(self.filters.get(filter)?, |value, segment| {
                value.field(segment.as_ref())
            })
    }

    /// Sets one field of a filter's struct.
    pub fn set(&mut self, filter: &str, field: &str, value: Value) {
        let slot = match self.filters.get_mut(filter) {
            Some(slot) => slot,
            None => self.filters.entry(filter.into()).or_default(),
        };

        if !matches!(slot, Value::Struct(_)) {
            *slot = Value::Struct(BTreeMap::new());
        }
        if let Value::Struct(fields) = slot {
            fields.insert(field.into(), value);
        }
    }

    /// Replaces the whole value of one filter.
    pub fn replace(&mut self, filter: &str, value: Value) {
        self.filters.insert(filter.into(), value);
    }

    /// Whether no filter has a value.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// Filter names and their values, in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.filters.iter().map(|(name, value)| (&**name, value))
    }
}
