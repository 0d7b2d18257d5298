//! Telemetry of the proxy: metrics with a limit on series, Istio's standard labels, and the sink
//! for access-log lines (`filters::format` renders the lines).
//!
//! In: data of finished requests and connections, as plain values. Out: Prometheus text and log
//! files. This crate knows no sockets, filters or configuration. The data path looks a series up
//! once and then only adds to it.
//!
//! Each worker writes to its own [`Shard`] only, so recording needs plain loads and stores. A
//! scrape adds the shards up.

pub mod istio;
pub mod metrics;
pub mod prometheus;
pub mod sink;

pub use istio::{HttpLabels, HttpSeries, Peer, Reporter, TcpSeries, TrafficLabels};
pub use metrics::{Budget, Counter, Gauge, Histogram, Kind, Registry, Sample, Shard};
pub use sink::{LogSink, LogWriter};
