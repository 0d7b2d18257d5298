//! HTTP/1.1 for pages, probes and small APIs: one accept loop with its limits, one client. And the
//! places that connections take at any listener that strangers reach.
//!
//! In: a listening socket and a handler, or a request and where it goes. Out: answers, read whole.
//! Nothing here is for proxied traffic: bodies are held in memory.
//!
//! Must never import: anything of ours.

mod client;
mod places;
mod server;

pub use client::{call, call_at};
pub use places::{Place, Places};
pub use server::{Accept, Answer, Limits, WhenFull, serve};
