//! The answers of the control plane's admin and debug endpoints as data types, and a client for its
//! Unix socket.
//!
//! The types serialise to JSON. `control` serves them and `cli` shows them. Adding a field is
//! compatible, renaming one is not. No logic and no xDS here; the crate imports only `types`.

mod client;
mod objects;
mod query;
mod status;

pub use client::{Client, ClientError};
pub use objects::{
    Action, Applied, ApplyResponse, ChangeOptions, ErrorBody, ObjectList, ObjectSelector,
    ObjectView, Origin,
};
pub use query::{decode, encode};
pub use status::{
    CertificateStatus, ConfigDump, DumpedResource, DumpedType, EndpointView, ProxyStatus,
    RegistryService, Rejection, Status, SyncState, SyncStatus, TypeSync, VersionInfo,
};
