//! The agent against peers in the same process: a CA and a discovery server over TLS, resolvers,
//! probers.

mod dns;
mod identity;
mod peers;
mod proxies;
mod sidecar;
mod status;
mod unix_sockets;

use meltemi_testkit::skip;
