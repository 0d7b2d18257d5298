//! Raw objects of all sources, merged and turned into snapshots.
//!
//! In: directories of YAML ([`FileSource`]), objects that users apply ([`AppliedStore`]), and
//! whatever other source speaks [`Delta`]. Out: one [`World`] after the other (tables, snapshot,
//! findings), each complete, on a watch channel. The first change of a burst is built at once; what
//! arrives meanwhile is merged into the next build.
//!
//! A source keeps the last good version of an object whose text has become invalid, across a
//! restart too. Unreadable files and a full disk are findings, never failures.
//!
//! It imports `api` and `model`, and must never import a Kubernetes client, `translate`, or
//! anything of the data plane.

mod applied;
mod atomic;
mod delta;
mod file;
mod turn;
mod world;

pub use applied::{Action, AppliedStore, ApplyError, ChangeOptions, Outcome};
pub use delta::{Delta, SourceSender, SourceUpdate};
pub use file::{Directory, FileSource, FileSourceOptions};
pub use turn::Turn;
pub use world::{Store, StoreBuilder, World};
