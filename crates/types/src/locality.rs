//! Localities of endpoints: region, zone, subzone.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `region/zone/subzone`; an empty part is unknown. Source: Envoy `core.v3.Locality`, Istio
/// `WorkloadEntry.locality`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Locality {
    /// For example a cloud region.
    pub region: String,
    /// A failure domain in the region.
    pub zone: String,
    /// A failure domain in the zone.
    pub subzone: String,
}

impl Locality {
    /// Splits `region/zone/subzone`; missing parts stay empty.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self {
            region: next(),
            zone: next(),
            subzone: next(),
        }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.zone.is_empty(), self.subzone.is_empty()) {
            (true, true) => f.write_str(&self.region),
            (false, true) => write!(f, "{}/{}", self.region, self.zone),
            (_, false) => write!(f, "{}/{}/{}", self.region, self.zone, self.subzone),
        }
    }
}
