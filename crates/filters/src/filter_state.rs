//! Filter state: text by key, set by filters, read by later ones, by logs and by the upstream
//! connection.

/// Text by key; the last of equal keys counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterState(Vec<(Box<str>, Box<str>)>);

/// The key of the ALPN list for the upstream connection.
const APPLICATION_PROTOCOLS: &str = "envoy.network.application_protocols";
/// The key of the SNI for the upstream connection.
const UPSTREAM_SERVER_NAME: &str = "envoy.network.upstream_server_name";

impl FilterState {
    /// The text of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(own, _)| &**own == key)
            .map(|(_, value)| &**value)
    }

    /// Sets the text of a key.
    pub fn set(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().find(|(own, _)| &**own == key) {
            Some((_, own)) => *own = value.into(),
            None => self.0.push((key.into(), value.into())),
        }
    }

    /// The ALPN list that a filter asks the upstream connection to offer.
    pub fn upstream_alpn(&self) -> Option<impl Iterator<Item = &str>> {
        self.get(APPLICATION_PROTOCOLS).map(|list| list.split(','))
    }

    /// The SNI that a filter asks the upstream connection to send.
    pub fn upstream_server_name(&self) -> Option<&str> {
        self.get(UPSTREAM_SERVER_NAME)
    }
}
