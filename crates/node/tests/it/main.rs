//! Whole meshes with stand-in sidecars (`examples/mesh.rs`), as the current user and, when that is
//! root, as an ordinary one.

mod harness;
mod lifecycle;

use meltemi_testkit::skip;
