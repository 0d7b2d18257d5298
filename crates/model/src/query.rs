//! What translation asks a snapshot: everything here is a method of [`Snapshot`](crate::Snapshot),
//! one module a subject.

pub(crate) mod credentials;
pub(crate) mod ext_authz;
pub(crate) mod names;
pub(crate) mod policies;
pub(crate) mod routes;
pub(crate) mod scope;
pub(crate) mod security;
pub(crate) mod services;
pub(crate) mod telemetry;
pub(crate) mod touches;
