//! Istio's standard metrics: which labels a request or connection has, and the series that it adds
//! to.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use meltemi_filters::ResponseFlags;
use meltemi_filters::head::RequestHead;
use meltemi_net::Meter;
use meltemi_proxy_config::listener::{Direction, NetworkFilter};
use meltemi_telemetry::{HttpLabels, HttpSeries, Peer, Reporter, TcpSeries, TrafficLabels};

use crate::downstream::{ChainView, Downstream};
use crate::exchange::state::Exchange;
use crate::record::StreamInfo;
use crate::series::{RequestKey, Same, ServiceName, UNKNOWN};
use crate::worker::Worker;

fn reporter(view: &ChainView) -> Reporter {
    match view.listener.direction {
        Direction::Inbound => Reporter::Destination,
        Direction::Outbound | Direction::Unspecified => Reporter::Source,
    }
}

fn is_mutual(conn: &Downstream) -> bool {
    conn.info
        .tls
        .as_deref()
        .is_some_and(|tls| tls.presented && tls.validated)
}

fn security(reporter: Reporter, mutual: bool) -> &'static str {
    match (reporter, mutual) {
        (Reporter::Source, _) => "unknown",
        (Reporter::Destination, true) => "mutual_tls",
        (Reporter::Destination, false) => "none",
    }
}

/// Source and destination, seen from our side.
fn sides(
    worker: &Worker,
    conn: &Downstream,
    reporter: Reporter,
    info: &StreamInfo,
) -> (Arc<Peer>, Arc<Peer>) {
    let series = &worker.series;
    let own = worker.own_peer();

    match reporter {
        Reporter::Source => {
            // What the upstream says of itself wins over what its endpoint's metadata says.
            let upstream = info.state.upstream_peer.as_ref().or(info.workload.as_ref());
            let principal = info.upstream_principal.as_ref();
            let us = worker.own_principal();
            let us = principal.and(us.as_ref());
            (
                series.peer(Some(&own), us),
                series.peer(upstream, principal),
            )
        }
        Reporter::Destination => {
            let us = if is_mutual(conn) {
                conn.own_principal()
            } else {
                None
            };
            let downstream = info.state.downstream_peer.as_ref();
            (
                series.peer(downstream, conn.peer_principal().as_ref()),
                series.peer(Some(&own), us.as_ref()),
            )
        }
    }
}

/// The labels that HTTP and TCP metrics have in common.
fn traffic_labels(
    reporter: Reporter,
    source: &Peer,
    destination: &Peer,
    service: &ServiceName,
    flags: ResponseFlags,
    mutual: bool,
) -> TrafficLabels {
    let ServiceName {
        host,
        name,
        namespace,
    } = service;

    TrafficLabels {
        reporter,
        source: source.clone(),
        destination: destination.clone(),
        destination_service: host.clone(),
        destination_service_name: name.clone(),
        destination_service_namespace: namespace.clone(),
        response_flags: flags.to_string().into(),
        connection_security_policy: security(reporter, mutual),
    }
}

/// The service that a request or connection goes to.
fn service_of(worker: &Worker, info: &StreamInfo) -> Arc<ServiceName> {
    let name = info.cluster.as_ref();
    let cluster = name.and_then(|name| worker.cluster(name));
    worker.series.service(name, cluster.as_deref())
}

/// Adds a finished request.
pub fn http(exchange: &Exchange<'_>, request: &RequestHead) {
    let Some(stats) = exchange.http.filters.stats else {
        return;
    };
    let (worker, conn, info) = (exchange.worker, exchange.conn, &exchange.info);
    let reporter = reporter(exchange.view);
    let (source, destination) = sides(worker, conn, reporter, info);
    let series = &worker.series;
    let mut service = service_of(worker, info);
    if stats.host_header_fallback && *service.host == *UNKNOWN {
        service = series.by_host(&service, request.authority());
    }
    let grpc = request.is_grpc();
    let mutual = is_mutual(conn);
    let grpc_status = info.grpc_status.filter(|_| grpc);
    let key = RequestKey {
        reporter,
        source: Same(source),
        destination: Same(destination),
        service: Same(service),
        grpc,
        code: info.status,
        // A server can make up numbers: those beyond the known ones share one series.
        grpc_status: grpc_status.map(|status| status.min(99)),
        flags: info.state.flags,
        mutual,
    };

    let found = series.of_requests(key, |key| {
        let labels = HttpLabels {
            traffic: traffic_labels(
                reporter,
                &key.source.0,
                &key.destination.0,
                &key.service.0,
                key.flags,
                mutual,
            ),
            request_protocol: if grpc { "grpc" } else { "http" },
            response_code: key.code,
            grpc_response_status: grpc_status
                .map_or_else(|| "".into(), |status| status.to_string().into()),
        };

        HttpSeries::resolve(&worker.shard, &labels)
    });

    let heads = (
        request.fields().byte_len() as u64,
        exchange.response.fields().byte_len() as u64,
    );

    found.record(
        info.start.elapsed(),
        info.received.get() + heads.0,
        info.sent.get() + heads.1,
    );

    if let Some(messages) = &info.messages {
        found.record_messages(
            messages.requests.get().messages(),
            messages.responses.get().messages(),
        );
    }
}

/// The metrics of one TCP connection.
#[derive(Debug)]
pub struct TcpReport {
    labels: Box<TrafficLabels>,
    series: TcpSeries,
    interval: Duration,
    told: (Cell<u64>, Cell<u64>),
}

impl TcpReport {
    /// Reports a connection that has an upstream or is refused; `None` without the stats filter.
    pub fn of(
        worker: &Worker,
        conn: &Downstream,
        view: &ChainView,
        info: &StreamInfo,
    ) -> Option<Self> {
        let interval = view.chain.filters.iter().find_map(|filter| match filter {
            NetworkFilter::Stats { interval } => Some(*interval),
            _ => None,
        })?;

        let reporter = reporter(view);
        let (source, destination) = sides(worker, conn, reporter, info);
        let service = service_of(worker, info);
        let labels = traffic_labels(
            reporter,
            &source,
            &destination,
            &service,
            info.state.flags,
            is_mutual(conn),
        );

        let series = TcpSeries::resolve(&worker.shard, &labels);
        series.opened.inc();

        Some(Self {
            labels: Box::new(labels),
            series,
            interval,
            told: Default::default(),
        })
    }

    /// How often [`TcpReport::progress`] is wanted.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Adds the bytes since the last call.
    pub fn progress(&self, meter: &Meter) {
        let (received, sent) = (meter.received.get(), meter.sent.get());
        self.series
            .received
            .add(received - self.told.0.replace(received));
        self.series.sent.add(sent - self.told.1.replace(sent));
    }

    /// Ends the connection; its flags are known now.
    pub fn close(self, worker: &Worker, meter: &Meter, info: &StreamInfo) {
        self.progress(meter);
        let flags = info.state.flags.to_string();
        if *flags == *self.labels.response_flags {
            self.series.closed.inc();
            return;
        }

        let labels = TrafficLabels {
            response_flags: flags.into(),
            ..*self.labels
        };

        TcpSeries::resolve(&worker.shard, &labels).closed.inc();
    }
}
