//! The static resources of a bootstrap: whether they can be served, and the secrets among them.

use std::sync::Arc;

use meltemi_proxy_config::bootstrap::Bootstrap;
use meltemi_tls::Secret;

use super::{checks, secrets};

/// A secret of the bootstrap by name.
pub type NamedSecret = (Arc<str>, Secret);

/// Reads everything that a bootstrap names in files, and returns its secrets. The error names the
/// static resource that cannot be used. The start of a proxy and `--validate` both call this, so
/// that they refuse the same bootstraps.
pub fn load(bootstrap: &Bootstrap) -> Result<Vec<NamedSecret>, String> {
    let place = |field: &str, name: &str, reason: String| {
        format!("static_resources.{field}[{name:?}]: {reason}")
    };

    for cluster in &bootstrap.clusters {
        checks::cluster(&cluster.value)
            .map_err(|reason| place("clusters", &cluster.value.name, reason))?;
    }
    for listener in &bootstrap.listeners {
        checks::listener(&listener.value)
            .map_err(|reason| place("listeners", &listener.value.name, reason))?;
    }

    let load = |secret: &meltemi_proxy_config::bootstrap::StaticSecret| {
        let loaded = secrets::load(&secret.content)
            .map_err(|reason| place("secrets", &secret.name, reason))?;
        Ok((secret.name.clone(), loaded))
    };

    bootstrap.secrets.iter().map(load).collect()
}
