//! A downstream connection as its worker knows it, and the configuration that its next request runs
//! under.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meltemi_filters::{Cause, ConnInfo, TlsPeer};
use meltemi_proxy_config::http::{ClientCertParts, HttpConnectionManager, RouteSource};
use meltemi_proxy_config::listener::{FilterChain, Listener, Terminal};
use meltemi_proxy_config::route::RouteTable;
use meltemi_tls::{XfccFields, XfccPeer};
use tokio::sync::Notify;

use crate::counts::{HttpCounts, Known};

/// Why a connection is asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainReason {
    /// Its filter chain is gone, or speaks on terms that it does not meet.
    ChainChanged,
    /// Network authorization would refuse it now; the policy, if one denies.
    Forbidden(Option<Arc<str>>),
    /// The listener or the proxy drains.
    Draining,
}

impl DrainReason {
    /// As a cause in logs, of a connection that this chain serves.
    pub fn cause(&self, chain: &Arc<str>) -> Cause {
        match self {
            Self::ChainChanged => Cause::Drain("filter chain changed", chain.clone()),
            Self::Forbidden(policy) => Cause::Policy(policy.clone()),
            Self::Draining => Cause::Drain("draining", chain.clone()),
        }
    }
}

/// What a request runs under: one version of a filter chain, with its routes.
#[derive(Debug)]
pub struct ChainView {
    /// The worker's configuration that this was looked up in.
    pub generation: u64,
    pub listener: Arc<Listener>,
    pub chain: Arc<FilterChain>,
    /// The chain's HTTP settings, if it serves HTTP.
    pub http: Option<Arc<HttpConnectionManager>>,
    /// Its routes; `None` while a named table has not arrived.
    pub routes: Option<Arc<RouteTable>>,
    /// Counters under the statistics prefix of the chain's HTTP settings.
    pub counts: Option<Rc<HttpCounts>>,
}

/// A connection.
#[derive(Debug)]
pub struct Downstream {
    /// Unique in the process.
    pub id: u64,
    /// Addresses, sniffed facts, the peer's identity.
    pub info: ConnInfo,
    /// The chain that serves it.
    pub chain: Arc<str>,
    /// When it was accepted.
    pub since: Instant,
    /// Requests so far.
    pub requests: Cell<u64>,
    principal: Option<Arc<str>>,
    own_principal: Option<Arc<str>>,
    /// The element of `x-forwarded-client-cert`, and the settings that it was made with.
    xfcc: RefCell<Option<(ClientCertParts, Rc<str>)>>,
    view: RefCell<Rc<ChainView>>,
    /// Why it is asked to end, and since when.
    drain: RefCell<Option<(DrainReason, Instant)>>,
    notify: Notify,
}

impl Downstream {
    /// A connection that a chain has just taken.
    pub fn new(id: u64, info: ConnInfo, view: Rc<ChainView>) -> Self {
        let principal = info.peer_principal().map(Arc::from);
        let own = info.tls.as_ref().and_then(|tls| tls.local_uri_sans.first());
        let own_principal = own
            .and_then(|uri| uri.strip_prefix("spiffe://"))
            .map(Arc::from);

        Self {
            principal,
            own_principal,
            xfcc: RefCell::default(),
            id,
            info,
            chain: view.chain.name.clone(),
            since: Instant::now(),
            requests: Cell::new(0),
            view: RefCell::new(view),
            drain: RefCell::default(),
            notify: Notify::new(),
        }
    }

    /// The version of the chain that the last request ran under; see `Worker::view_of` for the
    /// next one's.
    pub fn last_view(&self) -> Rc<ChainView> {
        self.view.borrow().clone()
    }

    /// Sets the version of the chain that later requests run under.
    pub fn set_view(&self, view: Rc<ChainView>) {
        self.view.replace(view);
    }

    /// Who the peer proved to be, without the scheme.
    pub fn peer_principal(&self) -> Option<Arc<str>> {
        self.principal.clone()
    }

    /// Who we proved to be.
    pub fn own_principal(&self) -> Option<Arc<str>> {
        self.own_principal.clone()
    }

    /// This connection's element of `x-forwarded-client-cert`. It is made once, and again only when
    /// a newer configuration wants other parts in it.
    pub fn xfcc(&self, parts: ClientCertParts, tls: &TlsPeer) -> Rc<str> {
        if let Some((made_with, element)) = &*self.xfcc.borrow()
            && *made_with == parts
        {
            return element.clone();
        }

        let fields = XfccFields {
            subject: parts.subject,
            uri: parts.uri,
            dns: parts.dns,
        };

        let own = tls.local_uri_sans.first().map(String::as_str);
        let peer = XfccPeer {
            sha256: &tls.fingerprint,
            subject: &tls.subject,
            uri_sans: &tls.uri_sans,
            dns_sans: &tls.dns_sans,
        };

        let element: Rc<str> = meltemi_tls::xfcc_element(own, peer, fields).into();
        *self.xfcc.borrow_mut() = Some((parts, element.clone()));

        element
    }

    /// Asks the connection to end in order; the first reason stays, unless it was no more than that
    /// the proxy drains.
    pub fn ask_to_drain(&self, reason: DrainReason) {
        let mut drain = self.drain.borrow_mut();
        if drain
            .as_ref()
            .is_none_or(|(first, _)| *first == DrainReason::Draining && reason != *first)
        {
            *drain = Some((reason, Instant::now()));
        }
        drop(drain);
        self.notify.notify_waiters();
    }

    /// Whether it was asked to end.
    pub fn drain_reason(&self) -> Option<DrainReason> {
        self.drain
            .borrow()
            .as_ref()
            .map(|(reason, _)| reason.clone())
    }

    /// Whether it was asked to end; cheap.
    pub fn is_draining(&self) -> bool {
        self.drain.borrow().is_some()
    }

    /// When it must have ended, if the newest configuration would not accept it and it has so long
    /// for it. What only drains has all the time that the process has.
    pub fn overdue_at(&self, time: Duration) -> Option<Instant> {
        let drain = self.drain.borrow();
        drain
            .as_ref()
            .filter(|(reason, _)| *reason != DrainReason::Draining)
            .map(|(_, since)| *since + time)
    }

    /// Resolves when it would not be accepted any more and has had so long to end.
    pub async fn overdue(&self, time: Duration) {
        loop {
            let asked = self.notify.notified();
            if let Some(at) = self.overdue_at(time) {
                // Rare, and large: not in the future of every request.
                return Box::pin(tokio::time::sleep_until(at.into())).await;
            }
            asked.await;
        }
    }

    /// Why it was ended, for its log.
    pub fn drain_cause(&self) -> Option<Cause> {
        self.drain_reason().map(|reason| reason.cause(&self.chain))
    }

    /// Resolves when it is asked to end.
    pub async fn draining(&self) {
        loop {
            let notified = self.notify.notified();
            if self.is_draining() {
                return;
            }
            notified.await;
        }
    }
}

impl ChainView {
    /// Puts a chain, its routes and its counts together; `table` finds a named route table.
    pub fn new(
        generation: u64,
        listener: Arc<Listener>,
        chain: Arc<FilterChain>,
        table: impl Fn(&str) -> Option<Arc<RouteTable>>,
        known: &Known,
    ) -> Self {
        let http = match &chain.terminal {
            Terminal::Http(http) => Some(http.clone()),
            Terminal::Tcp(_) => None,
        };

        let routes = http.as_ref().and_then(|http| match &http.routes {
            RouteSource::Inline(table) => Some(table.clone()),
            RouteSource::Rds(name) => table(name),
        });

        let counts = http.as_ref().map(|http| known.http(&http.stat_prefix));

        Self {
            generation,
            listener,
            chain,
            http,
            routes,
            counts,
        }
    }
}
