//! The control thread: configuration in, generations out.
//!
//! [`state`] holds the resources that were received, in `slots`, and decides which of them serve
//! (no IO). [`driver`] runs it: xDS, secrets, DNS, sockets. [`dns`] keeps names resolved,
//! `sds` secrets that have a server of their own, and [`servers`] connects to such servers.
//! [`secrets`] and `checks` read the data that configuration names; [`fixed`] does so for a whole
//! bootstrap. [`inspect`] shows both the state and the workers to admin pages.

mod checks;
pub mod dns;
pub mod driver;
pub mod fixed;
pub mod inspect;
mod sds;
pub mod secrets;
pub mod servers;
mod slots;
pub mod state;
