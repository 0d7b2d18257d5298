//! Sockets for a mesh proxy.
//!
//! In: addresses, socket options, first bytes. Out: listening and connected sockets, the original
//! destination of a redirected connection, the protocol of the first bytes, and bytes copied
//! between streams. This crate knows no configuration and no HTTP beyond the first line, and
//! imports no other crate of the workspace but `types`.

pub mod binder;
pub mod buffers;
pub mod copy;
pub mod fdpass;
pub mod heap;
pub mod inspect;
pub mod socket;

pub use binder::{Binder, OsBinder, PublishingBinder};
pub use buffers::Buffers;
pub use copy::{CopyEnd, CopyOptions, Meter, copy_both_ways};
pub use inspect::{HttpSniff, TlsSniff, TlsSniffer, sniff_http};
pub use socket::{ConnectOptions, ListenOptions, connect, listen, original_destination};
