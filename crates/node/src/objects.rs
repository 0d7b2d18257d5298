//! The objects of the configuration that the node itself looks at.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meltemi_api::Object;
use tokio::sync::watch;

/// How often the folders are looked at.
const PERIOD: Duration = Duration::from_millis(200);
/// A folder that contains itself by a link ends here.
const DEPTH: usize = 16;

type Signature = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// Reads the folders, and again whenever a file changed. What cannot be read as YAML is the control plane's to complain of.
pub(crate) fn follow(dirs: Vec<PathBuf>) -> watch::Receiver<Arc<Vec<Object>>> {
    let mut seen = signature(&dirs);
    let mut known: BTreeMap<PathBuf, Vec<Object>> = BTreeMap::new();
    read(&seen, &Signature::new(), &mut known);
    let (out, receiver) = watch::channel(Arc::new(flat(&known)));
    tokio::spawn(async move {
        while !out.is_closed() {
            tokio::time::sleep(PERIOD).await;
            let now = signature(&dirs);
            if now != seen {
                read(&now, &seen, &mut known);
                seen = now;
                let _ = out.send(Arc::new(flat(&known)));
            }
        }
    });
    receiver
}

fn flat(known: &BTreeMap<PathBuf, Vec<Object>>) -> Vec<Object> {
    known.values().flatten().cloned().collect()
}

fn read(now: &Signature, before: &Signature, known: &mut BTreeMap<PathBuf, Vec<Object>>) {
    known.retain(|path, _| now.contains_key(path));
    for (path, stamp) in now {
        if before.get(path) == Some(stamp) {
            continue;
        }
        let Ok(text) = fs::read_to_string(path) else { continue };
        let (objects, diagnostics) = meltemi_api::parse_documents(&path.display().to_string(), &text);
        // A file half written, or wrong: what it held before stays.
        let is_broken = diagnostics.iter().any(|d| d.severity == meltemi_types::Severity::Error);
        if !is_broken || !known.contains_key(path) {
            known.insert(path.clone(), objects);
        }
    }
}

fn signature(dirs: &[PathBuf]) -> Signature {
    let mut found = Signature::new();
    for dir in dirs {
        walk(dir, DEPTH, &mut found);
    }
    found
}

fn walk(dir: &Path, depth: usize, found: &mut Signature) {
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() {
            walk(&path, depth, found);
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            found.insert(path, (meta.len(), meta.modified().ok()));
        }
    }
}
