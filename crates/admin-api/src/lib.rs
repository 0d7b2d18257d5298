//! The admin and debug endpoints as data: what the control plane answers, and a small client for
//! its Unix socket.
//!
//! In and out: plain values that serialise to JSON, shared by who serves them (`control`) and who
//! shows them (`cli`). Adding a field is compatible; renaming one is not. No logic, no xDS; it
//! imports `types` alone.

mod client;
mod objects;
mod query;
mod status;

pub use client::{Client, ClientError};
pub use objects::{
    Action, Applied, ApplyResponse, ErrorBody, ObjectList, ObjectSelector, ObjectView, Origin,
};
pub use query::{decode, encode};
pub use status::{
    CertificateStatus, ConfigDump, DumpedResource, DumpedType, EndpointView, ProxyStatus,
    RegistryService, Rejection, Status, SyncState, SyncStatus, TypeSync, VersionInfo,
};
