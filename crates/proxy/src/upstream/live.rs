//! What all workers share of a cluster while it serves: breakers, and for each endpoint its outlier record.
//!
//! Everything here is atomic and nothing is locked while a request is served. A cluster's record is found by name and
//! configuration hash, so it survives changes elsewhere.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a breaker counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Open connections.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests under way.
    Requests,
    /// Retries under way.
    Retries,
}

impl Resource {
    /// The threshold's name in Envoy's configuration.
    pub fn threshold(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::Pending => "max_pending_requests",
            Self::Requests => "max_requests",
            Self::Retries => "max_retries",
        }
    }
}

/// Thresholds of one cluster and priority; `u32::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thresholds {
    /// `max_connections`
    pub connections: u32,
    /// `max_pending_requests`
    pub pending: u32,
    /// `max_requests`
    pub requests: u32,
    /// `max_retries`
    pub retries: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        // Envoy's defaults for clusters that say nothing.
        Self { connections: 1024, pending: 1024, requests: 1024, retries: 3 }
    }
}

/// Counts beside thresholds.
#[derive(Debug, Default)]
struct Counts([AtomicU32; 4]);

/// A cluster as it lives.
#[derive(Debug)]
pub struct ClusterLive {
    thresholds: [Thresholds; 2],
    counts: [Counts; 2],
    outlier: Option<OutlierTerms>,
    hosts: Mutex<HashMap<SocketAddr, Arc<HostLive>>>,
    ejected: AtomicU32,
    health_generation: AtomicU64,
    next_return_ms: AtomicU64,
    /// Requests that a breaker refused.
    pub overflow: AtomicU64,
    /// Requests that reached an endpoint.
    pub requests_total: AtomicU64,
    /// Connections that failed.
    pub connect_fail: AtomicU64,
}

/// One of a breaker's places, given back on drop.
#[derive(Debug)]
pub struct Permit {
    cluster: Arc<ClusterLive>,
    high: bool,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.cluster.count(self.high, self.resource).fetch_sub(1, Relaxed);
    }
}

/// When an endpoint is ejected. Source: Envoy `OutlierDetection`; `None` enforces nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierTerms {
    /// Consecutive 5xx, local failures among them unless they are split off.
    pub consecutive_5xx: Option<u32>,
    /// Consecutive 502, 503, 504.
    pub consecutive_gateway: Option<u32>,
    /// Consecutive failures to connect, time-outs, resets; only if they are split off.
    pub consecutive_local: Option<u32>,
    /// Local failures are counted by themselves.
    pub split_local: bool,
    /// How long the first ejection lasts; the n-th lasts n times as long.
    pub base: Duration,
    /// Bound of that.
    pub max: Duration,
    /// At most this share of the endpoints, in percent; one always may.
    pub max_percent: u32,
}

/// How a request ended, for the outlier record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostResult {
    /// A response with this status.
    Status(u16),
    /// No connection, a reset or a time-out.
    LocalFailure,
}

/// An endpoint as it lives.
#[derive(Debug)]
pub struct HostLive {
    /// Its address.
    pub address: SocketAddr,
    /// Requests under way.
    pub active: AtomicU32,
    /// Requests so far.
    pub total: AtomicU64,
    /// Requests that failed.
    pub errors: AtomicU64,
    ejected_until_ms: AtomicU64,
    ejections: AtomicU32,
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
}

/// Counts one request on an endpoint for as long as it runs.
#[derive(Debug)]
pub struct ActiveRequest(Arc<HostLive>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

impl ClusterLive {
    /// A record with nothing in it yet.
    pub fn new(thresholds: [Thresholds; 2], outlier: Option<OutlierTerms>) -> Self {
        Self {
            thresholds,
            counts: Default::default(),
            outlier,
            hosts: Mutex::default(),
            ejected: AtomicU32::new(0),
            health_generation: AtomicU64::new(0),
            next_return_ms: AtomicU64::new(u64::MAX),
            overflow: AtomicU64::new(0),
            requests_total: AtomicU64::new(0),
            connect_fail: AtomicU64::new(0),
        }
    }

    fn count(&self, high: bool, resource: Resource) -> &AtomicU32 {
        &self.counts[usize::from(high)].0[resource as usize]
    }

    /// How many of a resource are in use, over both priorities.
    pub fn in_use(&self, resource: Resource) -> u32 {
        self.count(false, resource).load(Relaxed) + self.count(true, resource).load(Relaxed)
    }

    /// Takes a place, if there is one.
    pub fn admit(self: &Arc<Self>, high: bool, resource: Resource) -> Option<Permit> {
        let thresholds = &self.thresholds[usize::from(high)];
        let limit = match resource {
            Resource::Connections => thresholds.connections,
            Resource::Pending => thresholds.pending,
            Resource::Requests => thresholds.requests,
            Resource::Retries => thresholds.retries,
        };
        let count = self.count(high, resource);
        if count.fetch_add(1, Relaxed) >= limit {
            count.fetch_sub(1, Relaxed);
            self.overflow.fetch_add(1, Relaxed);
            return None;
        }
        Some(Permit { cluster: self.clone(), high, resource })
    }

    /// Takes a place that the breaker does not have.
    pub fn admit_over(self: &Arc<Self>, high: bool, resource: Resource) -> Permit {
        self.count(high, resource).fetch_add(1, Relaxed);
        Permit { cluster: self.clone(), high, resource }
    }

    /// The record of an endpoint, made if it is new. Not for the path of a request.
    pub fn host(&self, address: SocketAddr) -> Arc<HostLive> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.entry(address).or_insert_with(|| Arc::new(HostLive::new(address))).clone()
    }

    /// Forgets endpoints that are gone.
    pub fn keep_hosts(&self, keep: impl Fn(&SocketAddr) -> bool) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).retain(|address, _| keep(address));
    }

    /// Tells how a request ended; `now` counts milliseconds from [`epoch_ms`]'s origin, `endpoints` is how many there
    /// are. Says whether the endpoint is now ejected.
    pub fn report(&self, host: &HostLive, result: HostResult, now: u64, endpoints: usize) -> bool {
        let failed = match result {
            HostResult::Status(status) => status >= 500,
            HostResult::LocalFailure => true,
        };
        if failed {
            host.errors.fetch_add(1, Relaxed);
        }
        let Some(terms) = &self.outlier else { return false };
        let over = |count: &AtomicU32, failed: bool, limit: Option<u32>| {
            if !failed {
                // Most requests: read, do not write.
                if count.load(Relaxed) != 0 {
                    count.store(0, Relaxed);
                }
                return false;
            }
            let reached = count.fetch_add(1, Relaxed) + 1;
            limit.is_some_and(|limit| limit > 0 && reached >= limit)
        };
        let gateway = matches!(result, HostResult::Status(502..=504));
        let local = result == HostResult::LocalFailure;
        let eject = if terms.split_local {
            if local {
                over(&host.consecutive_local, true, terms.consecutive_local)
            } else {
                over(&host.consecutive_local, false, None);
                over(&host.consecutive_5xx, failed, terms.consecutive_5xx)
                    | over(&host.consecutive_gateway, gateway, terms.consecutive_gateway)
            }
        } else {
            // A failure of our own counts as a 503.
            over(&host.consecutive_5xx, failed, terms.consecutive_5xx)
                | over(&host.consecutive_gateway, gateway || local, terms.consecutive_gateway)
        };
        eject && self.eject(host, terms, now, endpoints)
    }

    fn eject(&self, host: &HostLive, terms: &OutlierTerms, now: u64, endpoints: usize) -> bool {
        if host.is_ejected(now) {
            return false;
        }
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let ejected = hosts.values().filter(|host| host.is_ejected(now)).count();
        drop(hosts);
        // Envoy lets the first one go whatever the share is.
        if ejected > 0 && ejected * 100 >= terms.max_percent as usize * endpoints.max(1) {
            return false;
        }
        for count in [&host.consecutive_5xx, &host.consecutive_gateway, &host.consecutive_local] {
            count.store(0, Relaxed);
        }
        let times = host.ejections.fetch_add(1, Relaxed) + 1;
        let length = terms.base.saturating_mul(times).min(terms.max.max(terms.base));
        let until = now + u64::try_from(length.as_millis()).unwrap_or(u64::MAX / 2);
        host.ejected_until_ms.store(until, Relaxed);
        self.next_return_ms.fetch_min(until, Relaxed);
        self.ejected.fetch_add(1, Relaxed);
        self.health_generation.fetch_add(1, Relaxed);
        true
    }

    /// Changes whenever an endpoint is ejected or comes back, so that balancers know when to be built anew.
    pub fn health_generation(&self, now: u64) -> u64 {
        if self.next_return_ms.load(Relaxed) <= now {
            let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            let next =
                hosts.values().map(|host| host.ejected_until_ms.load(Relaxed)).filter(|until| *until > now).min();
            self.next_return_ms.store(next.unwrap_or(u64::MAX), Relaxed);
            self.health_generation.fetch_add(1, Relaxed);
        }
        self.health_generation.load(Relaxed)
    }

    /// Ejections so far.
    pub fn ejections(&self) -> u32 {
        self.ejected.load(Relaxed)
    }
}

impl HostLive {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            active: AtomicU32::new(0),
            total: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            ejected_until_ms: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            consecutive_5xx: AtomicU32::new(0),
            consecutive_gateway: AtomicU32::new(0),
            consecutive_local: AtomicU32::new(0),
        }
    }

    /// Whether it is out of service at this moment.
    pub fn is_ejected(&self, now: u64) -> bool {
        self.ejected_until_ms.load(Relaxed) > now
    }

    /// Counts a request that starts.
    pub fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.active.fetch_add(1, Relaxed);
        self.total.fetch_add(1, Relaxed);
        ActiveRequest(self.clone())
    }
}

/// Milliseconds since the process began to look.
pub fn epoch_ms(now: Instant) -> u64 {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let origin = *ORIGIN.get_or_init(|| now);
    u64::try_from(now.saturating_duration_since(origin).as_millis()).unwrap_or(u64::MAX) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 80))
    }

    fn terms() -> OutlierTerms {
        OutlierTerms {
            consecutive_5xx: Some(3),
            consecutive_gateway: None,
            consecutive_local: Some(2),
            split_local: false,
            base: Duration::from_secs(30),
            max: Duration::from_secs(300),
            max_percent: 50,
        }
    }

    #[test]
    fn a_breaker_counts_what_is_open() {
        let thresholds = Thresholds { requests: 2, ..Thresholds::default() };
        let cluster = Arc::new(ClusterLive::new([thresholds; 2], None));
        let first = cluster.admit(false, Resource::Requests);
        let second = cluster.admit(false, Resource::Requests);
        assert!(first.is_some() && second.is_some());
        assert!(cluster.admit(false, Resource::Requests).is_none());
        assert!(cluster.admit(true, Resource::Requests).is_some(), "the other priority has a breaker of its own");
        drop(first);
        assert!(cluster.admit(false, Resource::Requests).is_some());
    }

    #[test]
    fn consecutive_errors_eject_for_longer_each_time_and_never_too_many() {
        let cluster = ClusterLive::new([Thresholds::default(); 2], Some(terms()));
        let hosts: Vec<_> = (0..2).map(|n| cluster.host(address(n))).collect();
        let fail = |host: &HostLive, now| (0..3).any(|_| cluster.report(host, HostResult::Status(500), now, 2));
        assert!(!cluster.report(&hosts[0], HostResult::Status(500), 1, 2));
        assert!(!cluster.report(&hosts[0], HostResult::Status(200), 1, 2));
        assert!(fail(&hosts[0], 1));
        assert!(hosts[0].is_ejected(30_000) && !hosts[0].is_ejected(30_002));
        assert!(!fail(&hosts[1], 1), "half of the endpoints are out already");
        assert!(fail(&hosts[0], 40_000));
        assert!(hosts[0].is_ejected(99_000), "the second time lasts twice as long");
    }

    #[test]
    fn local_failures_can_be_counted_by_themselves() {
        let cluster = ClusterLive::new([Thresholds::default(); 2], Some(OutlierTerms { split_local: true, ..terms() }));
        let host = cluster.host(address(1));
        assert!(!cluster.report(&host, HostResult::LocalFailure, 1, 1));
        assert!(!cluster.report(&host, HostResult::Status(500), 1, 1), "an answer ends the row of local failures");
        assert!(!cluster.report(&host, HostResult::LocalFailure, 1, 1));
        assert!(cluster.report(&host, HostResult::LocalFailure, 1, 1));
    }
}
