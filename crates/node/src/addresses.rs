//! Allocates pod addresses from 10.44.0.0/16. A workload keeps its address across restarts of the
//! workload and of the mesh; the table is saved as JSON in the state folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The allocation table and the file that it is saved to.
#[derive(Debug)]
pub(crate) struct Addresses {
    file: PathBuf,
    /// Every address ever given out, by workload (`namespace/pod`).
    assigned: BTreeMap<String, Ipv4Addr>,
    /// Workloads that run now; the address of any other may be given away.
    running: BTreeSet<String>,
    /// The table has changed since the file was last written.
    is_unsaved: bool,
}

/// First address that a workload may get: 10.44.0.1 is the router's.
/// 10.44.255.253, the last one probes the kernel.
const FIRST: u32 = u32::from_be_bytes([10, 44, 0, 2]);
/// Last address that a workload may get: 10.44.255.253 is the router's second address, and
/// 10.44.255.254 is used by the kernel check at start.
const LAST: u32 = u32::from_be_bytes([10, 44, 255, 252]);

impl Addresses {
    /// Reads the table. A missing or damaged file yields an empty table: workloads then get new
    /// addresses, and nothing else is lost.
    pub(crate) fn load(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mut assigned: BTreeMap<String, Ipv4Addr> =
            serde_json::from_str(&text).unwrap_or_default();
        let mut seen = BTreeSet::new();
        // The user may have edited the file: drop addresses out of range or given twice.
        assigned.retain(|_, address| {
            (FIRST..=LAST).contains(&u32::from(*address)) && seen.insert(*address)
        });

        Self {
            file: file.to_owned(),
            assigned,
            running: BTreeSet::new(),
            is_unsaved: false,
        }
    }

    /// Returns the workload's address, allocating one if it has none yet; `None` when running
    /// workloads hold every address.
    pub(crate) fn take(&mut self, workload: &str) -> Option<Ipv4Addr> {
        self.running.insert(workload.to_owned());
        if let Some(address) = self.assigned.get(workload).copied() {
            self.save();
            return Some(address);
        }

        let held: BTreeSet<Ipv4Addr> = self.assigned.values().copied().collect();
        let free = (FIRST..=LAST)
            .map(Ipv4Addr::from)
            .find(|address| !held.contains(address));
        let address = free.or_else(|| {
            // Every address was given out once: reuse the address of a workload that no longer
            // runs.
            let gone = self
                .assigned
                .keys()
                .find(|name| !self.running.contains(*name))
                .cloned()?;
            self.assigned.remove(&gone)
        })?;

        self.assigned.insert(workload.to_owned(), address);
        self.is_unsaved = true;
        self.save();

        Some(address)
    }

    /// Marks the workload as ended. Its address stays reserved until the range is exhausted.
    pub(crate) fn release(&mut self, workload: &str) {
        self.running.remove(workload);
        self.save();
    }

    /// Writes the table if it has changed. A failed write (full disk) is tried again the next time
    /// that a workload starts or ends.
    fn save(&mut self) {
        if !self.is_unsaved {
            return;
        }
        match self.write() {
            Ok(()) => self.is_unsaved = false,
            Err(error) => {
                let file = self.file.display();
                tracing::warn!(%error, %file, "addresses are not remembered across a restart; free space on the disk");
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        meltemi_ca::write_private(&self.file, &serde_json::to_vec_pretty(&self.assigned)?)
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

        // A failed write is repeated at the next change.
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
