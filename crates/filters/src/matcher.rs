//! Conditions, compiled once and judged without allocation. Routes, policies and filters share
//! them.

mod cidr;
mod fraction;
mod header;
mod metadata;
mod path;
mod regex;
mod string;

pub use cidr::Cidr;
pub use fraction::Fraction;
pub use header::{
    CookieMatch, HeaderMatch, HeaderSource, Judge, QueryMatch, cookie, query_parameter,
};
pub use metadata::{MetadataMatch, ValueMatch};
pub use path::PathTemplate;
pub use regex::{FullRegex, Substitution};
pub use string::{IgnoreCase, StringMatch};
