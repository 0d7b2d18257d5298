//! Roles of processes that the node starts, and of the proxy alone.

mod control;
mod proxy;
mod sidecar;

pub(crate) use control::{ControlArgs, control};
pub(crate) use proxy::proxy;
pub(crate) use sidecar::{SidecarArgs, sidecar};

use std::sync::Arc;

use meltemi_proxy::Levels;
use tracing_subscriber::{EnvFilter, reload};

/// Logs go to standard error, one line an event; `RUST_LOG` chooses, and later whoever holds the
/// levels. `None`: somebody else logs for this process already.
fn log(default: &str) -> Option<Arc<dyn Levels>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());

    // Whoever reads may leave: to complain about that, in the same place, would end the thread that
    // logs.
    let writer = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false);

    let logger = writer.with_env_filter(filter).with_filter_reloading();
    let levels = Arc::new(Reload(logger.reload_handle()));
    logger.try_init().ok()?;

    Some(levels)
}

struct Reload<S>(reload::Handle<EnvFilter, S>);

impl<S: 'static> Levels for Reload<S> {
    fn show(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    fn set(&self, filter: &str) -> Result<(), String> {
        let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
        self.0.reload(filter).map_err(|error| error.to_string())
    }
}
