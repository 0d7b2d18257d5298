//! Finding the sockets of a running mesh.

use meltemi_admin_api::Client;

/// The control plane of a mesh.
pub(crate) fn control(mesh: &str) -> Client {
    Client::unix(meltemi_node::config::run_dir(mesh).join("control.sock"))
}
