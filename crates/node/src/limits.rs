//! The limit of open files: high for whoever carries connections, as it was for applications.
//!
//! Programs that call `select` rely on the low soft limit that they usually find, so only our own
//! processes, and Envoy, have the raised one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's soft limit of open files to the hard one, for itself and what it starts;
/// the soft limit as it was, `None` where there was none.
pub fn raise_open_files() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }

    current
}

/// Sets the soft limit of open files, as far as the hard one lets it.
pub(crate) fn set_open_files(soft: u64) -> std::io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(maximum.map_or(soft, |hard| soft.min(hard)));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}
