//! Roles of processes that the node starts, and of the proxy alone.

mod control;
mod proxy;
mod sidecar;

pub(crate) use control::{ControlArgs, control};
pub(crate) use proxy::proxy;
pub(crate) use sidecar::{SidecarArgs, sidecar};

/// Logs go to standard error, one line an event; `RUST_LOG` chooses.
fn log(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}
