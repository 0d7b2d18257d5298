//! What all threads of a proxy share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use meltemi_net::Binder;
use meltemi_filters::http::LocalPeer;
use meltemi_telemetry::{Counter, Gauge, Registry};
use meltemi_tls::SecretStore;

use crate::logs::Logs;

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
    /// Node id.
    pub node_id: Arc<str>,
    /// Downstream handshakes that failed.
    pub tls_errors: Counter,
    /// Connections that no filter chain took.
    pub unmatched: Counter,
    /// Connections that network authorization refused.
    pub rbac_denied: Counter,
    /// Open downstream connections.
    pub connections: Gauge,
    /// Start of the process's service.
    pub since: Instant,
    /// Everything that was needed at start has arrived.
    pub ready: AtomicBool,
    /// How long a draining connection may take to end.
    pub drain_time: std::time::Duration,
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}
