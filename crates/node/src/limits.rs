//! The limit of open files (`RLIMIT_NOFILE`).
//!
//! Meltemi's own processes and Envoy raise the soft limit, since every connection needs a
//! descriptor. Applications keep the limit that the user had: programs that call `select` break
//! with descriptors above 1023.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard limit, for this process and its children.
/// Returns the previous soft limit; `None` means unlimited.
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

/// Sets the soft limit of open files to `soft`, or to the hard limit if that is lower.
pub(crate) fn set_open_files(soft: u64) -> std::io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(maximum.map_or(soft, |hard| soft.min(hard)));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}
