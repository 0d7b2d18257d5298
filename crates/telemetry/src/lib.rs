//! What a proxy tells about its traffic: metrics with a series budget, Istio's standard labels, and
//! the sink that log lines go to (what stands in a line is `filters::format`'s).
//!
//! In: facts about finished requests and connections, as plain values. Out: Prometheus text and
//! files of lines. Nothing here knows of sockets, filters or configuration; the data path resolves
//! a series once and then only adds to it.
//!
//! Each worker owns a [`Shard`]: it alone writes there, so a record is a handful of plain loads and
//! stores. A scrape adds the shards up.

pub mod istio;
pub mod metrics;
pub mod prometheus;
pub mod sink;

pub use istio::{HttpLabels, HttpSeries, Peer, Reporter, TcpSeries, TrafficLabels};
pub use metrics::{Budget, Counter, Gauge, Histogram, Kind, Registry, Sample, Shard};
pub use sink::{LogSink, LogWriter};
