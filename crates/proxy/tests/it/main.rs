//! The proxy in process: real sockets on port 0, servers and clients of the test's own.

mod causes;
mod config;
mod differential;
mod envoy;
mod filters;
mod hostile;
mod http1;
mod http2;
mod limits;
mod live;
mod peers;
mod pools;
mod tcp;
mod tls;
mod xds;

include!("../../../xtask/skip.rs");
