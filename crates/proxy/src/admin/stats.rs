//! `/stats`: all counters, under Envoy's names, as text, JSON or for Prometheus.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use meltemi_filters::counter::Counter;
use meltemi_proxy_config::endpoint::EndpointStatus;
use regex::Regex;
use serde_json::{Value, json};

use crate::control::driver::Status;
use crate::control::inspect::Inspector;
use crate::counts::{ClusterCounts, Codes, Copied, HttpCounts, ListenerCounts, listener_name};
use crate::published::{ClusterEntry, Published};
use crate::upstream::live::{Resource, epoch_ms};
use crate::upstream::outlier::Reason;

/// What a number is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Process,
    Cluster(Arc<str>),
    Http(Arc<str>),
    Listener(Arc<str>),
}

/// One number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stat {
    of: Of,
    name: Cow<'static, str>,
    is_gauge: bool,
    value: u64,
    /// Shown with `?usedonly` although it is 0: a number that was set, of which 0 is a meaning.
    is_set: bool,
}

impl Stat {
    /// The whole name, as Envoy writes it.
    fn full(&self) -> String {
        let (of, name) = match &self.of {
            Of::Process => return self.name.clone().into_owned(),
            Of::Cluster(name) => ("cluster", name),
            Of::Http(prefix) => ("http", prefix),
            Of::Listener(address) => ("listener", address),
        };
        // Envoy separates the parts of a name with dots and allows no colon in one.
        format!("{of}.{}.{}", name.replace(':', "_"), self.name)
    }

    /// Family and labels, as Envoy's tag extraction makes them of the name.
    fn family(&self) -> (String, Vec<(&'static str, String)>) {
        let (of, label) = match &self.of {
            Of::Process => ("", None),
            // Istio ends a cluster's name in statistics with a semicolon, which its rules for
            // labels take away.
            Of::Cluster(name) => {
                let name = name.strip_suffix(';').unwrap_or(name);
                ("cluster_", Some(("cluster_name", name)))
            }
            Of::Http(prefix) => ("http_", Some(("http_conn_manager_prefix", &**prefix))),
            Of::Listener(address) => ("listener_", Some(("listener_address", &**address))),
        };

        let mut labels: Vec<_> = label
            .into_iter()
            .map(|(label, value)| (label, value.to_owned()))
            .collect();

        let mut name = self.name.clone().into_owned();
        if let Some((before, code)) = self.name.rsplit_once("_rq_") {
            if let Some(class) = code.strip_suffix("xx") {
                labels.push(("response_code_class", class.to_owned()));
                name = format!("{before}_rq_xx");
            } else if code.bytes().all(|byte| byte.is_ascii_digit()) {
                labels.push(("response_code", code.to_owned()));
                name = format!("{before}_rq");
            }
        }

        authorization_labels(&mut name, &mut labels);

        let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };

        (
            format!("envoy_{of}{}", name.chars().map(word).collect::<String>()),
            labels,
        )
    }
}

/// Istio's labels of authorization: each takes its part out of the name. Source: `stats_tags` of
/// Istio's bootstrap.
fn authorization_labels(name: &mut String, labels: &mut Vec<(&'static str, String)>) {
    for action in ["allow", "deny"] {
        let part = format!(".istio_dry_run_{action}_");
        if let Some(at) = name.find(&part) {
            name.replace_range(at..at + part.len(), "");
            labels.push(("authz_dry_run_action", action.to_owned()));
        }
    }

    for result in ["allowed", "denied"] {
        if let Some(rest) = name.strip_suffix(&format!(".shadow_{result}")) {
            *name = rest.to_owned();
            labels.push(("authz_dry_run_result", result.to_owned()));
        } else if name.ends_with(&format!("rbac.{result}")) {
            name.truncate(name.len() - result.len() - 1);
            labels.push(("authz_enforce_result", result.to_owned()));
        }
    }
}

/// Numbers about one thing.
struct Rows<'a>(&'a mut Vec<Stat>, Of);

impl Rows<'_> {
    fn counter(&mut self, name: impl Into<Cow<'static, str>>, value: u64) {
        self.0.push(Stat {
            of: self.1.clone(),
            name: name.into(),
            is_gauge: false,
            value,
            is_set: false,
        });
    }

    fn gauge(&mut self, name: impl Into<Cow<'static, str>>, value: u64) {
        self.0.push(Stat {
            of: self.1.clone(),
            name: name.into(),
            is_gauge: true,
            value,
            is_set: false,
        });
    }

    /// A gauge of which 0 says something, as that of a state.
    fn state(&mut self, name: &'static str, value: u64) {
        self.0.push(Stat {
            of: self.1.clone(),
            name: name.into(),
            is_gauge: true,
            value,
            is_set: true,
        });
    }

    fn codes(&mut self, prefix: &str, codes: &Codes, with_single: bool) {
        for (class, count) in codes.classes() {
            self.counter(format!("{prefix}_{class}xx"), count);
        }
        for (code, count) in codes.codes().filter(|_| with_single) {
            self.counter(format!("{prefix}_{code}"), count);
        }
    }

    fn cluster(&mut self, entry: &ClusterEntry, counts: &ClusterCounts) {
        let (live, totals) = (&entry.live, &entry.live.totals);
        live.look(epoch_ms(Instant::now()));
        let in_use = |resource| u64::from(live.in_use(resource));
        self.counter("upstream_rq_total", totals.requests.load(Relaxed));
        self.counter(
            "upstream_rq_completed",
            counts.codes.classes().map(|(_, count)| count).sum(),
        );

        self.codes("upstream_rq", &counts.codes, true);
        self.gauge("upstream_rq_active", in_use(Resource::Requests));
        self.counter("upstream_rq_pending_total", counts.pending.get());
        self.gauge("upstream_rq_pending_active", in_use(Resource::Pending));
        let refused = live.refused(Resource::Pending) + live.refused(Resource::Requests);
        self.counter("upstream_rq_pending_overflow", refused);
        self.counter("upstream_rq_retry", counts.retries.get());
        self.counter("upstream_rq_retry_success", counts.retry_success.get());
        self.counter(
            "upstream_rq_retry_overflow",
            live.refused(Resource::Retries),
        );

        self.counter(
            "upstream_rq_retry_limit_exceeded",
            counts.retry_limit_exceeded.get(),
        );

        let abandoned = counts.copies_abandoned.get();
        self.counter("retry_or_shadow_abandoned", abandoned);
        self.counter("upstream_rq_timeout", counts.timeout.get());
        self.counter("upstream_rq_per_try_timeout", counts.per_try_timeout.get());
        self.counter("upstream_cx_total", totals.connections.load(Relaxed));
        self.gauge("upstream_cx_active", in_use(Resource::Connections));
        self.counter(
            "upstream_cx_connect_fail",
            totals.connect_fail.load(Relaxed),
        );

        self.counter(
            "upstream_cx_connect_timeout",
            totals.connect_timeout.load(Relaxed),
        );

        self.counter("upstream_cx_overflow", live.refused(Resource::Connections));
        self.counter("ssl.handshake", totals.handshakes.load(Relaxed));
        self.counter("ssl.connection_error", totals.tls_errors.load(Relaxed));
        if let Some(outlier) = &live.outlier {
            self.gauge("outlier_detection.ejections_active", live.ejected() as u64);
            self.counter(
                "outlier_detection.ejections_overflow",
                outlier.overflow.load(Relaxed),
            );

            let mut total = 0;
            for (reason, name) in Reason::ALL {
                let (detected, enforced) = outlier.ejections(reason);
                total += enforced;
                self.counter(
                    format!("outlier_detection.ejections_detected_{name}"),
                    detected,
                );

                self.counter(
                    format!("outlier_detection.ejections_enforced_{name}"),
                    enforced,
                );
            }

            self.counter("outlier_detection.ejections_enforced_total", total);
        }

        let all = entry.endpoints.endpoints.iter().zip(&entry.hosts);
        let is_healthy = |status| matches!(status, EndpointStatus::Healthy);
        let healthy = all
            .filter(|(endpoint, live)| {
                is_healthy(endpoint.status) && live.as_ref().is_none_or(|live| !live.is_ejected())
            })
            .count();

        self.gauge("membership_total", entry.endpoints.endpoints.len() as u64);
        self.gauge("membership_healthy", healthy as u64);
    }

    fn http(&mut self, counts: &HttpCounts) {
        self.counter("downstream_rq_total", counts.requests.get());
        self.gauge("downstream_rq_active", counts.active.get());
        self.counter(
            "downstream_rq_completed",
            counts.codes.classes().map(|(_, count)| count).sum(),
        );

        self.codes("downstream_rq", &counts.codes, false);
        self.counter("downstream_cx_total", counts.connections.get());
        self.gauge("downstream_cx_active", counts.open.get());
        for (name, value) in counts.filters.values(&Counter::OF_HTTP) {
            self.counter(name, value);
        }
    }

    fn listener(&mut self, counts: &ListenerCounts) {
        self.counter("downstream_cx_total", counts.connections.get());
        self.gauge("downstream_cx_active", counts.open.get());
        self.counter("no_filter_chain_match", counts.no_chain.get());
        self.counter("ssl.handshake", counts.handshakes.get());
        self.counter("ssl.connection_error", counts.tls_errors.get());
        self.counter("ssl.fail_verify_no_cert", counts.no_certificate.get());
        self.counter("ssl.fail_verify_error", counts.bad_certificate.get());
    }

    fn process(&mut self, published: &Published, status: &Status) {
        self.gauge("control_plane.connected_state", u64::from(status.connected));
        for (type_url, (taken, refused)) in &status.updates {
            let of = meltemi_proto::type_url::short(type_url).to_lowercase();
            // Envoy counts these two where they are kept, which Istio's agent looks for.
            let of = match of.as_str() {
                "cds" => "cluster_manager.cds",
                "lds" => "listener_manager.lds",
                other => other,
            };
            self.counter(format!("{of}.update_success"), *taken);
            self.counter(format!("{of}.update_rejected"), *refused);
        }

        self.gauge(
            "listener_manager.total_listeners_active",
            published.snapshot.listeners().len() as u64,
        );

        self.gauge(
            "cluster_manager.active_clusters",
            published.clusters.len() as u64,
        );
    }
}

/// All numbers whose names the filter is found in; `used`: those that are not 0.
pub async fn stats(inspector: &Inspector, filter: Option<&Regex>, used: bool) -> Vec<Stat> {
    let counts = inspector.counts().await;
    let rows = inspector.look(move |_, published, status| gather(published, status, &counts));
    let mut rows = rows.await.unwrap_or_default();
    let common = &inspector.common;
    let mut process = Rows(&mut rows, Of::Process);

    process.gauge("server.uptime", common.since.elapsed().as_secs());
    process.gauge("server.live", u64::from(common.ready.load(Relaxed)));
    process.state("server.state", common.state().number());
    // The workers run before the first page is served.
    process.state("listener_manager.workers_started", 1);
    process.gauge(
        "server.total_connections",
        u64::try_from(common.connections.get()).unwrap_or(0),
    );

    rows.retain(|stat| {
        (!used || stat.value != 0 || stat.is_set)
            && filter.is_none_or(|filter| filter.is_match(&stat.full()))
    });
    rows.sort_by_cached_key(Stat::full);

    // Clusters that share a name in statistics count together.
    rows.dedup_by(|next, kept| {
        let is_same = next.of == kept.of && next.name == kept.name;
        if is_same {
            kept.value += next.value;
        }
        is_same
    });

    rows
}

fn gather(published: &Published, status: &Status, counts: &Copied) -> Vec<Stat> {
    let mut rows = Vec::new();
    let nothing = ClusterCounts::default();
    for (name, entry) in &published.clusters {
        let counts = counts.clusters.get(name).unwrap_or(&nothing);
        Rows(&mut rows, Of::Cluster(entry.cluster.stat_name.clone())).cluster(entry, counts);
    }

    for (prefix, counts) in &counts.http {
        Rows(&mut rows, Of::Http(prefix.clone())).http(counts);
    }

    // Two listeners of one address, as one takes the other's place, count together.
    let mut by_address: HashMap<Arc<str>, ListenerCounts> = HashMap::new();
    for listener in published.snapshot.listeners() {
        let sum = by_address
            .entry(listener_name(listener).into())
            .or_default();
        if let Some(counts) = counts.listeners.get(&listener.name) {
            sum.add(counts);
        }
    }

    for (address, counts) in by_address {
        Rows(&mut rows, Of::Listener(address)).listener(&counts);
    }
    let mut process = Rows(&mut rows, Of::Process);
    for (name, value) in counts.connections.values(&Counter::OF_CONNECTIONS) {
        process.counter(name, value);
    }
    process.process(published, status);

    rows
}

/// What authorization has counted, for Prometheus: a dry run is there to be watched.
pub async fn authorization(inspector: &Inspector) -> String {
    let is_authorization = Regex::new(r"(^|\.)rbac\.").ok();
    prometheus(&stats(inspector, is_authorization.as_ref(), true).await)
}

/// One line each.
pub fn text(rows: &[Stat]) -> String {
    rows.iter()
        .map(|stat| format!("{}: {}\n", stat.full(), stat.value))
        .collect()
}

/// `?format=json`
pub fn as_json(rows: &[Stat]) -> Value {
    let stats: Vec<Value> = rows
        .iter()
        .map(|stat| json!({ "name": stat.full(), "value": stat.value }))
        .collect();
    json!({ "stats": stats })
}

/// `?format=prometheus`
pub fn prometheus(rows: &[Stat]) -> String {
    // Those of the process itself stand among the other families already.
    let others = rows
        .iter()
        .filter(|stat| stat.of != Of::Process || !stat.name.starts_with("server."));
    let mut families: Vec<_> = others.map(|stat| (stat.family(), stat)).collect();
    families.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut out, mut last) = (String::new(), String::new());
    for ((family, labels), stat) in families {
        // Writing to a String cannot fail.
        if family != last {
            let _ = writeln!(
                out,
                "# TYPE {family} {}",
                if stat.is_gauge { "gauge" } else { "counter" }
            );
        }

        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| {
                format!(
                    "{name}=\"{}\"",
                    value.replace('\\', "\\\\").replace('"', "\\\"")
                )
            })
            .collect();

        let _ = writeln!(out, "{family}{{{}}} {}", labels.join(","), stat.value);
        last = family;
    }

    out
}

/// Of a text in Prometheus' format the families that the filter is found in; `used`: the samples
/// that are not 0.
pub fn filtered(text: &str, filter: Option<&Regex>, used: bool) -> String {
    let stays = |line: &&str| {
        let comment = line
            .strip_prefix("# ")
            .and_then(|rest| rest.split(' ').nth(1));
        let name = comment
            .or_else(|| line.split(['{', ' ']).next())
            .unwrap_or_default();
        let is_zero = comment.is_none() && line.rsplit(' ').next() == Some("0");
        filter.is_none_or(|filter| filter.is_match(name)) && !(used && is_zero)
    };

    text.lines()
        .filter(stays)
        .fold(String::new(), |mut out, line| {
            out.push_str(line);
            out.push('\n');
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(of: Of, name: &'static str, value: u64) -> Stat {
        Stat {
            of,
            name: name.into(),
            is_gauge: false,
            value,
            is_set: false,
        }
    }

    #[test]
    fn names_are_envoys() {
        let reviews: Arc<str> = "outbound|9080||reviews.default.svc.cluster.local".into();
        let rows = [
            stat(Of::Cluster(reviews.clone()), "upstream_rq_503", 2),
            stat(Of::Cluster(reviews), "upstream_rq_5xx", 2),
            stat(Of::Http("inbound_0.0.0.0_80;".into()), "rbac.denied", 1),
            stat(Of::Listener("0.0.0.0_15006".into()), "ssl.handshake", 3),
        ];

        assert_eq!(
            text(&rows),
            "cluster.outbound|9080||reviews.default.svc.cluster.local.upstream_rq_503: 2\n\
             cluster.outbound|9080||reviews.default.svc.cluster.local.upstream_rq_5xx: 2\n\
             http.inbound_0.0.0.0_80;.rbac.denied: 1\n\
             listener.0.0.0.0_15006.ssl.handshake: 3\n"
        );

        assert_eq!(
            prometheus(&rows),
            "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{cluster_name=\"outbound|9080||reviews.default.svc.cluster.local\",response_code=\"503\"} 2\n\
             # TYPE envoy_cluster_upstream_rq_xx counter\n\
             envoy_cluster_upstream_rq_xx{cluster_name=\"outbound|9080||reviews.default.svc.cluster.local\",response_code_class=\"5\"} 2\n\
             # TYPE envoy_http_rbac counter\n\
             envoy_http_rbac{http_conn_manager_prefix=\"inbound_0.0.0.0_80;\",authz_enforce_result=\"denied\"} 1\n\
             # TYPE envoy_listener_ssl_handshake counter\n\
             envoy_listener_ssl_handshake{listener_address=\"0.0.0.0_15006\"} 3\n"
        );
    }

    #[test]
    fn families_are_filtered_with_their_comments() {
        let all =
            "# HELP a Things.\n# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 0\n# TYPE b gauge\nb 0\n";
        let only = Regex::new("^a$").expect("good");
        assert_eq!(
            filtered(all, Some(&only), false),
            "# HELP a Things.\n# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 0\n"
        );

        assert_eq!(
            filtered(all, Some(&only), true),
            "# HELP a Things.\n# TYPE a counter\na{x=\"1\"} 2\n"
        );

        assert_eq!(filtered(all, None, false), all);
    }
}
