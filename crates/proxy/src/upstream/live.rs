//! What all workers share of a cluster while it serves: breakers, and of each endpoint what is
//! under way and how it went.
//!
//! Everything here is atomic and nothing is locked while a request is served. A cluster keeps its
//! record for as long as its configuration stays the same; a new configuration takes over the
//! totals.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::connect::{DialError, Dialled};
use super::outlier::{HostResult, Outlier, Record};
use crate::io::Stream;

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
        Self {
            connections: 1024,
            pending: 1024,
            requests: 1024,
            retries: 3,
        }
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
    /// Outlier detection.
    pub outlier: Option<Outlier>,
    hosts: Mutex<HashMap<SocketAddr, Arc<HostLive>>>,
    health_generation: AtomicU64,
    /// Counts that survive changes of the configuration.
    pub totals: Arc<Totals>,
}

/// What has happened so far in a cluster of this name.
#[derive(Debug, Default)]
pub struct Totals {
    refused: [AtomicU64; 4],
    /// Requests that reached an endpoint.
    pub requests: AtomicU64,
    /// Connections that were begun.
    pub connections: AtomicU64,
    /// Connections that failed.
    pub connect_fail: AtomicU64,
    /// Those of them that took too long.
    pub connect_timeout: AtomicU64,
    /// TLS handshakes that came about.
    pub handshakes: AtomicU64,
    /// TLS handshakes that failed.
    pub tls_errors: AtomicU64,
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
        self.cluster
            .count(self.high, self.resource)
            .fetch_sub(1, Relaxed);
    }
}

/// An endpoint as it lives.
#[derive(Debug)]
pub struct HostLive {
    pub address: SocketAddr,
    /// Requests under way.
    pub active: AtomicU32,
    /// Requests so far.
    pub total: AtomicU64,
    /// Requests that failed.
    pub errors: AtomicU64,
    outlier: Record,
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
    pub fn new(thresholds: [Thresholds; 2], outlier: Option<Outlier>) -> Self {
        Self {
            thresholds,
            counts: Default::default(),
            outlier,
            hosts: Mutex::default(),
            health_generation: AtomicU64::new(0),
            totals: Arc::default(),
        }
    }

    /// Counts on from where an earlier configuration of the cluster stands.
    pub fn after(self, before: &Self) -> Self {
        Self {
            totals: before.totals.clone(),
            ..self
        }
    }

    /// A connection was begun, and came to this.
    pub fn connected(&self, result: &Result<Dialled, DialError>) {
        let totals = &self.totals;
        totals.connections.fetch_add(1, Relaxed);
        match result {
            Ok(dialled) if matches!(dialled.stream, Stream::Tls(_)) => {
                _ = totals.handshakes.fetch_add(1, Relaxed)
            }
            Ok(_) => {}
            Err(error) => {
                totals.connect_fail.fetch_add(1, Relaxed);
                match error {
                    DialError::Timeout => _ = totals.connect_timeout.fetch_add(1, Relaxed),
                    DialError::Tls(_) => _ = totals.tls_errors.fetch_add(1, Relaxed),
                    DialError::Connect(_) | DialError::Unready(_) => {}
                }
            }
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
            return self.refuse(resource);
        }

        Some(Permit {
            cluster: self.clone(),
            high,
            resource,
        })
    }

    /// Counts a refusal.
    pub fn refuse(&self, resource: Resource) -> Option<Permit> {
        self.totals.refused[resource as usize].fetch_add(1, Relaxed);
        None
    }

    /// How often a breaker had no place. Who wanted a connection then may have waited for another
    /// one.
    pub fn refused(&self, resource: Resource) -> u64 {
        self.totals.refused[resource as usize].load(Relaxed)
    }

    /// Takes a place that the breaker does not have.
    pub fn admit_over(self: &Arc<Self>, high: bool, resource: Resource) -> Permit {
        self.count(high, resource).fetch_add(1, Relaxed);
        Permit {
            cluster: self.clone(),
            high,
            resource,
        }
    }

    /// The records of all endpoints, locked.
    pub(super) fn hosts(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<HostLive>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of an endpoint, made if it is new. Not for the path of a request.
    pub fn host(&self, address: SocketAddr) -> Arc<HostLive> {
        self.hosts()
            .entry(address)
            .or_insert_with(|| Arc::new(HostLive::new(address)))
            .clone()
    }

    /// Forgets endpoints that are gone.
    pub fn keep_hosts(&self, keep: impl Fn(&SocketAddr) -> bool) {
        self.hosts().retain(|address, _| keep(address));
    }

    /// Forgets endpoints that only this table still holds.
    pub fn forget_unused_hosts(&self) {
        // Others take theirs from here alone, so a count of one stays one while this is locked.
        self.hosts().retain(|_, host| Arc::strong_count(host) > 1);
    }

    /// How many endpoints outlier detection holds out of service.
    pub fn ejected(&self) -> usize {
        self.hosts()
            .values()
            .filter(|host| host.is_ejected())
            .count()
    }

    /// Tells how a request ended; `now` counts milliseconds from [`epoch_ms`]'s origin.
    pub fn report(&self, host: &HostLive, result: HostResult, now: u64) {
        if !matches!(result, HostResult::Status(..500)) {
            host.errors.fetch_add(1, Relaxed);
        }
        let Some(outlier) = &self.outlier else { return };
        for reason in outlier.note(&host.outlier, result).into_iter().flatten() {
            let hosts = self.hosts();
            if outlier.eject(
                &host.outlier,
                reason,
                now,
                hosts.values().map(|host| &host.outlier),
            ) {
                self.health_generation.fetch_add(1, Relaxed);
            }
        }
    }

    /// Changes whenever an endpoint is ejected or comes back, so that balancers know when to be
    /// built anew.
    pub fn health_generation(&self, now: u64) -> u64 {
        self.look(now);
        self.health_generation.load(Relaxed)
    }

    /// What outlier detection does once an interval, if that has passed.
    pub fn look(&self, now: u64) {
        if let Some(outlier) = self.outlier.as_ref().filter(|outlier| outlier.is_due(now)) {
            let hosts = self.hosts();
            if outlier.look(now, hosts.values().map(|host| &host.outlier)) {
                self.health_generation.fetch_add(1, Relaxed);
            }
        }
    }
}

impl HostLive {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            active: AtomicU32::new(0),
            total: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            outlier: Record::default(),
        }
    }

    /// Whether outlier detection holds it out of service.
    pub fn is_ejected(&self) -> bool {
        self.outlier.is_ejected()
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

    #[test]
    fn a_breaker_counts_what_is_open() {
        let thresholds = Thresholds {
            requests: 2,
            ..Thresholds::default()
        };

        let cluster = Arc::new(ClusterLive::new([thresholds; 2], None));
        let first = cluster.admit(false, Resource::Requests);
        let second = cluster.admit(false, Resource::Requests);

        assert!(first.is_some() && second.is_some());
        assert!(cluster.admit(false, Resource::Requests).is_none());
        assert_eq!(
            (
                cluster.refused(Resource::Requests),
                cluster.refused(Resource::Pending)
            ),
            (1, 0)
        );

        assert!(
            cluster.admit(true, Resource::Requests).is_some(),
            "the other priority has a breaker of its own"
        );

        drop(first);
        assert!(cluster.admit(false, Resource::Requests).is_some());
    }
}
