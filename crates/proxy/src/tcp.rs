//! Connections served as bytes: TCP proxy, SNI passthrough, original destinations.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use meltemi_filters::ext_authz::ConnectionRefusal;
use meltemi_filters::{Cause, ResponseFlag};
use meltemi_lb::SubsetMatch;
use meltemi_net::{CopyEnd, CopyOptions, Meter, copy_both_ways};
use meltemi_proxy_config::listener::{NetworkFilter, Terminal};
use meltemi_proxy_config::tcp::TcpProxy;
use meltemi_proxy_config::tls::UpstreamTransport;

use crate::downstream::{ChainView, Downstream};
use crate::io::Stream;
use crate::log_facts::LogFacts;
use crate::peer_exchange::{self, LatePreamble, PeerAnswer};
use crate::record::StreamInfo;
use crate::report::TcpReport;
use crate::timer::sleep;
use crate::upstream::cluster::{PickRequest, WorkerCluster, WorkerHost};
use crate::upstream::connect::{Dial, DialError, Dialled, connect_options, dial};
use crate::upstream::live::{ActiveRequest, Permit, Resource, epoch_ms};
use crate::upstream::outlier::HostResult;
use crate::worker::Worker;

/// Why no upstream connection came about.
struct Failed {
    flag: ResponseFlag,
    details: &'static str,
    cause: Cause,
    transport: String,
}

impl Failed {
    fn no_cluster(name: Arc<str>) -> Self {
        Self {
            flag: ResponseFlag::NoClusterFound,
            details: "cluster_not_found",
            cause: Cause::NoCluster(name),
            transport: String::new(),
        }
    }

    fn no_endpoint(cluster: &Arc<str>) -> Self {
        Self {
            flag: ResponseFlag::NoHealthyUpstream,
            details: "no_healthy_upstream",
            cause: Cause::NoEndpoint(cluster.clone()),
            transport: String::new(),
        }
    }

    fn overflow(cluster: &Arc<str>) -> Self {
        let threshold = Resource::Connections.threshold();
        Self {
            flag: ResponseFlag::UpstreamOverflow,
            details: "upstream_overflow",
            cause: Cause::Breaker(cluster.clone(), threshold),
            transport: String::new(),
        }
    }
}

/// Serves one connection. `first` was read already.
pub async fn serve(
    worker: Rc<Worker>,
    conn: Rc<Downstream>,
    view: Rc<ChainView>,
    stream: Stream,
    first: Vec<u8>,
) {
    let Terminal::Tcp(proxy) = &view.chain.terminal else {
        return;
    };
    let mut info = StreamInfo::new(worker.random());
    let (mut stream, mut first) = (stream, first);
    let mut begun = None;

    if exchanges(&view, &conn) {
        match peer_exchange::exchange(&mut stream, &mut first, &worker.common.local).await {
            Ok(PeerAnswer::Peer(peer)) => info.state.downstream_peer = peer,
            Ok(PeerAnswer::NotYet) => begun = Some(std::mem::take(&mut first)),
            Err(_) => return,
        }
    }

    let mut stream = LatePreamble::new(&mut stream, begun);
    let connected = match destination(&view, proxy, &conn, info.random) {
        Err(failed) => Err(failed),
        Ok((name, subset)) => {
            info.cluster = Some(name.clone());
            connect(&worker, &conn, proxy, &name, subset, &mut info).await
        }
    };
    let connected = match connected {
        Ok(connected) => connected,
        Err(failed) => {
            worker.causes.refusal(&failed.cause, Some(failed.flag));
            info.end(failed.flag, failed.details, Some(failed.cause));
            if failed.flag == ResponseFlag::UpstreamConnectionFailure {
                // Envoy: also where one attempt is all that there is.
                let flags = &mut info.state.flags;
                flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
            }
            info.transport_failure = failed.transport;
            finish(&worker, &conn, &view, proxy, &info);
            return;
        }
    };

    let Connected {
        mut upstream,
        upstream_first,
        upstream_begun,
        permit,
    } = connected;
    let mut upstream = LatePreamble::new(&mut upstream, upstream_begun);
    let report = TcpReport::of(&worker, &conn, &view, &info);
    let meter = Meter::default();
    let options = CopyOptions {
        idle: proxy.idle_timeout,
    };
    let copy = copy_both_ways(
        &mut stream,
        &mut upstream,
        (first, upstream_first),
        options,
        &worker.buffers,
        &meter,
    );

    let end = until_end(copy, &worker, &conn, proxy, report.as_ref(), &meter).await;
    info.received.set(meter.received.get());
    info.sent.set(meter.sent.get());
    note_end(&mut info, &conn, end);
    if let Some(report) = report {
        report.close(&worker, &meter, &info);
    }
    finish(&worker, &conn, &view, proxy, &info);
    drop(permit);
}

/// What ended a connection that was served.
enum End {
    /// Either side, or silence.
    Copy(CopyEnd),
    /// The drain time is over.
    Drained,
    /// Envoy: TcpProxy.max_downstream_connection_duration.
    TooLong,
}

/// Waits for the end of a connection, and reports its bytes meanwhile.
async fn until_end(
    copy: impl Future<Output = CopyEnd>,
    worker: &Worker,
    conn: &Downstream,
    proxy: &TcpProxy,
    report: Option<&TcpReport>,
    meter: &Meter,
) -> End {
    let interval = report.map(TcpReport::interval);
    let mut copy = pin!(copy);
    let mut drained = pin!(conn.overdue(worker.common.drain_time));
    let mut too_long = pin!(sleep(proxy.max_duration));

    loop {
        tokio::select! {
            end = &mut copy => return End::Copy(end),
            () = &mut drained => return End::Drained,
            () = &mut too_long => return End::TooLong,
            () = sleep(interval) => {
                if let Some(report) = report {
                    report.progress(meter);
                }
            }
        }
    }
}

/// Notes in the record what ended the connection.
fn note_end(info: &mut StreamInfo, conn: &Downstream, end: End) {
    let timeout = |which| Some(Cause::Timeout(which, conn.chain.clone()));
    match end {
        End::Drained => {
            let flag = ResponseFlag::LocalReset;
            info.end(flag, "connection_drained", conn.drain_cause());
        }
        End::TooLong => {
            let details = "max_downstream_connection_duration";
            info.end(ResponseFlag::DurationTimeout, details, timeout(details));
        }
        End::Copy(CopyEnd::Idle) => {
            let details = "idle_timeout";
            info.end(ResponseFlag::StreamIdleTimeout, details, timeout(details));
        }
        End::Copy(CopyEnd::Upstream(error)) => {
            let flag = ResponseFlag::UpstreamConnectionTermination;
            info.end(flag, "upstream_connection_termination", None);
            info.transport_failure = error.to_string();
        }
        End::Copy(CopyEnd::Downstream(_)) => {
            let flag = ResponseFlag::DownstreamConnectionTermination;
            info.end(flag, "downstream_remote_disconnect", None);
        }
        End::Copy(CopyEnd::Closed) => {}
    }
}

/// Whether the client's proxy will say who it is first.
fn exchanges(view: &ChainView, conn: &Downstream) -> bool {
    let agreed = conn
        .info
        .tls
        .as_ref()
        .is_some_and(|tls| tls.alpn.as_deref() == Some(peer_exchange::ALPN));

    agreed
        && view
            .chain
            .filters
            .iter()
            .any(|filter| matches!(filter, NetworkFilter::MetadataExchange))
}

/// The cluster that the connection goes to, and the metadata that its endpoint must have.
fn destination<'a>(
    view: &ChainView,
    proxy: &'a TcpProxy,
    conn: &Downstream,
    random: u64,
) -> Result<(Arc<str>, Option<&'a SubsetMatch>), Failed> {
    let by_sni = |filter: &NetworkFilter| matches!(filter, NetworkFilter::SniCluster);
    if !view.chain.filters.iter().any(by_sni) {
        let (name, subset) = proxy.select(random);
        return Ok((name.clone(), subset));
    }

    match &conn.info.server_name {
        Some(name) => Ok(((&**name).into(), None)),
        None => Err(Failed::no_cluster("(no server name)".into())),
    }
}

struct Connected {
    upstream: Stream,
    upstream_first: Vec<u8>,
    /// What was read of the peer's own part, if that is still due.
    upstream_begun: Option<Vec<u8>>,
    permit: (Permit, ActiveRequest),
}

async fn connect(
    worker: &Rc<Worker>,
    conn: &Downstream,
    proxy: &TcpProxy,
    name: &Arc<str>,
    subset: Option<&SubsetMatch>,
    info: &mut StreamInfo,
) -> Result<Connected, Failed> {
    let Some(cluster) = worker.cluster(name) else {
        return Err(Failed::no_cluster(name.clone()));
    };

    let mut tried: Vec<SocketAddr> = Vec::new();
    let hash = proxy
        .hash_source_ip
        .then(|| meltemi_lb::hash::xxh64(conn.info.remote.ip().to_string().as_bytes(), 0));
    let mut last = None;

    for _ in 0..proxy.max_connect_attempts.max(1) {
        let now = epoch_ms(Instant::now());
        let picked = cluster.pick(&PickRequest {
            random: worker.random(),
            hash,
            subset,
            tried: &tried,
            omitted: &[],
            attempts: 3,
            failed_priorities: &[],
            original: conn.info.original_destination(),
            now,
        });
        let Some((host, _)) = picked else {
            return Err(Failed::no_endpoint(name));
        };
        let live = &cluster.entry.live;
        let Some(permit) = live.admit(false, Resource::Connections) else {
            return Err(Failed::overflow(name));
        };

        info.attempts += 1;
        info.upstream = Some(host.address);
        let opened = open(worker, conn, &cluster, &host).await;
        live.connected(&opened);
        match opened {
            Ok(dialled) => {
                live.report(&host.live, HostResult::Status(200), now);
                let permit = (permit, host.live.begin());
                info.workload = worker.series.workload(&host);
                return Ok(introduce(worker, &cluster, dialled, permit, info).await);
            }
            Err(error) => {
                live.report(&host.live, HostResult::LocalFailure, now);
                tried.push(host.address);
                last = Some((host.address, error));
            }
        }
    }

    let (address, error) = last.map_or((conn.info.local, DialError::Timeout), |last| last);

    Err(Failed {
        flag: ResponseFlag::UpstreamConnectionFailure,
        details: "upstream_connection_failure",
        cause: Cause::Endpoint(name.clone(), address, error.to_string().into()),
        transport: error.transport(),
    })
}

/// Exchanges metadata with the peer, where both sides agreed to, and notes in the record who it is.
async fn introduce(
    worker: &Worker,
    cluster: &WorkerCluster,
    mut dialled: Dialled,
    permit: (Permit, ActiveRequest),
    info: &mut StreamInfo,
) -> Connected {
    let (mut upstream_first, mut upstream_begun) = (Vec::new(), None);
    let agreed = dialled.alpn.as_deref() == Some(peer_exchange::ALPN.as_bytes());

    if cluster.entry.cluster.exchanges_metadata && agreed {
        let (stream, own) = (&mut dialled.stream, &worker.common.local);
        match peer_exchange::exchange(stream, &mut upstream_first, own).await {
            Ok(PeerAnswer::Peer(peer)) => info.state.upstream_peer = peer,
            Ok(PeerAnswer::NotYet) => upstream_begun = Some(std::mem::take(&mut upstream_first)),
            // An upstream that fails here fails again at the first byte, and is reported then.
            Err(_) => {}
        }
    }

    info.upstream_local = dialled.stream.socket().local_addr().ok();
    info.upstream_principal = dialled.principal;

    Connected {
        upstream: dialled.stream,
        upstream_first,
        upstream_begun,
        permit,
    }
}

async fn open(
    worker: &Worker,
    conn: &Downstream,
    cluster: &WorkerCluster,
    host: &WorkerHost,
) -> Result<Dialled, DialError> {
    let options = connect_options(&cluster.entry.cluster, worker.common.mark, host.address);
    let dialling = Dial {
        address: host.address,
        transport: &host.transport,
        alpn: exchanging(cluster, &host.transport),
        server_name: None,
        check_name: false,
        hostname: host.hostname(),
        ends: Some((conn.info.remote, conn.info.local)),
        options: &options,
        timeout: cluster.entry.cluster.connect_timeout,
    };

    dial(dialling, &worker.tls).await
}

/// The transport's whole ALPN list, if the cluster's connections say who they are.
fn exchanging<'a>(
    cluster: &WorkerCluster,
    transport: &'a UpstreamTransport,
) -> Option<&'a [Box<str>]> {
    let terms = cluster
        .entry
        .cluster
        .exchanges_metadata
        .then(|| transport.tls())
        .flatten();
    terms.map(|terms| &*terms.common.alpn)
}

/// Refuses a connection that network authorization forbids, as Envoy logs it.
pub fn refuse(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    view: &Rc<ChainView>,
    policy: Option<Arc<str>>,
) {
    let mut info = StreamInfo::new(worker.random());
    let name = policy.as_deref().unwrap_or("none");
    info.termination = format!("rbac_access_denied_matched_policy[{name}]").into();
    refused(worker, conn, view, info, Cause::Policy(policy));
}

/// Refuses a connection that an external authorizer does not let pass.
pub fn refuse_by_service(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    view: &Rc<ChainView>,
    refusal: ConnectionRefusal,
) {
    let ConnectionRefusal { details, cause } = refusal;
    let mut info = StreamInfo::new(worker.random());
    info.termination = details.into();
    info.state
        .flags
        .insert(ResponseFlag::UnauthorizedExternalService);
    refused(worker, conn, view, info, cause);
}

/// Refuses a connection beyond a limit.
pub fn refuse_over_limit(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    view: &Rc<ChainView>,
    prefix: Arc<str>,
) {
    let mut info = StreamInfo::new(worker.random());
    info.details = "connection_limit".into();
    info.state.flags.insert(ResponseFlag::UpstreamOverflow);
    refused(worker, conn, view, info, Cause::ConnectionLimit(prefix));
}

fn refused(
    worker: &Rc<Worker>,
    conn: &Rc<Downstream>,
    view: &Rc<ChainView>,
    mut info: StreamInfo,
    cause: Cause,
) {
    worker
        .causes
        .refusal(&cause, info.state.flags.iter().next());
    info.cause = Some(cause);
    let logs = match &view.chain.terminal {
        Terminal::Tcp(proxy) => &proxy.access_logs,
        Terminal::Http(http) => &http.access_logs,
    };

    if let Some(report) = TcpReport::of(worker, conn, view, &info) {
        report.close(worker, &Meter::default(), &info);
    }
    let facts = LogFacts {
        worker: Some(worker),
        ..LogFacts::new(&info, conn, view)
    };
    facts.write(worker, logs);
}

fn finish(
    worker: &Worker,
    conn: &Downstream,
    view: &ChainView,
    proxy: &TcpProxy,
    info: &StreamInfo,
) {
    let facts = LogFacts {
        worker: Some(worker),
        ..LogFacts::new(info, conn, view)
    };
    facts.write(worker, &proxy.access_logs);
}

/// Places under `envoy.filters.network.connection_limit`: one count for all workers, by listener
/// and statistics prefix.
pub struct Limits(Vec<Arc<AtomicU64>>);

impl Limits {
    /// Takes a place under every limit of the chain; the prefix of the one that has none left.
    pub fn of(worker: &Worker, view: &ChainView) -> Result<Self, Arc<str>> {
        let mut taken = Self(Vec::new());
        for filter in &view.chain.filters {
            let NetworkFilter::ConnectionLimit(limit) = filter else {
                continue;
            };
            let count = worker
                .common
                .connection_count(&view.listener.name, &limit.stat_prefix);
            if count.fetch_add(1, Relaxed) >= limit.max {
                count.fetch_sub(1, Relaxed);
                return Err((&*limit.stat_prefix).into());
            }

            taken.0.push(count);
        }

        Ok(taken)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for count in &self.0 {
            count.fetch_sub(1, Relaxed);
        }
    }
}
