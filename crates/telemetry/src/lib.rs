//! What a proxy tells about its traffic: metrics with a series budget, Istio's standard labels, access-log formats and
//! the sink that writes them.
//!
//! In: facts about finished requests and connections, as plain values. Out: Prometheus text and log lines. Nothing here
//! knows of sockets, filters or configuration; the data path resolves a series once and then only adds to it.
//!
//! Each worker owns a [`Shard`]: it alone writes there, so a record is a handful of plain loads and stores. A scrape
//! adds the shards up.

pub mod access_log;
pub mod istio;
pub mod metrics;
pub mod prometheus;
pub mod sink;

pub use access_log::{AccessEntry, FieldSource, Format, FormatError};
pub use istio::{HttpLabels, HttpSeries, Peer, Reporter, TcpLabels, TcpSeries};
pub use metrics::{Budget, Counter, Gauge, Histogram, Kind, Registry, Sample, Shard};
pub use sink::{LogSink, LogWriter};
