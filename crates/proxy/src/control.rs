//! The control thread: configuration in, generations out.
//!
//! [`state`] is what was received, in `slots`, and what of it serves (no IO); [`driver`] runs it:
//! xDS, secrets, DNS, sockets; [`dns`] keeps names resolved; [`secrets`] reads secrets that arrive
//! over ADS; [`inspect`] shows both the state and the workers to admin pages.

pub mod dns;
pub mod driver;
pub mod inspect;
pub mod secrets;
mod slots;
pub mod state;
