//! TCP keepalive settings.

use std::time::Duration;

/// TCP keepalive probes; `None` leaves the system's value. Source: DestinationRule `tcpKeepalive`,
/// Envoy `TcpKeepalive`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Keepalive {
    /// Unanswered probes before the connection counts as dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

impl Keepalive {
    /// Takes each value that is unset from `defaults`.
    pub fn or(self, defaults: Self) -> Self {
        Self {
            probes: self.probes.or(defaults.probes),
            time: self.time.or(defaults.time),
            interval: self.interval.or(defaults.interval),
        }
    }
}
