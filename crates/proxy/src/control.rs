//! The control thread: configuration in, generations out.
//!
//! [`state`] is what was received, in `slots`, and what of it serves (no IO); [`driver`] runs it:
//! xDS, secrets, DNS, sockets; [`dns`] keeps names resolved; [`secrets`] reads secrets that arrive
//! over ADS.

pub mod dns;
pub mod driver;
pub mod secrets;
mod slots;
pub mod state;
