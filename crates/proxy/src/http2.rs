//! HTTP/2 through the `h2` crate: heads to and from our own form, serving, and upstream connections.

pub mod client;
pub mod heads;
pub mod meter;
pub mod server;
