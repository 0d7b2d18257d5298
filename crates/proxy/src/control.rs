//! The control thread: configuration in, generations out.
//!
//! [`state`] holds the resources that were received, in `slots`, and decides which of them serve
//! (no IO). [`driver`] runs it: xDS, secrets, DNS, sockets. [`dns`] keeps names resolved.
//! [`secrets`] and `checks` read the data that configuration names; [`fixed`] does so for a whole
//! bootstrap. [`inspect`] shows both the state and the workers to admin pages.

mod checks;
pub mod dns;
pub mod driver;
pub mod fixed;
pub mod inspect;
pub mod secrets;
mod slots;
pub mod state;
