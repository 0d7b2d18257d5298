//! The agent's own metrics, with the names of Istio's agent.

use std::sync::Arc;

use meltemi_telemetry::{Counter, Gauge, Registry, Shard, prometheus};

const HELP: &[(&str, &str)] = &[
    (
        "istio_agent_cert_expiry_seconds",
        "Seconds until the certificate expires.",
    ),
    (
        "istio_agent_num_outgoing_requests",
        "Requests to the control plane, by type.",
    ),
    (
        "istio_agent_num_failed_outgoing_requests",
        "Requests to the control plane that failed, by type.",
    ),
    ("istio_agent_dns_requests_total", "DNS queries."),
    (
        "istio_agent_dns_upstream_requests_total",
        "DNS queries that were forwarded.",
    ),
    (
        "istio_agent_dns_upstream_failures_total",
        "Forwarded DNS queries without an answer.",
    ),
    (
        "istio_agent_dns_dropped_total",
        "DNS queries and TCP connections that were dropped because there were too many.",
    ),
    (
        "istio_agent_scrapes_total",
        "Scrapes of the merged metrics.",
    ),
    (
        "istio_agent_scrape_failures_total",
        "Scrapes of a part that failed, by part.",
    ),
    (
        "istio_agent_xds_connections_total",
        "Connections of the local proxy that were forwarded to the control plane.",
    ),
    (
        "istio_agent_istiod_connection_failures",
        "Connections to the control plane that could not be made.",
    ),
];

/// Handles of the agent's metrics, resolved once. Cheap to clone; several threads may count.
#[derive(Debug, Clone)]
pub struct AgentMetrics {
    registry: Arc<Registry>,
    shard: Arc<Shard>,
    pub(crate) cert_expiry: Arc<Gauge>,
    pub(crate) csr_requests: Arc<Counter>,
    pub(crate) csr_failures: Arc<Counter>,
    pub(crate) dns_requests: Arc<Counter>,
    pub(crate) dns_upstream: Arc<Counter>,
    pub(crate) dns_upstream_failures: Arc<Counter>,
    pub(crate) dns_dropped: Arc<Counter>,
    pub(crate) scrapes: Arc<Counter>,
    pub(crate) xds_connections: Arc<Counter>,
    pub(crate) control_plane_failures: Arc<Counter>,
}

impl Default for AgentMetrics {
    fn default() -> Self {
        let registry = Arc::new(Registry::default());
        let shard = registry.shard();
        let csr = || vec![("request_type", Arc::from("csr"))];

        Self {
            cert_expiry: shard.gauge(
                "istio_agent_cert_expiry_seconds",
                vec![("resource_name", Arc::from(meltemi_tls::DEFAULT_SECRET))],
            ),
            csr_requests: shard.counter("istio_agent_num_outgoing_requests", csr()),
            csr_failures: shard.counter("istio_agent_num_failed_outgoing_requests", csr()),
            dns_requests: shard.counter("istio_agent_dns_requests_total", vec![]),
            dns_upstream: shard.counter("istio_agent_dns_upstream_requests_total", vec![]),
            dns_upstream_failures: shard.counter("istio_agent_dns_upstream_failures_total", vec![]),
            dns_dropped: shard.counter("istio_agent_dns_dropped_total", vec![]),
            scrapes: shard.counter("istio_agent_scrapes_total", vec![]),
            xds_connections: shard.counter("istio_agent_xds_connections_total", vec![]),
            control_plane_failures: shard.counter("istio_agent_istiod_connection_failures", vec![]),
            registry,
            shard,
        }
    }
}

impl AgentMetrics {
    /// Counts a failed scrape of `part` (`envoy` or `application`).
    pub(crate) fn scrape_failed(&self, part: &'static str) {
        self.shard
            .counter(
                "istio_agent_scrape_failures_total",
                vec![("type", Arc::from(part))],
            )
            .add_shared(1);
    }

    /// All metrics in Prometheus text format.
    pub fn encode(&self) -> String {
        prometheus::encode(&self.registry, HELP)
    }
}
