//! One worker: a thread with its own runtime, listening sockets, pools and share of the metrics. No
//! other thread touches its state; configuration arrives as commands.
//!
//! [`Worker`] is the state, which everything in the thread uses. [`serve`] is the loop above it:
//! it accepts connections and applies what the control thread publishes.

mod command;
pub mod serve;
mod state;

pub use command::Command;
pub use state::Worker;
