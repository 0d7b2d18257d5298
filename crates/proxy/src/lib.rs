//! The data path: listeners, HTTP and TCP serving, upstream pools, retries, breakers, outliers,
//! logs, admin.
//!
//! In: compiled configuration (`proxy-config`, fed by xDS resources), secrets, connections. Out:
//! bytes, access logs, metrics, and for every answer of its own a response flag and a cause.
//! Decisions are made by `proxy-config`, `filters` and `lb`; this crate does the IO that they do
//! not.
//!
//! It reads from the bottom up. `io`, `timer`, `uuid`, `record`, `counts`, `causes`, `logs` and
//! `tls` know nothing of the others. `upstream` keeps pools and opens connections; `worker` is a
//! thread's state. `exchange::state`, `prepare` and `steps` carry one request; `router` forwards
//! it; `exchange` has its stages in order. `http1`, `http2` and `tcp` serve connections, which
//! `listener` accepts in `worker::serve`. `control` applies configuration, `admin` shows it,
//! `start` begins it all.
//!
//! Must never import: `api`, `model`, `translate`: it knows xDS only.

mod admin;
mod body;
mod causes;
mod common;
mod control;
mod counts;
mod decorate;
mod downstream;
mod exchange;
mod grpc;
mod http1;
mod http2;
mod io;
mod listener;
mod log_facts;
mod logs;
mod network_ext_authz;
mod network_rbac;
mod peer_exchange;
mod prepare;
mod published;
mod record;
mod report;
mod respond;
mod router;
mod series;
mod stalls;
mod start;
mod steps;
mod tcp;
mod timer;
mod tls;
mod upstream;
mod uuid;
mod worker;

pub use common::Levels;
pub use control::driver::Status;
pub use control::servers::client_of;
pub use logs::Logs;
pub use start::{Discover, Proxy, ProxyHandle, ProxyOptions};

/// The parsers of foreign bytes, for the fuzz targets alone.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::http1::codec::Framing;
    pub use crate::http1::replay::{body, naive_chunks, request, request_written_again, response};
}
