//! The load balancing settings of a cluster.

use crate::subset::SubsetConfig;

/// Load balancing settings of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How an endpoint is chosen among equals.
    pub policy: Policy,
    /// Below this percentage of usable endpoints, all endpoints are used whatever their health.
    /// Default 50; 0 turns this off. Envoy: `healthy_panic_threshold`.
    pub panic_threshold: f64,
    /// In percent: a priority keeps all its load while its share of healthy endpoints times this
    /// factor is at least 100. Default 140. Envoy: `overprovisioning_factor`.
    pub overprovisioning_factor: u32,
    /// Localities take load by their weight. Envoy: `locality_weighted_lb_config`.
    pub locality_weighted: bool,
    /// Subsets by metadata. Envoy: `lb_subset_config`.
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
    /// Draws `choices` endpoints at random and takes the one with the fewest active requests.
    LeastRequest {
        /// Default and minimum 2.
        choices: u32,
    },
    /// At random, by weight.
    Random,
    /// Consistent hashing by a ring.
    RingHash {
        /// Lower bound on the entries of the ring. Default 1024.
        min_size: u64,
        /// Upper bound on the entries of the ring. Default and maximum 8 Mi.
        max_size: u64,
        /// Hashes the entries.
        function: RingHashFunction,
    },
    /// Consistent hashing by a Maglev table.
    Maglev {
        /// The table's size, a prime. Default 65537.
        table_size: u64,
    },
    /// The caller takes the connection's original destination; the balancer chooses nothing.
    OriginalDst,
}

/// The hash function of a ring's entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RingHashFunction {
    /// xxHash64.
    #[default]
    XxHash,
    /// Murmur hash 2, as libstdc++ has it.
    Murmur2,
}
