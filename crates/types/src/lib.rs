//! The value vocabulary that both planes share.
//!
//! Small, immutable values with one spelling everywhere: identities, labels, protocols, localities,
//! and the [`Diagnostic`] that every stage of the control plane emits. No IO, no configuration
//! formats, no wire messages; this crate imports nothing of ours.

mod cidr;
mod cipher_suite;
mod diagnostic;
mod go_bool;
mod grpc;
mod head_text;
mod host;
mod keepalive;
mod labels;
mod locality;
mod printable;
mod protocol;
mod spiffe;

pub use cidr::{Cidr, CidrError};
pub use cipher_suite::is_cipher_suite;
pub use diagnostic::{Diagnostic, ObjectRef, Position, Severity};
pub use go_bool::parse_go_bool;
pub use grpc::{GrpcCode, GrpcCodeError};
pub use head_text::{
    breaks_line, header_value_fault, log_format_fault, plain_value_fault, target_fault,
};
pub use host::{is_dns_label, is_local_host};
pub use keepalive::Keepalive;
pub use labels::{Labels, Selector};
pub use locality::Locality;
pub use printable::{printable, printable_lines};
pub use protocol::Protocol;
pub use spiffe::{SpiffeError, SpiffeId, TrustDomain};
