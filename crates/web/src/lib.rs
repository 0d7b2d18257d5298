//! HTTP/1.1 for pages, probes and small APIs: one accept loop with its limits, one client.
//!
//! In: a listening socket and a handler, or a request and where it goes. Out: answers, read whole.
//! Nothing here is for proxied traffic: bodies are held in memory.
//!
//! Must never import: anything of ours.

mod client;
mod server;

pub use client::{call, call_at};
pub use server::{Accept, Answer, Limits, WhenFull, serve};
