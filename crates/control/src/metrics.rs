//! The control plane's own metrics under Istio's names, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use meltemi_proto::type_url::{
    CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, NAME_TABLE, ROUTE, SECRET,
};

/// Types with a label of their own; all others share `other`, so that a client cannot make labels.
const TYPES: [(&str, &str); 7] = [
    (CLUSTER, "cds"),
    (ENDPOINT, "eds"),
    (LISTENER, "lds"),
    (ROUTE, "rds"),
    (SECRET, "sds"),
    (EXTENSION_CONFIG, "ecds"),
    (NAME_TABLE, "nds"),
];

/// Istio's buckets for delays, in seconds, with finer ones below: a change takes milliseconds here.
const DELAYS: &[f64] = &[
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0,
];
/// Istio's buckets for sizes, in bytes.
const SIZES: &[f64] = &[
    1.0,
    10_000.0,
    1_000_000.0,
    4_000_000.0,
    10_000_000.0,
    40_000_000.0,
];

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One counter per type of resource.
#[derive(Default)]
pub(crate) struct PerType([Counter; TYPES.len() + 1]);

impl PerType {
    pub(crate) fn of(&self, type_url: &str) -> &Counter {
        &self.0[TYPES
            .iter()
            .position(|(url, _)| *url == type_url)
            .unwrap_or(TYPES.len())]
    }

    fn write(&self, out: &mut String, name: &str) {
        for (counter, label) in self
            .0
            .iter()
            .zip(TYPES.iter().map(|(_, label)| *label).chain(["other"]))
        {
            _ = writeln!(out, "{name}{{type=\"{label}\"}} {}", counter.get());
        }
    }
}

/// A distribution; any thread records.
pub(crate) struct Histogram {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    /// In millionths, so that it can be added atomically.
    sum_micro: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_micro: AtomicU64::new(0),
        }
    }

    pub(crate) fn record(&self, value: f64) {
        let bucket = self
            .bounds
            .iter()
            .position(|bound| value <= *bound)
            .unwrap_or(self.bounds.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_micro.fetch_add((value * 1e6) as u64, Relaxed);
    }

    pub(crate) fn time(&self, elapsed: Duration) {
        self.record(elapsed.as_secs_f64());
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut total = 0;
        for (count, bound) in self.counts.iter().zip(
            self.bounds
                .iter()
                .map(f64::to_string)
                .chain(["+Inf".to_owned()]),
        ) {
            total += count.load(Relaxed);
            _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }

        _ = writeln!(
            out,
            "{name}_sum {}\n{name}_count {total}",
            self.sum_micro.load(Relaxed) as f64 / 1e6
        );
    }
}

pub(crate) struct Metrics {
    started: Instant,
    pub(crate) pushes: PerType,
    pub(crate) rejects: PerType,
    pub(crate) triggers_config: Counter,
    pub(crate) triggers_endpoint: Counter,
    pub(crate) triggers_proxy: Counter,
    pub(crate) translation_failures: Counter,
    pub(crate) convergence: Histogram,
    pub(crate) queue: Histogram,
    pub(crate) push_time: Histogram,
    pub(crate) sizes: Histogram,
    pub(crate) csr_count: Counter,
    pub(crate) csr_unauthenticated: Counter,
    pub(crate) csr_issued: Counter,
    pub(crate) csr_refused: Counter,
    pub(crate) validated: Counter,
    pub(crate) invalid: Counter,
}

/// Gauges that are computed at the time of a scrape.
#[derive(Default)]
pub(crate) struct Gauges {
    pub(crate) connected: usize,
    pub(crate) services: usize,
    pub(crate) virtual_services: usize,
    pub(crate) objects: usize,
    /// Proxies that refuse something now, per type.
    pub(crate) rejecting: Vec<(&'static str, usize)>,
    pub(crate) cache_entries: usize,
    pub(crate) cache_hits: u64,
    pub(crate) cache_misses: u64,
    pub(crate) root_expiry_seconds: u64,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            pushes: PerType::default(),
            rejects: PerType::default(),
            triggers_config: Counter::default(),
            triggers_endpoint: Counter::default(),
            triggers_proxy: Counter::default(),
            translation_failures: Counter::default(),
            convergence: Histogram::new(DELAYS),
            queue: Histogram::new(DELAYS),
            push_time: Histogram::new(DELAYS),
            sizes: Histogram::new(SIZES),
            csr_count: Counter::default(),
            csr_unauthenticated: Counter::default(),
            csr_issued: Counter::default(),
            csr_refused: Counter::default(),
            validated: Counter::default(),
            invalid: Counter::default(),
        }
    }

    pub(crate) fn encode(&self, gauges: &Gauges) -> String {
        let out = &mut String::with_capacity(8192);
        head(out, "pilot_info", "gauge", "Version of the control plane.");
        _ = writeln!(
            out,
            "pilot_info{{version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );

        gauge(
            out,
            "istiod_uptime_seconds",
            "Seconds since the start.",
            self.started.elapsed().as_secs(),
        );

        gauge(out, "pilot_xds", "Connected proxies.", gauges.connected);
        head(out, "pilot_xds_pushes", "counter", "Responses sent.");
        self.pushes.write(out, "pilot_xds_pushes");
        head(
            out,
            "pilot_total_xds_rejects",
            "counter",
            "Responses that a proxy refused.",
        );

        self.rejects.write(out, "pilot_total_xds_rejects");
        for (label, proxies) in &gauges.rejecting {
            gauge(
                out,
                &format!("pilot_xds_{label}_reject"),
                "Proxies that refuse something now.",
                proxies,
            );
        }

        head(out, "pilot_push_triggers", "counter", "What made pushes.");
        for (label, counter) in [
            ("config", &self.triggers_config),
            ("endpoint", &self.triggers_endpoint),
            ("proxyrequest", &self.triggers_proxy),
        ] {
            _ = writeln!(
                out,
                "pilot_push_triggers{{type=\"{label}\"}} {}",
                counter.get()
            );
        }

        self.convergence.write(
            out,
            "pilot_proxy_convergence_time",
            "Seconds from a change to a response on its way.",
        );

        self.queue.write(
            out,
            "pilot_proxy_queue_time",
            "Seconds that a proxy waits for its translation.",
        );

        self.push_time.write(
            out,
            "pilot_xds_push_time",
            "Seconds that a translation takes.",
        );

        self.sizes
            .write(out, "pilot_xds_config_size_bytes", "Bytes of a response.");
        counter(
            out,
            "meltemi_translation_failures",
            "Translations that broke off; the proxy keeps what it has.",
            &self.translation_failures,
        );

        gauge(out, "pilot_services", "Services known.", gauges.services);
        gauge(
            out,
            "pilot_virt_services",
            "Virtual services known.",
            gauges.virtual_services,
        );

        gauge(
            out,
            "meltemi_objects",
            "Configuration objects in force.",
            gauges.objects,
        );

        counter(
            out,
            "galley_validation_passed",
            "Applied objects that were valid.",
            &self.validated,
        );

        counter(
            out,
            "galley_validation_failed",
            "Applied objects that were refused.",
            &self.invalid,
        );

        gauge(
            out,
            "xds_cache_size",
            "Built resources that proxies share.",
            gauges.cache_entries,
        );

        head(
            out,
            "xds_cache_reads",
            "counter",
            "Look-ups of built resources.",
        );

        _ = writeln!(
            out,
            "xds_cache_reads{{type=\"hit\"}} {}\nxds_cache_reads{{type=\"miss\"}} {}",
            gauges.cache_hits, gauges.cache_misses
        );

        counter(
            out,
            "citadel_server_csr_count",
            "Certificate requests.",
            &self.csr_count,
        );

        counter(
            out,
            "citadel_server_authentication_failure_count",
            "Certificate requests without proof.",
            &self.csr_unauthenticated,
        );

        counter(
            out,
            "citadel_server_success_cert_issuance_count",
            "Certificates issued.",
            &self.csr_issued,
        );

        counter(
            out,
            "citadel_server_csr_sign_err_count",
            "Certificate requests refused.",
            &self.csr_refused,
        );

        gauge(
            out,
            "citadel_server_root_cert_expiry_timestamp",
            "End of the issuing certificate, seconds since 1970.",
            gauges.root_expiry_seconds,
        );

        std::mem::take(out)
    }
}

/// The label of a type that has one of the four gauges of rejecting proxies.
pub(crate) fn reject_label(type_url: &str) -> Option<&'static str> {
    TYPES
        .iter()
        .take(4)
        .find(|(url, _)| *url == type_url)
        .map(|(_, label)| *label)
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn gauge(out: &mut String, name: &str, help: &str, value: impl std::fmt::Display) {
    head(out, name, "gauge", help);
    _ = writeln!(out, "{name} {value}");
}

fn counter(out: &mut String, name: &str, help: &str, counter: &Counter) {
    head(out, name, "counter", help);
    _ = writeln!(out, "{name} {}", counter.get());
}
