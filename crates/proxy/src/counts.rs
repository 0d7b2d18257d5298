//! What Envoy counts of clusters, connection managers and listeners: one worker's share, plain
//! cells that its own thread adds to. Whoever reads them asks the worker for a copy, so that a
//! request costs no atomic and no lookup.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use meltemi_filters::counter::Tally;
use meltemi_proxy_config::Address;
use meltemi_proxy_config::listener::{Listener, Terminal};

use crate::causes::TlsReason;

/// A number that one thread changes.
#[derive(Debug, Clone, Default)]
pub struct Count(Cell<u64>);

impl Count {
    /// One more.
    pub fn inc(&self) {
        self.0.set(self.0.get().wrapping_add(1));
    }

    /// One less.
    pub fn dec(&self) {
        self.0.set(self.0.get().wrapping_sub(1));
    }

    /// As it stands.
    pub fn get(&self) -> u64 {
        self.0.get()
    }

    fn add(&self, other: &Self) {
        self.0.set(self.0.get().wrapping_add(other.get()));
    }
}

/// Statuses that are counted one by one; those that come later count in their class alone.
const CODES: usize = 24;

/// Responses by status.
#[derive(Debug, Clone, Default)]
pub struct Codes {
    classes: [Count; 5],
    single: [(Cell<u16>, Count); CODES],
}

impl Codes {
    /// A response was sent.
    pub fn note(&self, status: u16) {
        let Some(class) = usize::from(status / 100)
            .checked_sub(1)
            .and_then(|class| self.classes.get(class))
        else {
            return;
        };
        class.inc();
        self.single(status, |count| count.inc());
    }

    fn single(&self, status: u16, act: impl FnOnce(&Count)) {
        let free = |code: &Cell<u16>| code.get() == 0 || code.get() == status;
        if let Some((code, count)) = self.single.iter().find(|(code, _)| free(code)) {
            code.set(status);
            act(count);
        }
    }

    /// Classes from 1xx to 5xx with their counts.
    pub fn classes(&self) -> impl Iterator<Item = (usize, u64)> {
        (1..).zip(self.classes.iter().map(Count::get))
    }

    /// Statuses that occurred.
    pub fn codes(&self) -> impl Iterator<Item = (u16, u64)> {
        self.single
            .iter()
            .map(|(code, count)| (code.get(), count.get()))
            .filter(|(code, _)| *code != 0)
    }

    fn add(&self, other: &Self) {
        self.classes
            .iter()
            .zip(&other.classes)
            .for_each(|(one, other)| one.add(other));
        for (code, count) in other.single.iter().filter(|(code, _)| code.get() != 0) {
            self.single(code.get(), |own| own.add(count));
        }
    }
}

/// Of a cluster; survives changes of its configuration.
#[derive(Debug, Clone, Default)]
pub struct ClusterCounts {
    /// Responses that clients got, from its endpoints or in their place.
    pub codes: Codes,
    /// Requests that found no connection and waited for one.
    pub pending: Count,
    /// Second and further attempts.
    pub retries: Count,
    /// Requests that a further attempt helped.
    pub retry_success: Count,
    /// Requests that wanted another attempt after the last.
    pub retry_limit_exceeded: Count,
    /// Requests whose body was too long to be kept for another attempt or a mirror.
    pub copies_abandoned: Count,
    /// Requests that took too long.
    pub timeout: Count,
    /// Attempts that took too long.
    pub per_try_timeout: Count,
}

/// Of all connection managers of one statistics prefix.
#[derive(Debug, Clone, Default)]
pub struct HttpCounts {
    pub requests: Count,
    /// Requests under way.
    pub active: Count,
    /// Responses.
    pub codes: Codes,
    pub connections: Count,
    /// Open connections.
    pub open: Count,
    /// What filters count.
    pub filters: Tally,
}

/// Of a listener.
#[derive(Debug, Clone, Default)]
pub struct ListenerCounts {
    pub connections: Count,
    /// Open connections.
    pub open: Count,
    /// Connections that no filter chain takes.
    pub no_chain: Count,
    /// TLS handshakes that came about.
    pub handshakes: Count,
    /// Those that failed, for other reasons than the certificate.
    pub tls_errors: Count,
    /// Those that failed since the client has no certificate.
    pub no_certificate: Count,
    /// Those that failed since its certificate is not accepted.
    pub bad_certificate: Count,
}

impl ListenerCounts {
    pub fn failed_handshake(&self, reason: TlsReason) {
        match reason {
            TlsReason::NoCertificate => self.no_certificate.inc(),
            TlsReason::Certificate => self.bad_certificate.inc(),
            _ => self.tls_errors.inc(),
        }
    }
}

macro_rules! sum {
    ($type:ident: $($field:ident),+) => {
        impl $type {
            /// Adds another worker's share.
            pub fn add(&self, other: &Self) {
                $(self.$field.add(&other.$field);)+
            }
        }
    };
}

sum!(ClusterCounts: codes, pending, retries, retry_success, retry_limit_exceeded, copies_abandoned, timeout, per_try_timeout);
sum!(HttpCounts: requests, active, codes, connections, open, filters);
sum!(ListenerCounts: connections, open, no_chain, handshakes, tls_errors, no_certificate, bad_certificate);

/// A connection that is open, as its listener and its connection manager count it.
#[derive(Debug)]
pub struct OpenConnection(Rc<ListenerCounts>, Option<Rc<HttpCounts>>);

impl OpenConnection {
    /// Counts it.
    pub fn of(listener: &Rc<ListenerCounts>, http: Option<&Rc<HttpCounts>>) -> Self {
        listener.open.inc();
        if let Some(http) = http {
            http.connections.inc();
            http.open.inc();
        }
        Self(listener.clone(), http.cloned())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.dec();
        if let Some(http) = &self.1 {
            http.open.dec();
        }
    }
}

/// A request that is under way, as its connection manager counts it.
#[derive(Debug)]
pub struct ActiveRequest(Rc<HttpCounts>);

impl ActiveRequest {
    /// Counts it.
    pub fn of(counts: Rc<HttpCounts>) -> Self {
        counts.requests.inc();
        counts.active.inc();
        Self(counts)
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.dec();
    }
}

/// A worker's counters of listeners and connection managers, by name.
#[derive(Debug, Default)]
pub struct Known {
    http: RefCell<HashMap<Arc<str>, Rc<HttpCounts>>>,
    listeners: RefCell<HashMap<Arc<str>, Rc<ListenerCounts>>>,
    /// What network filters count.
    pub connections: Tally,
}

impl Known {
    /// The counts under a statistics prefix.
    pub fn http(&self, prefix: &Arc<str>) -> Rc<HttpCounts> {
        self.http
            .borrow_mut()
            .entry(prefix.clone())
            .or_default()
            .clone()
    }

    /// The counts of a listener.
    pub fn listener(&self, name: &Arc<str>) -> Rc<ListenerCounts> {
        self.listeners
            .borrow_mut()
            .entry(name.clone())
            .or_default()
            .clone()
    }

    /// Forgets what no listener names and no connection uses any more.
    pub fn keep<'a>(&self, listeners: impl Iterator<Item = &'a Arc<Listener>>) {
        let (mut names, mut prefixes) = (
            std::collections::HashSet::new(),
            std::collections::HashSet::new(),
        );

        for listener in listeners {
            names.insert(listener.name.clone());
            prefixes.extend(
                listener
                    .chains
                    .iter()
                    .filter_map(|chain| match &chain.terminal {
                        Terminal::Http(http) => Some(http.stat_prefix.clone()),
                        Terminal::Tcp(_) => None,
                    }),
            );
        }

        self.listeners
            .borrow_mut()
            .retain(|name, counts| names.contains(name) || Rc::strong_count(counts) > 1);
        self.http
            .borrow_mut()
            .retain(|prefix, counts| prefixes.contains(prefix) || Rc::strong_count(counts) > 1);
    }

    /// A copy, beside that of the clusters.
    pub fn copy(&self, clusters: HashMap<Arc<str>, ClusterCounts>) -> Copied {
        fn all<T: Clone>(of: &RefCell<HashMap<Arc<str>, Rc<T>>>) -> HashMap<Arc<str>, T> {
            of.borrow()
                .iter()
                .map(|(name, counts)| (name.clone(), (**counts).clone()))
                .collect()
        }

        Copied {
            clusters,
            http: all(&self.http),
            listeners: all(&self.listeners),
            connections: self.connections.clone(),
        }
    }
}

/// What a worker has counted.
#[derive(Debug, Default)]
pub struct Copied {
    /// By cluster.
    pub clusters: HashMap<Arc<str>, ClusterCounts>,
    /// By statistics prefix.
    pub http: HashMap<Arc<str>, HttpCounts>,
    /// By listener.
    pub listeners: HashMap<Arc<str>, ListenerCounts>,
    /// See [`Known::connections`].
    pub connections: Tally,
}

impl Copied {
    /// Adds another worker's share.
    pub fn add(&mut self, other: Self) {
        for (name, counts) in other.clusters {
            self.clusters.entry(name).or_default().add(&counts);
        }
        for (name, counts) in other.http {
            self.http.entry(name).or_default().add(&counts);
        }
        for (name, counts) in other.listeners {
            self.listeners.entry(name).or_default().add(&counts);
        }
        self.connections.add(&other.connections);
    }
}

/// A listener as Envoy's statistics name it: by its address, without colons.
pub fn listener_name(listener: &Listener) -> String {
    match &listener.address {
        Address::Socket(SocketAddr::V6(address)) => {
            let ip = address.ip().to_string().replace(':', "_");
            format!("[{ip}]_{}", address.port())
        }
        address => address.to_string().replace(':', "_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_count_by_themselves_and_in_their_class() {
        let (one, other) = (Codes::default(), Codes::default());
        [200, 200, 503]
            .into_iter()
            .for_each(|status| one.note(status));
        [503, 404, 0, 999]
            .into_iter()
            .for_each(|status| other.note(status));
        one.add(&other);
        assert_eq!(
            one.classes().collect::<Vec<_>>(),
            [(1, 0), (2, 2), (3, 0), (4, 1), (5, 2)]
        );

        assert_eq!(
            one.codes().collect::<Vec<_>>(),
            [(200, 2), (503, 2), (404, 1)]
        );
    }

    #[test]
    fn random_statuses_fill_no_more_than_there_is() {
        let codes = Codes::default();
        (100..600).for_each(|status| codes.note(status));
        assert_eq!(codes.codes().count(), CODES);
        assert!(codes.classes().all(|(_, count)| count == 100));
    }
}
