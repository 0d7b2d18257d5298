//! The control plane process: sources watched, worlds translated per connected proxy, resources
//! pushed, certificates issued, status told.
//!
//! In: directories of YAML, connections of agents and people. Out: xDS and the CSR API on 15012,
//! HTTP on 15014 and on a Unix socket. This crate wires: what configuration means is in `model`,
//! what proxies are sent in `translate`, how the protocol goes in `xds`, who signs what in `ca`. It
//! must never import anything of the data path.

mod audit;
mod auth;
mod caller_limit;
mod clock;
mod csr;
mod http;
mod metrics;
mod objects;
mod options;
mod push;
mod run;
mod status;
mod transport;

pub use auth::{Authenticated, Authenticator, Peer, PeerCertificate, Proof, authorize};
pub use options::ControlOptions;
pub use run::{Addresses, ControlPlane, run};
