//! Saves the workloads that `run -d` added to files. If the node is killed, the next node starts
//! them again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::spec::{WorkloadKey, WorkloadSpec};

/// Saves a workload. The file is written under another name and renamed, so that it is always
/// whole.
pub(crate) fn save(dir: &Path, spec: &WorkloadSpec) -> io::Result<()> {
    let path = file(dir, &spec.key);
    let new = path.with_extension("new");

    // The environment may hold secrets: only the user may read the file.
    let out = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;

    serde_json::to_writer(out, spec)?;

    fs::rename(new, path)
}

/// Removes a workload's file if there is one.
pub(crate) fn remove(dir: &Path, key: &WorkloadKey) {
    let _ = fs::remove_file(file(dir, key));
}

/// Loads every saved workload; files that cannot be parsed are skipped.
pub(crate) fn load(dir: &Path) -> BTreeMap<WorkloadKey, WorkloadSpec> {
    let files = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());

    // A file that is being written has the extension `new`.
    let whole = files.filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });

    let specs =
        whole.filter_map(|path| serde_json::from_slice::<WorkloadSpec>(&fs::read(path).ok()?).ok());

    specs.map(|spec| (spec.key.clone(), spec)).collect()
}

/// The file of a workload. Namespace and pod are DNS labels, so the underscore separates them
/// without ambiguity.
fn file(dir: &Path, key: &WorkloadKey) -> PathBuf {
    dir.join(format!("{}_{}.json", key.namespace, key.pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateways;

    #[test]
    fn a_saved_workload_is_loaded_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let specs = gateways::workloads();
        for spec in &specs {
            save(dir.path(), spec).unwrap();
        }
        fs::write(dir.path().join("half.json"), "{").unwrap();
        assert_eq!(
            load(dir.path()).into_values().collect::<Vec<_>>().len(),
            specs.len()
        );

        remove(dir.path(), &specs[0].key);
        assert_eq!(
            load(dir.path()),
            [(specs[1].key.clone(), specs[1].clone())].into()
        );
    }
}
