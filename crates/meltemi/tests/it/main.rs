//! The binary as its users see it: real meshes on this machine, real peers, Istio's own files.
//!
//! Every test starts the built binary (`MELTEMI_BIN`, else the one cargo built for the tests). What
//! the machine cannot do is a visible, counted skip: see [`skip`].

mod changes;
mod commands;
mod covers;
mod deaths;
mod disk;
mod dry_run;
mod edge;
mod egress;
mod envoy;
mod ext_authz;
mod first_hour;
mod foreign;
mod http;
mod istio;
mod lifecycle;
mod machine;
mod mesh;
mod objects;
mod observability;
mod peers;
mod protocols;
mod request;
mod security;
mod soak;
mod tokens;
mod tour;
mod tutorial;

use std::path::PathBuf;

use meltemi_testkit::skip;

/// The folder of Istio's samples and CRDs, if it is here: `MELTEMI_SHARED`, else `../shared` beside
/// the workspace.
pub fn shared() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(3)?
        .join("shared");
    let folder = std::env::var_os("MELTEMI_SHARED").map_or(beside, PathBuf::from);
    folder.join("istio/samples").is_dir().then_some(folder)
}

/// The binary under test.
pub fn binary() -> PathBuf {
    std::env::var_os("MELTEMI_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_meltemi")),
        PathBuf::from,
    )
}
