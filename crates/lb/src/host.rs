//! The endpoints and localities that a balancer chooses from, and their health.

use std::sync::Arc;

/// An endpoint as a balancer sees it. Its number is its index in the list of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// At least 1.
    pub weight: u32,
    /// 0 is served first.
    pub priority: u32,
    /// The index of its locality.
    pub locality: u32,
    /// The key for consistent hashing: the address as text, or the key that its metadata names.
    pub hash_key: Arc<str>,
    /// Metadata for subsets: key and canonical value.
    pub subset_values: Vec<(Arc<str>, Arc<str>)>,
}

/// A locality within one priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalitySpec {
    /// Its share of load where localities are weighted; 0 takes no load.
    pub weight: u32,
}

/// An endpoint's health, from configuration, health checks and ejections together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Takes load.
    #[default]
    Healthy,
    /// Takes the load that the healthy endpoints cannot.
    Degraded,
    /// Takes load only in panic.
    Unhealthy,
    /// Takes no load, not even in panic, and does not count.
    Excluded,
}
