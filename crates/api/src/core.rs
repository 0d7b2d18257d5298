//! Core Kubernetes objects, of which only what a mesh needs is read.

mod config;
mod pod;
mod service;

pub use config::*;
pub use pod::*;
pub use service::*;
