//! Built-in HTTP and network filters, without IO.
//!
//! In: Envoy's filter messages, once, when configuration arrives; then heads of requests and
//! responses, what is known of the connection, random numbers and time. Out: a [`Step`] for each
//! filter and phase: go on, answer, or ask for a call. Nothing here awaits, reads a clock, draws a
//! random number or opens anything; the proxy, the simulator and the tests call the same functions.
//!
//! Also the vocabulary that compiled configuration shares: [`matcher`]s, [`format`] strings,
//! [`metadata`], response flags, [`Cause`], and the [`Rejection`]s and [`Warning`]s of compilers.
//!
//! Must never import: `api`, `model`, tokio, anything that does IO.

pub mod alpn;
pub mod conn;
pub mod counter;
pub mod digits;
mod filter;
mod filter_state;
mod finding;
mod flag;
pub mod format;
pub mod grpc;
pub mod head;
pub mod header_ops;
pub mod http;
pub mod matcher;
pub mod metadata;
pub mod peer_metadata;
mod reply;

pub use conn::{ConnInfo, TlsPeer, TransportProtocol};
pub use filter::peer_metadata::PeerMetadata;
pub use filter::{
    buffer, cors, ext_authz, fault, header_mutation, jwt_authn, rate_limit, rbac, set_filter_state,
};
pub use finding::{Rejection, Scope, Warning};
pub use flag::{ResponseFlag, ResponseFlags};
pub use head::{RequestHead, ResponseHead};
pub use metadata::{Metadata, Value};
pub use reply::{Cause, LocalReply};
