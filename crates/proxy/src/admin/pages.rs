//! The pages that are not dumps of configuration.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use meltemi_proxy_config::Address;
use meltemi_proxy_config::endpoint::EndpointStatus;
use serde_json::{Value, json};

use crate::common::Common;
use crate::control::inspect::Inspector;
use crate::published::ClusterEntry;
use crate::upstream::live::epoch_ms;

/// The text of `/help`.
pub const HELP: &str = "admin commands are:
  /certs: certificates and roots
  /clusters: clusters and endpoints (?format=json)
  /config_dump: what was received (?include_eds, ?resource=..., ?name_regex=REGEX)
  /drain_listeners (POST): stop accepting and end connections in order (?inboundonly; ?graceful: accept until the time
      for draining has passed; with ?skip_exit for ever)
  /healthcheck/fail (POST): answer /ready with 503
  /healthcheck/ok (POST): no longer
  /listeners: listeners and their addresses (?format=json)
  /logging: levels (POST ?level=debug, ?paths=meltemi_proxy:debug,h2:info or ?meltemi_proxy=debug: change them)
  /quitquitquit (POST): end
  /ready: whether traffic may come
  /server_info: who this is
  /stats: counters (?filter=REGEX, ?usedonly, ?format=json or prometheus)
  /stats/prometheus: counters for Prometheus
";

/// Families of the proxy itself, beside those of the registry.
pub fn own_metrics(common: &Common, out: &mut String) {
    let uptime = common.since.elapsed().as_secs();
    let live = u8::from(common.ready.load(Relaxed));
    let rows: [(&str, &str, String); 4] = [
        ("envoy_server_uptime", "gauge", uptime.to_string()),
        ("envoy_server_live", "gauge", live.to_string()),
        (
            "envoy_server_total_connections",
            "gauge",
            common.connections.get().to_string(),
        ),
        (
            "meltemi_access_log_dropped_total",
            "counter",
            common.logs.dropped().to_string(),
        ),
    ];

    for (name, kind, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
    }

    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(
        out,
        "# TYPE istio_build gauge\nistio_build{{component=\"proxy\",tag=\"meltemi-{version}\"}} 1"
    );
}

type Entries = Vec<(Arc<str>, Arc<ClusterEntry>)>;

async fn entries(inspector: &Inspector) -> (Entries, HashMap<(Arc<str>, SocketAddr), usize>) {
    let all = inspector.look(|_, published, _| {
        let mut all: Entries = published
            .clusters
            .iter()
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    });

    let all = all.await.unwrap_or_default();
    let now = epoch_ms(Instant::now());
    all.iter().for_each(|(_, entry)| entry.live.look(now));
    let mut open = HashMap::new();
    for (cluster, address, count) in inspector.pools().await {
        *open.entry((cluster, address)).or_default() += count;
    }

    (all, open)
}

fn health(status: EndpointStatus) -> &'static str {
    match status {
        EndpointStatus::Healthy => "HEALTHY",
        EndpointStatus::Unhealthy => "UNHEALTHY",
        EndpointStatus::Draining => "DRAINING",
        EndpointStatus::Timeout => "TIMEOUT",
        EndpointStatus::Degraded => "DEGRADED",
    }
}

/// `/clusters`
pub async fn clusters_text(inspector: &Inspector) -> String {
    let (all, open) = entries(inspector).await;
    let mut out = String::new();
    for (name, entry) in all {
        let cluster = &entry.cluster;
        let _ = writeln!(out, "{name}::observability_name::{name}");
        for (priority, breakers) in ["default_priority", "high_priority"]
            .iter()
            .zip(&cluster.breakers)
        {
            let _ = writeln!(
                out,
                "{name}::{priority}::max_connections::{}",
                breakers.max_connections
            );

            let _ = writeln!(
                out,
                "{name}::{priority}::max_pending_requests::{}",
                breakers.max_pending
            );

            let _ = writeln!(
                out,
                "{name}::{priority}::max_requests::{}",
                breakers.max_requests
            );

            let _ = writeln!(
                out,
                "{name}::{priority}::max_retries::{}",
                breakers.max_retries
            );
        }

        for (endpoint, live) in entry.endpoints.endpoints.iter().zip(&entry.hosts) {
            let at = endpoint.address.to_string();
            let place = entry.endpoints.localities.get(endpoint.locality as usize);
            if let Some(live) = live {
                let connections = open
                    .get(&(name.clone(), live.address))
                    .copied()
                    .unwrap_or_default();

                let _ = writeln!(out, "{name}::{at}::cx_active::{connections}");
                let _ = writeln!(out, "{name}::{at}::rq_total::{}", live.total.load(Relaxed));
                let _ = writeln!(out, "{name}::{at}::rq_error::{}", live.errors.load(Relaxed));
                let _ = writeln!(
                    out,
                    "{name}::{at}::rq_active::{}",
                    live.active.load(Relaxed)
                );

                let flags = match (live.is_ejected(), endpoint.status) {
                    (true, _) => "/failed_outlier_check",
                    (false, EndpointStatus::Healthy | EndpointStatus::Degraded) => "healthy",
                    (false, _) => "/failed_eds_health",
                };

                let _ = writeln!(out, "{name}::{at}::health_flags::{flags}");
            }

            let _ = writeln!(out, "{name}::{at}::weight::{}", endpoint.weight);
            if let Some(place) = place {
                let _ = writeln!(out, "{name}::{at}::region::{}", place.locality.region);
                let _ = writeln!(out, "{name}::{at}::zone::{}", place.locality.zone);
                let _ = writeln!(out, "{name}::{at}::sub_zone::{}", place.locality.subzone);
            }

            let _ = writeln!(out, "{name}::{at}::priority::{}", endpoint.priority);
        }
    }

    out
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// `/clusters?format=json`, in the shape of `envoy.admin.v3.Clusters`.
pub async fn clusters_json(inspector: &Inspector) -> Value {
    let (all, open) = entries(inspector).await;
    let statuses: Vec<Value> = all
        .iter()
        .map(|(name, entry)| {
            let hosts: Vec<Value> = entry
                .endpoints
                .endpoints
                .iter()
                .zip(&entry.hosts)
                .filter_map(|(endpoint, live)| {
                    let live = live.as_ref()?;
                    let place = entry.endpoints.localities.get(endpoint.locality as usize);
                    let count = |name: &str, value: u64| json!({ "name": name, "value": value.to_string() });
                    let connections = open.get(&(name.clone(), live.address)).copied().unwrap_or_default();
                    Some(json!({
                        "address": socket(live.address),
                        "stats": [
                            count("rq_total", live.total.load(Relaxed)),
                            count("rq_error", live.errors.load(Relaxed)),
                            json!({ "name": "rq_active", "type": "GAUGE", "value": live.active.load(Relaxed).to_string() }),
                            json!({ "name": "cx_active", "type": "GAUGE", "value": connections.to_string() }),
                        ],
                        "health_status": {
                            "eds_health_status": health(endpoint.status),
                            "failed_outlier_check": live.is_ejected(),
                        },
                        "weight": endpoint.weight,
                        "priority": endpoint.priority,
                        "locality": place.map(|place| json!({
                            "region": place.locality.region,
                            "zone": place.locality.zone,
                            "sub_zone": place.locality.subzone,
                        })),
                    }))
                })
                .collect();

            let thresholds: Vec<Value> = ["DEFAULT", "HIGH"]
                .iter()
                .zip(&entry.cluster.breakers)
                .map(|(priority, breakers)| {
                    json!({
                        "priority": priority,
                        "max_connections": breakers.max_connections,
                        "max_pending_requests": breakers.max_pending,
                        "max_requests": breakers.max_requests,
                        "max_retries": breakers.max_retries,
                    })
                })
                .collect();

            json!({
                "name": name,
                "observability_name": name,
                "host_statuses": hosts,
                "circuit_breakers": { "thresholds": thresholds },
            })
        })
        .collect();

    json!({ "cluster_statuses": statuses })
}

/// `/listeners`
pub async fn listeners_text(inspector: &Inspector) -> String {
    let mut out = String::new();
    for (name, addresses) in inspector.listeners().await {
        for address in addresses {
            let _ = writeln!(out, "{name}::{address}");
        }
    }
    out
}

/// `/listeners?format=json`, in the shape of `envoy.admin.v3.Listeners`.
pub async fn listeners_json(inspector: &Inspector) -> Value {
    let show = |address: &Address| match address {
        Address::Socket(address) => socket(*address),
        Address::Name(name, port) => {
            json!({ "socket_address": { "address": name, "port_value": port } })
        }
        Address::Pipe(path) => json!({ "pipe": { "path": path } }),
        Address::Internal(name) => {
            json!({ "envoy_internal_address": { "server_listener_name": name } })
        }
    };

    let all = inspector.listeners().await;
    let each = all.iter().map(|(name, addresses)| {
        let mut status = json!({ "name": name });
        let mut shown = addresses.iter().map(show);
        status["local_address"] = shown.next().unwrap_or_default();
        let additional: Vec<Value> = shown.collect();
        if !additional.is_empty() {
            status["additional_local_addresses"] = additional.into();
        }
        status
    });

    json!({ "listener_statuses": each.collect::<Vec<_>>() })
}

/// `/certs`: facts about certificates, never keys.
pub fn certs(common: &Common) -> Value {
    let now = SystemTime::now();
    let each = common.secrets.names().into_iter().filter_map(|name| {
        let secret = common.secrets.get(&name)?;
        let show = |info: &meltemi_tls::CertificateInfo| {
            json!({
                "path": format!("<secret {name}>"),
                "serial_number": info.serial,
                "subject_alt_names": info.uri_sans.iter().map(|uri| json!({ "uri": uri }))
                    .chain(info.dns_sans.iter().map(|dns| json!({ "dns": dns }))).collect::<Vec<_>>(),
                "days_until_expiration": info.days_until_expiration(now).to_string(),
                "valid_from": time(info.not_before),
                "expiration_time": time(info.not_after),
            })
        };

        let chain = secret.identity.as_ref().map(|identity| vec![show(identity.info())]);
        let roots = secret.trust.as_ref().map(|trust| {
            trust.certificates().filter_map(|root| Some(show(&meltemi_tls::info_of(root).ok()?))).collect::<Vec<_>>()
        });
        Some(json!({ "ca_cert": roots.unwrap_or_default(), "cert_chain": chain.unwrap_or_default() }))
    });

    json!({ "certificates": each.collect::<Vec<_>>() })
}

/// `/server_info`
pub fn server_info(common: &Common) -> Value {
    json!({
        "version": format!("meltemi/{}", env!("CARGO_PKG_VERSION")),
        "state": common.state().name(),
        "uptime_current_epoch": format!("{}s", common.since.elapsed().as_secs()),
        "uptime_all_epochs": format!("{}s", common.since.elapsed().as_secs()),
        "node": { "id": &*common.node_id },
    })
}

/// ISO 8601, UTC.
pub fn time(at: SystemTime) -> String {
    let mut out = Vec::new();
    meltemi_filters::digits::timestamp(at, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}
