//! Addresses of workloads: given once, kept across restarts of the workload and of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The allocation table, with its file.
#[derive(Debug)]
pub(crate) struct Addresses {
    file: PathBuf,
    known: BTreeMap<String, Ipv4Addr>,
    /// Workloads that hold their address now.
    used: BTreeSet<String>,
    /// The file does not hold the table yet.
    unsaved: bool,
}

/// First and last host of 10.44.0.0/16 that a workload may get; the router is 10.44.0.1 and
/// 10.44.255.253, the last one probes the kernel.
const FIRST: u32 = u32::from_be_bytes([10, 44, 0, 2]);
const LAST: u32 = u32::from_be_bytes([10, 44, 255, 252]);

impl Addresses {
    /// Reads the table; a damaged one is begun anew, since it is only a memory.
    pub(crate) fn load(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mut known: BTreeMap<String, Ipv4Addr> = serde_json::from_str(&text).unwrap_or_default();
        let mut seen = BTreeSet::new();
        known.retain(|_, address| {
            (FIRST..=LAST).contains(&u32::from(*address)) && seen.insert(*address)
        });

        Self {
            file: file.to_owned(),
            known,
            used: BTreeSet::new(),
            unsaved: false,
        }
    }

    /// The address of a workload; `None` when all are taken.
    pub(crate) fn take(&mut self, workload: &str) -> Option<Ipv4Addr> {
        self.used.insert(workload.to_owned());
        if let Some(address) = self.known.get(workload).copied() {
            self.save();
            return Some(address);
        }

        let held: BTreeSet<Ipv4Addr> = self.known.values().copied().collect();
        let free = (FIRST..=LAST)
            .map(Ipv4Addr::from)
            .find(|address| !held.contains(address));
        let address = free.or_else(|| {
            // All were given at some time: take that of a workload that is gone.
            let gone = self
                .known
                .keys()
                .find(|name| !self.used.contains(*name))
                .cloned()?;
            self.known.remove(&gone)
        })?;

        self.known.insert(workload.to_owned(), address);
        self.unsaved = true;
        self.save();

        Some(address)
    }

    /// The workload is gone; its address stays remembered as long as nobody else needs it.
    pub(crate) fn release(&mut self, workload: &str) {
        self.used.remove(workload);
        self.save();
    }

    /// Writes the table, if it is not written yet: a full disk is tried again with the next
    /// workload that comes or goes.
    fn save(&mut self) {
        if !self.unsaved {
            return;
        }
        match self.write() {
            Ok(()) => self.unsaved = false,
            Err(error) => {
                let file = self.file.display();
                tracing::warn!(%error, %file, "addresses are not remembered across a restart; free space on the disk");
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        meltemi_ca::write_private(&self.file, &serde_json::to_vec_pretty(&self.known)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_keeps_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("addresses.json");
        let mut table = Addresses::load(&file);
        let a = table.take("default/a").unwrap();
        let b = table.take("default/b").unwrap();

        assert_eq!(
            (a, b),
            (Ipv4Addr::new(10, 44, 0, 2), Ipv4Addr::new(10, 44, 0, 3))
        );

        table.release("default/a");
        let mut again = Addresses::load(&file);
        assert_eq!(
            again.take("default/c").unwrap(),
            Ipv4Addr::new(10, 44, 0, 4)
        );

        assert_eq!(again.take("default/a").unwrap(), a);

        // What could not be written is written with the next chance.
        let beside = dir.path().join("away");
        fs::rename(&file, &beside).unwrap();
        fs::create_dir_all(file.join("in the way")).unwrap();
        let d = again.take("default/d").unwrap();
        fs::remove_dir_all(&file).unwrap();
        again.release("default/c");
        assert_eq!(Addresses::load(&file).take("default/d").unwrap(), d);
        fs::write(&file, "{").unwrap();
        assert_eq!(Addresses::load(&file).take("x").unwrap(), a);
    }
}
