//! What all threads of a proxy share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use meltemi_filters::peer_metadata::LocalPeer;
use meltemi_net::Binder;
use meltemi_proto::Any;
use meltemi_telemetry::{Gauge, Registry};
use meltemi_tls::SecretStore;

use crate::logs::Logs;

/// Open connections by cluster and endpoint, over all workers.
type OpenConnections = HashMap<(Arc<str>, Box<str>), Arc<AtomicU64>>;

/// Made once, at start.
pub struct Common {
    /// SO_MARK of upstream connections.
    pub mark: Option<u32>,
    /// Secrets by name.
    pub secrets: SecretStore,
    /// Metrics.
    pub registry: Arc<Registry>,
    /// Access logs.
    pub logs: Logs,
    /// Where listening sockets come from.
    pub binder: Arc<dyn Binder>,
    /// Who we are, as peers and metrics are told.
    pub local: LocalPeer,
    pub node_id: Arc<str>,
    /// The bootstrap, for `/config_dump`. A proxy that another program starts has only a node in it.
    pub bootstrap: Any,
    /// Open downstream connections.
    pub connections: Gauge,
    /// Start of the process's service.
    pub since: Instant,
    /// Everything that was needed at start has arrived.
    pub ready: AtomicBool,
    /// `/healthcheck/fail` was called.
    pub failed: AtomicBool,
    /// `/quitquitquit` was called.
    pub quit: AtomicBool,
    /// How long a draining connection may take to end.
    pub drain_time: std::time::Duration,
    /// The most connections of one worker that have not shown what they are.
    pub strangers: usize,
    /// The levels of the process's own log; `None` if they cannot be changed.
    pub levels: Option<Arc<dyn Levels>>,
    pub(crate) limited: Mutex<OpenConnections>,
}

/// The levels of the process's own log. The code that set the log up implements this.
pub trait Levels: Send + Sync {
    /// The filter that is in force, in the words of [`Levels::set`].
    fn show(&self) -> String;
    /// Puts a filter in force: `info`, or `info,meltemi_proxy=debug`. The error says what is wrong
    /// with it.
    fn set(&self, filter: &str) -> Result<(), String>;
}

/// What `/ready` says. Source: Envoy `ServerInfo.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// Configuration is awaited.
    Initializing,
    /// It serves.
    Live,
    /// It serves, and wants no new traffic.
    Draining,
}

impl ServerState {
    /// Envoy's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Initializing => "INITIALIZING",
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
        }
    }

    /// Envoy's number, of the statistic `server.state`. Source: Envoy `admin.v3.ServerInfo.State`.
    pub fn number(self) -> u64 {
        match self {
            Self::Live => 0,
            Self::Draining => 1,
            Self::Initializing => 3,
        }
    }
}

impl Common {
    /// Whether traffic may come.
    pub fn state(&self) -> ServerState {
        match (self.ready.load(Relaxed), self.failed.load(Relaxed)) {
            (false, _) => ServerState::Initializing,
            (true, true) => ServerState::Draining,
            (true, false) => ServerState::Live,
        }
    }

    /// The open connections under one limit, over all workers. Once for a connection, and only
    /// where there is a limit.
    pub(crate) fn connection_count(&self, listener: &Arc<str>, prefix: &str) -> Arc<AtomicU64> {
        let mut limited = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        limited
            .entry((listener.clone(), prefix.into()))
            .or_default()
            .clone()
    }
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common")
            .field("node_id", &self.node_id)
            .finish_non_exhaustive()
    }
}
