//! Which protocols a request may upgrade its connection to.

/// Protocols and whether upgrading to them is allowed. Source: Envoy `upgrade_configs` of a
/// connection manager or of a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upgrades(Vec<(Box<str>, bool)>);

impl Upgrades {
    /// Whether a route with these settings upgrades to `protocol` (`websocket`, `connect`; case
    /// does not matter). A protocol that the route does not mention is up to its `manager`, and one
    /// that neither mentions is not upgraded to.
    pub fn allow(&self, protocol: &str, manager: &Upgrades) -> bool {
        self.setting(protocol)
            .or_else(|| manager.setting(protocol))
            .unwrap_or(false)
    }

    fn setting(&self, protocol: &str) -> Option<bool> {
        self.0
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(protocol))
            .map(|(_, allowed)| *allowed)
    }
}

impl<'a> FromIterator<(&'a str, bool)> for Upgrades {
    fn from_iter<I: IntoIterator<Item = (&'a str, bool)>>(settings: I) -> Self {
        let owned = |(name, allowed): (&str, bool)| (name.into(), allowed);
        Self(settings.into_iter().map(owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_overrides_its_manager() {
        let manager = Upgrades::from_iter([("websocket", true), ("h2c", false)]);
        let silent = Upgrades::default();
        assert!(silent.allow("WebSocket", &manager));
        assert!(!silent.allow("h2c", &manager));
        assert!(!silent.allow("connect", &manager));

        let route = Upgrades::from_iter([("websocket", false), ("CONNECT", true)]);
        assert!(!route.allow("websocket", &manager));
        assert!(route.allow("connect", &manager));
    }
}
