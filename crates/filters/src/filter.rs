//! The filters, one a file: configuration, decision and phases.

pub mod buffer;
pub mod cors;
pub mod ext_authz;
pub mod fault;
pub mod header_mutation;
pub mod jwt_authn;
pub mod peer_metadata;
pub mod rate_limit;
pub mod rbac;
pub mod set_filter_state;
