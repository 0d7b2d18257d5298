//! How configuration is read: JSON values into typed messages, with every fault named by its field.
//!
//! A message is declared once, with [`message!`]: its fields, their names on the wire and which of
//! them are required. From that come the struct, its reading (all faults of a document at once,
//! unknown fields with a suggestion) and its writing (`serde::Serialize`). Reading goes *into* a
//! value: what the text leaves out keeps what was there, which is how MeshConfig gets its defaults.
//! Messages of the schema's faults are those of the Kubernetes API server where it has one.

mod fields;
mod report;
mod suggest;

pub use fields::{Base64Bytes, Field, IntOrString};
pub(crate) use report::shorten;
pub use report::{Finding, Report, UnknownFields, push_index, push_key};
pub use suggest::closest;

/// Declares messages: `pub field: Type = "wireName" [required, non_empty],`.
///
/// `required`: the field must be written. `non_empty`: a string, or each string of a list, has at
/// least one character. `"name" | "alias"` accepts a second spelling.
macro_rules! message {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(
                $(#[$field_meta:meta])*
                $field:ident: $type:ty = $wire:literal $(| $alias:literal)? $([$($rule:ident),*])?
            ),* $(,)?
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(rename = $wire, skip_serializing_if = "crate::schema::Field::is_unset")]
                pub $field: $type,
            )*
        }

        impl $name {
            /// The names that this message knows, as written.
            pub const FIELDS: &'static [&'static str] = &[$($wire),*];
        }

        impl crate::schema::Field for $name {
            fn read(&mut self, value: &serde_json::Value, report: &mut crate::schema::Report) {
                let Some(map) = report.object(value) else { return };
                #[allow(unused_variables, reason = "a message without fields reads none of them")]
                for (key, value) in map {
                    match key.as_str() {
                        $(
                            $wire $(| $alias)? => {
                                #[allow(unused_mut, unused_assignments, reason = "not every field has options")]
                                let mut required = false;
                                $($( crate::schema::message!(@mark $rule, required); )*)?
                                // An explicit null is "not written", except where something must be
                                // written.
                                if !value.is_null() || required {
                                    report.field(key, |report| {
                                        crate::schema::Field::read(&mut self.$field, value, report);
                                        $($( crate::schema::message!(@check $rule, value, report); )*)?
                                    });
                                }
                            }
                        )*
                        _ => report.unknown_field(key, Self::FIELDS),
                    }
                }
                $($($( crate::schema::message!(@after $rule, $wire, map, report); )*)?)*
            }

            fn is_unset(&self) -> bool {
                false
            }
        }
    )*};
    (@mark required, $required:ident) => { $required = true; };
    (@mark $other:ident, $required:ident) => {};
    (@check non_empty, $value:ident, $report:ident) => { $report.non_empty($value); };
    (@check $other:ident, $value:ident, $report:ident) => {};
    (@after required, $wire:literal, $map:ident, $report:ident) => {
        if !$map.contains_key($wire) {
            $report.required($wire);
        }
    };
    (@after $other:ident, $wire:literal, $map:ident, $report:ident) => {};
}

/// Declares an enumeration by its words on the wire; the first one is the default.
macro_rules! words {
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $wire:literal ),* $(,)?
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
        pub enum $name {
            $( $(#[$variant_meta])* #[serde(rename = $wire)] $variant, )*
        }

        impl $name {
            /// The words as written.
            pub const WORDS: &'static [&'static str] = &[$($wire),*];
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word as written.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $wire),* }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::ALL[0]
            }
        }

        impl crate::schema::Field for $name {
            fn read(&mut self, value: &serde_json::Value, report: &mut crate::schema::Report) {
                if let Some(index) = report.word(value, Self::WORDS) {
                    *self = Self::ALL[index];
                }
            }

            fn is_unset(&self) -> bool {
                *self == Self::default()
            }
        }
    )*};
}

pub(crate) use {message, words};
