//! Istio's standard metrics: names, labels, and the series of a request or connection. Source:
//! Istio "Standard Metrics"; labels are in the order of Istio's own output.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{Counter, Histogram, LabelSet, Shard};

/// HELP lines of the standard metrics.
pub const HELP: &[(&str, &str)] = &[
    ("istio_requests_total", "Requests that the proxy finished."),
    (
        "istio_request_duration_milliseconds",
        "From the first byte of a request to the last of its response.",
    ),
    ("istio_request_bytes", "Size of request bodies."),
    ("istio_response_bytes", "Size of response bodies."),
    (
        "istio_tcp_connections_opened_total",
        "TCP connections opened.",
    ),
    (
        "istio_tcp_connections_closed_total",
        "TCP connections closed.",
    ),
    (
        "istio_tcp_sent_bytes_total",
        "Bytes sent to the downstream of TCP connections.",
    ),
    (
        "istio_tcp_received_bytes_total",
        "Bytes received from the downstream of TCP connections.",
    ),
    (
        "istio_request_messages_total",
        "gRPC messages from clients.",
    ),
    (
        "istio_response_messages_total",
        "gRPC messages from servers.",
    ),
];

/// The side of the call that reports a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's proxy.
    Source,
    /// The server's proxy.
    Destination,
}

impl Reporter {
    /// The value of the label `reporter`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// Labels of one side of a call. Unknown values are `unknown`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Workload (Deployment) name.
    pub workload: Arc<str>,
    /// Namespace of the workload.
    pub namespace: Arc<str>,
    /// SPIFFE ID; authenticated only if `connection_security_policy` is `mutual_tls`.
    pub principal: Arc<str>,
    /// Label `app`.
    pub app: Arc<str>,
    /// Label `version`.
    pub version: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
    /// Cluster id.
    pub cluster: Arc<str>,
}

impl Peer {
    /// A peer with all labels `unknown`.
    pub fn unknown() -> Self {
        let unknown: Arc<str> = Arc::from("unknown");
        Self {
            workload: unknown.clone(),
            namespace: unknown.clone(),
            principal: unknown.clone(),
            app: unknown.clone(),
            version: unknown.clone(),
            canonical_service: unknown.clone(),
            canonical_revision: unknown.clone(),
            cluster: unknown,
        }
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self::unknown()
    }
}

/// Labels that every metric has. The TCP metrics have no others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    /// Our side.
    pub reporter: Reporter,
    /// The caller.
    pub source: Peer,
    /// The called workload.
    pub destination: Peer,
    /// The service's FQDN, or `unknown`.
    pub destination_service: Arc<str>,
    /// The service's short name.
    pub destination_service_name: Arc<str>,
    pub destination_service_namespace: Arc<str>,
    /// Short strings of Envoy's response flags, `-` if none.
    pub response_flags: Arc<str>,
    /// `mutual_tls`, `none` or, at the source, `unknown`.
    pub connection_security_policy: &'static str,
}

/// Labels of the HTTP and gRPC metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpLabels {
    /// The labels that TCP metrics have too.
    pub traffic: TrafficLabels,
    /// `http` or `grpc`.
    pub request_protocol: &'static str,
    /// Status code; 0 if the request ended without one.
    pub response_code: u16,
    /// `grpc-status`, empty for other requests.
    pub grpc_response_status: Arc<str>,
}

fn peer_labels(labels: &mut LabelSet, names: [&'static str; 8], peer: &Peer) {
    let values = [
        &peer.workload,
        &peer.namespace,
        &peer.principal,
        &peer.app,
        &peer.version,
        &peer.canonical_service,
        &peer.canonical_revision,
        &peer.cluster,
    ];

    labels.extend(names.into_iter().zip(values.into_iter().cloned()));
}

const SOURCE: [&str; 8] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
];

const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
];

impl TrafficLabels {
    /// Names and values, `of_http` among them where Istio's proxy puts them.
    fn label_set(
        &self,
        protocol: &'static str,
        of_http: impl IntoIterator<Item = (&'static str, Arc<str>)>,
    ) -> LabelSet {
        let Self {
            reporter,
            source,
            destination,
            destination_service,
            destination_service_name,
            destination_service_namespace,
            response_flags,
            connection_security_policy,
        } = self;

        let mut labels = LabelSet::with_capacity(25);
        labels.push(("reporter", Arc::from(reporter.as_str())));
        peer_labels(&mut labels, SOURCE, source);
        peer_labels(&mut labels, DESTINATION, destination);
        labels.push(("destination_service", destination_service.clone()));
        labels.push(("destination_service_name", destination_service_name.clone()));
        labels.push((
            "destination_service_namespace",
            destination_service_namespace.clone(),
        ));
        labels.push(("request_protocol", Arc::from(protocol)));

        labels.extend(of_http);
        labels.push(("response_flags", response_flags.clone()));
        labels.push((
            "connection_security_policy",
            Arc::from(*connection_security_policy),
        ));

        labels
    }
}

impl HttpLabels {
    fn label_set(&self) -> LabelSet {
        let Self {
            traffic,
            request_protocol,
            response_code,
            grpc_response_status,
        } = self;

        traffic.label_set(
            request_protocol,
            [
                ("response_code", Arc::from(response_code.to_string())),
                ("grpc_response_status", grpc_response_status.clone()),
            ],
        )
    }
}

/// The series of HTTP requests with the same labels. Resolve them once per label set and worker,
/// then call [`HttpSeries::record`] for each request.
#[derive(Debug)]
pub struct HttpSeries {
    requests: Arc<Counter>,
    duration: Arc<Histogram>,
    request_bytes: Arc<Histogram>,
    response_bytes: Arc<Histogram>,
    messages: Option<(Arc<Counter>, Arc<Counter>)>,
}

impl HttpSeries {
    /// Looks the series up in a worker's shard. Slow: takes a lock and hashes all labels.
    pub fn resolve(shard: &Shard, labels: &HttpLabels) -> Self {
        let set = labels.label_set();
        Self {
            requests: shard.counter("istio_requests_total", set.clone()),
            duration: shard.histogram("istio_request_duration_milliseconds", set.clone()),
            request_bytes: shard.histogram("istio_request_bytes", set.clone()),
            response_bytes: shard.histogram("istio_response_bytes", set.clone()),
            messages: (labels.request_protocol == "grpc").then(|| {
                let requests = shard.counter("istio_request_messages_total", set.clone());
                (
                    requests,
                    shard.counter("istio_response_messages_total", set),
                )
            }),
        }
    }

    /// Adds one finished request.
    pub fn record(&self, duration: Duration, request_bytes: u64, response_bytes: u64) {
        self.requests.inc();
        self.duration.record(duration.as_secs_f64() * 1_000.0);
        self.request_bytes.record(request_bytes as f64);
        self.response_bytes.record(response_bytes as f64);
    }

    /// Adds gRPC messages. Does nothing for other requests.
    pub fn record_messages(&self, requests: u64, responses: u64) {
        if let Some((request_counter, response_counter)) = &self.messages {
            request_counter.add(requests);
            response_counter.add(responses);
        }
    }
}

/// The series of TCP connections with the same labels.
#[derive(Debug)]
pub struct TcpSeries {
    /// Connections opened.
    pub opened: Arc<Counter>,
    /// Connections closed.
    pub closed: Arc<Counter>,
    /// Bytes to the downstream.
    pub sent: Arc<Counter>,
    /// Bytes from the downstream.
    pub received: Arc<Counter>,
}

impl TcpSeries {
    /// Looks the series up in a worker's shard; a cold call.
    pub fn resolve(shard: &Shard, labels: &TrafficLabels) -> Self {
        let set = labels.label_set("tcp", []);
        Self {
            opened: shard.counter("istio_tcp_connections_opened_total", set.clone()),
            closed: shard.counter("istio_tcp_connections_closed_total", set.clone()),
            sent: shard.counter("istio_tcp_sent_bytes_total", set.clone()),
            received: shard.counter("istio_tcp_received_bytes_total", set),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    #[test]
    fn a_request_carries_istios_labels() {
        let registry = Registry::default();
        let labels = HttpLabels {
            traffic: TrafficLabels {
                reporter: Reporter::Destination,
                source: Peer::unknown(),
                destination: Peer::unknown(),
                destination_service: Arc::from("reviews.default.svc.cluster.local"),
                destination_service_name: Arc::from("reviews"),
                destination_service_namespace: Arc::from("default"),
                response_flags: Arc::from("-"),
                connection_security_policy: "mutual_tls",
            },
            request_protocol: "http",
            response_code: 200,
            grpc_response_status: Arc::from(""),
        };

        HttpSeries::resolve(&registry.shard(), &labels).record(Duration::from_millis(3), 10, 20);
        let text = crate::prometheus::encode(&registry, HELP);
        assert!(
            text.contains(
                "istio_requests_total{reporter=\"destination\",source_workload=\"unknown\""
            ),
            "{text}"
        );

        assert!(
            text.contains("connection_security_policy=\"mutual_tls\"} 1\n"),
            "{text}"
        );

        assert!(
            !text.contains("messages_total"),
            "plain HTTP has no gRPC messages: {text}"
        );
    }
}
