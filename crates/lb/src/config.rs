//! What a balancer is built from.

use std::sync::Arc;

use crate::subset::SubsetConfig;

/// Load balancing settings of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How an endpoint is chosen among equals.
    pub policy: Policy,
    /// Below this share of usable endpoints (0 to 100) all of them are used. Envoy's default is 50;
    /// 0 is never.
    pub panic_threshold: f64,
    /// A priority keeps all its load while its share of healthy endpoints times this (in percent)
    /// is at least 100.
    pub overprovisioning_factor: u32,
    /// Localities take load by their weight.
    pub locality_weighted: bool,
    /// Subsets by metadata.
    pub subsets: Option<SubsetConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::RoundRobin,
            panic_threshold: 50.0,
            overprovisioning_factor: 140,
            locality_weighted: false,
            subsets: None,
        }
    }
}

/// How an endpoint is chosen. Source: Envoy `LbPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// In turn, by weight.
    RoundRobin,
    /// The one with the fewest active requests among so many drawn at random.
    LeastRequest {
        /// At least 2.
        choices: u32,
    },
    /// At random, by weight.
    Random,
    /// A ring of hashes.
    RingHash {
        /// At least so many entries. Default 1024.
        min_size: u64,
        /// At most so many. Default and bound 8 Mi.
        max_size: u64,
        /// How entries are hashed.
        function: RingHashFunction,
    },
    /// A table of hashes.
    Maglev {
        /// Its size, a prime. Default 65537.
        table_size: u64,
    },
    /// The endpoint is where the connection was going; nothing is chosen here.
    OriginalDst,
}

/// How entries of a ring are hashed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RingHashFunction {
    /// xxHash64.
    #[default]
    XxHash,
    /// Murmur hash 2, as libstdc++ has it.
    Murmur2,
}

/// An endpoint as a balancer sees it; its number is its place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// At least 1.
    pub weight: u32,
    /// 0 is served first.
    pub priority: u32,
    /// Which of the localities it is in.
    pub locality: u32,
    /// What consistent hashing hashes: the address as text, or the key that its metadata names.
    pub hash_key: Arc<str>,
    /// Metadata for subsets: key and canonical value.
    pub subset_values: Vec<(Arc<str>, Arc<str>)>,
}

/// A locality within one priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalitySpec {
    /// Its share, if localities are weighted; 0 takes nothing.
    pub weight: u32,
}

/// How well an endpoint is, from configuration, health checks and ejections together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Takes load.
    #[default]
    Healthy,
    /// Takes what the healthy ones do not.
    Degraded,
    /// Takes load only in panic.
    Unhealthy,
    /// Takes no load, not even in panic, and does not count.
    Excluded,
}
