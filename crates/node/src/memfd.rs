//! Memory files: what one process hands to another that it starts, without a trace on the disk.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::RawFd;

use anyhow::{Context as _, bail};

use crate::sys;

/// A memory file of these bytes, to be inherited; `name` is what `/proc` shows.
pub(crate) fn holding(name: &CStr, bytes: &[u8]) -> anyhow::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(
        name,
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// A memory file with `value` as JSON, to be read with [`read_json`].
pub(crate) fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<File> {
    holding(c"meltemi", &serde_json::to_vec(value)?)
}

/// Reads an inherited descriptor to its end as JSON.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(fd: RawFd) -> anyhow::Result<T> {
    let mut file = File::from(sys::inherited(fd).context("inherited descriptor")?);
    file.rewind()?;
    let mut text = Vec::new();
    if file.read_to_end(&mut text)? == 0 {
        bail!("the inherited descriptor is empty");
    }
    Ok(serde_json::from_slice(&text)?)
}
