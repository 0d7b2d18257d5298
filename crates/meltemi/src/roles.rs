//! The roles `control` and `sidecar`, which the node starts, and `proxy`, the proxy alone.

mod control;
mod proxy;
mod sidecar;

pub(crate) use control::{ControlArgs, control};
pub(crate) use proxy::proxy;
pub(crate) use sidecar::{SidecarArgs, sidecar};

use std::sync::Arc;

use meltemi_proxy::Levels;
use tracing_subscriber::{EnvFilter, reload};

/// Logs to standard error, one line per event, at the levels of `RUST_LOG` or else `default`.
/// Returns a handle that changes the levels later; `None` if this process has a logger already.
fn log(default: &str) -> Option<Arc<dyn Levels>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());

    // If standard error is closed, reporting that to standard error would panic.
    let writer = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false);

    let logger = writer.with_env_filter(filter).with_filter_reloading();
    let levels = Arc::new(ReloadableLevels(logger.reload_handle()));
    logger.try_init().ok()?;

    Some(levels)
}

/// Log levels that can be changed while the process runs.
struct ReloadableLevels<S>(reload::Handle<EnvFilter, S>);

impl<S: 'static> Levels for ReloadableLevels<S> {
    fn show(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    fn set(&self, filter: &str) -> Result<(), String> {
        let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}
