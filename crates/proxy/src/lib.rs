//! The data path: listeners, HTTP and TCP serving, upstream pools, retries, breakers, outliers,
//! logs, admin.
//!
//! In: compiled configuration (`proxy-config`, fed by xDS resources), secrets, connections. Out:
//! bytes, access logs, metrics, and for every answer of its own a response flag and a cause.
//! Decisions are made by `proxy-config`, `filters` and `lb`; this crate does the IO that they do
//! not.
//!
//! [`start`] begins it all; [`worker`] is a thread's state; [`listener`] takes connections to
//! [`http1`], [`http2`] or [`tcp`]; [`exchange`] serves a request, [`router`] forwards it over
//! [`upstream`]; [`control`] applies configuration.
//!
//! Must never import: `api`, `model`, `translate`: it knows xDS only.

pub mod admin;
pub mod body;
pub mod causes;
pub mod common;
pub mod control;
pub mod counts;
pub mod downstream;
pub mod exchange;
pub mod grpc;
pub mod halfopen;
pub mod http1;
pub mod http2;
pub mod io;
pub mod listener;
pub mod log_facts;
pub mod logs;
pub mod peer_exchange;
pub mod prepare;
pub mod published;
pub mod record;
pub mod report;
pub mod respond;
pub mod router;
pub mod series;
pub mod start;
pub mod steps;
pub mod tcp;
pub mod timer;
pub mod tls;
pub mod upstream;
pub mod worker;

pub use common::Levels;
pub use control::driver::Status;
pub use logs::Logs;
use meltemi_filters::digits;
pub use start::{Discover, Proxy, ProxyHandle, ProxyOptions};
