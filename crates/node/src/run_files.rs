//! Programs that `run -d` added, in files: a node that follows one that was killed runs them as
//! well.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::spec::{WorkloadKey, WorkloadSpec};

/// Writes a workload's file, in one step.
pub(crate) fn keep(dir: &Path, spec: &WorkloadSpec) -> io::Result<()> {
    let path = file(dir, &spec.key);
    let new = path.with_extension("new");

    // Its environment may hold anything.
    let out = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;

    serde_json::to_writer(out, spec)?;

    fs::rename(new, path)
}

/// Removes a workload's file, if it has one.
pub(crate) fn forget(dir: &Path, key: &WorkloadKey) {
    let _ = fs::remove_file(file(dir, key));
}

/// Every workload that has a file.
pub(crate) fn load(dir: &Path) -> BTreeMap<WorkloadKey, WorkloadSpec> {
    let files = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());

    let whole = files.filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });

    let specs =
        whole.filter_map(|path| serde_json::from_slice::<WorkloadSpec>(&fs::read(path).ok()?).ok());

    specs.map(|spec| (spec.key.clone(), spec)).collect()
}

/// Both parts of the name are without underscores.
fn file(dir: &Path, key: &WorkloadKey) -> PathBuf {
    dir.join(format!("{}_{}.json", key.namespace, key.pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateways;

    #[test]
    fn what_is_kept_is_loaded_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let specs = gateways::workloads();
        for spec in &specs {
            keep(dir.path(), spec).unwrap();
        }
        fs::write(dir.path().join("half.json"), "{").unwrap();
        assert_eq!(
            load(dir.path()).into_values().collect::<Vec<_>>().len(),
            specs.len()
        );

        forget(dir.path(), &specs[0].key);
        assert_eq!(
            load(dir.path()),
            [(specs[1].key.clone(), specs[1].clone())].into()
        );
    }
}
