//! Memory files (`memfd_create`): pass configuration and secrets to a child process without a file
//! on disk.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::RawFd;

use anyhow::{Context as _, bail};

use crate::sys;

/// Creates a memory file with `bytes`, for a child to inherit. `/proc/PID/fd` shows it as `name`.
pub(crate) fn holding(name: &CStr, bytes: &[u8]) -> anyhow::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(
        name,
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Creates a memory file with `value` as JSON, for a child to read with [`read_json`].
pub(crate) fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<File> {
    holding(c"meltemi", &serde_json::to_vec(value)?)
}

/// Reads JSON from an inherited descriptor and closes the descriptor. An empty file is an error.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(fd: RawFd) -> anyhow::Result<T> {
    let mut file = File::from(sys::inherited(fd).context("inherited descriptor")?);
    file.rewind()?;
    let mut text = Vec::new();
    if file.read_to_end(&mut text)? == 0 {
        bail!("the inherited descriptor is empty");
    }
    Ok(serde_json::from_slice(&text)?)
}
