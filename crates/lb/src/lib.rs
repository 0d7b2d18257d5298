//! Endpoint selection: which endpoint of a cluster takes a request.
//!
//! In: a cluster's load balancing settings, its endpoints, their health. Out: [`Balancer`], an
//! immutable value that is built anew when endpoints or health change, and [`Balancer::pick`],
//! which costs no allocation and draws what it needs from one random number that the caller hands
//! in. Same input, same endpoint: no clock, no randomness, no IO.
//!
//! The caller owns the state that changes: round robin's position as a [`Cursor`], counts of active
//! requests behind a closure.
//!
//! Must never import: wire messages, tokio, anything of the proxy.

mod balancer;
mod config;
pub mod hash;
mod host;
mod maglev;
mod priority;
pub mod random;
mod ring;
mod subset;
mod weighted;

pub use balancer::{Balancer, Cursor, Pick, PickContext};
pub use config::{Config, Policy, RingHashFunction};
pub use host::{Health, Host, LocalitySpec};
pub use priority::PriorityLoad;
pub use subset::{Fallback, SubsetConfig, SubsetMatch, SubsetSelector};
