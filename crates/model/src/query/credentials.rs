//! TLS credentials that gateways name: Secrets in the forms that Istio accepts.

use crate::{Credential, NamespacedName, Snapshot};

impl Snapshot {
    /// The credential of a Secret; `None` if there is no such Secret, or it has neither a
    /// certificate nor roots.
    pub fn credential(&self, secret: &NamespacedName) -> Option<Credential> {
        let entry = self.lowered.secrets.entries.get(secret)?;
        Option::clone(&entry.value)
    }
}
