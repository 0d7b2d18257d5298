//! The proxy in process: real sockets on port 0, servers and clients of the test's own.

mod affinity;
mod authorizers;
mod body_filters;
mod bootstrap;
mod causes;
mod config;
mod decorate;
mod differential;
mod envoy;
mod ext_authz;
mod extensions;
mod filters;
mod formats;
mod hostile;
mod http1;
mod http2;
mod limits;
mod live;
mod log_words;
mod metrics;
mod mirrors;
mod peer_exchange;
mod peers;
mod pools;
mod readiness;
mod retries;
mod sizes;
mod stalled;
mod stats;
mod streams;
mod tcp;
mod tls;
mod tls_upstream;
mod xds;

use meltemi_testkit::skip;
