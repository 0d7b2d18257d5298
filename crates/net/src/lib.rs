//! Sockets as a mesh proxy needs them.
//!
//! In: addresses, socket options, first bytes. Out: listening and connected sockets, the original
//! destination of a redirected connection, what the first bytes are, and bytes copied from one
//! stream to another. This crate knows no configuration, no HTTP beyond its first line, and imports
//! nothing of ours but `types`.

pub mod binder;
pub mod buffers;
pub mod copy;
pub mod fdpass;
pub mod inspect;
pub mod socket;

pub use binder::{Binder, OsBinder, PublishingBinder};
pub use buffers::Buffers;
pub use copy::{CopyEnd, CopyOptions, Meter, copy_both_ways};
pub use inspect::{HttpSniff, TlsSniff, TlsSniffer, sniff_http};
pub use socket::{ConnectOptions, ListenOptions, connect, listen, original_destination};
