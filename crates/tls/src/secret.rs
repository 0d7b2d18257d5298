//! A store of named secrets that can be watched and change while connections are open.

mod file;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;

use crate::{Identity, TrustBundle};
use file::FileName;

/// SDS name of the workload's own certificate. Source: Istio.
pub const DEFAULT_SECRET: &str = "default";
/// SDS name of the mesh's roots. Source: Istio.
pub const ROOT_SECRET: &str = "ROOTCA";

/// The value of a secret. A gateway's `credentialName` may hold both parts.
#[derive(Debug, Clone, Default)]
pub struct Secret {
    /// Certificate chain and key.
    pub identity: Option<Identity>,
    /// Trusted roots.
    pub trust: Option<TrustBundle>,
}

impl Secret {
    /// A secret with a certificate and key only.
    pub fn identity(identity: Identity) -> Self {
        Self {
            identity: Some(identity),
            trust: None,
        }
    }

    /// A secret with roots only.
    pub fn trust(trust: TrustBundle) -> Self {
        Self {
            identity: None,
            trust: Some(trust),
        }
    }
}

type Slot = watch::Sender<Option<Arc<Secret>>>;

/// All secrets of a process. Cheap to clone; clones share their content. A name can be watched
/// before it is set, which is how a listener waits for its certificate. Names that stand for files
/// (`file-root:PATH`, `file-cert:CERT~KEY`) are read at their first use and again by
/// [`SecretStore::refresh_files`] for as long as somebody watches them.
#[derive(Debug, Clone)]
pub struct SecretStore {
    slots: Arc<RwLock<BTreeMap<String, Slot>>>,
    files: Arc<Mutex<BTreeMap<String, FileState>>>,
    generation: watch::Sender<u64>,
}

/// A file that has been read, or could not be.
#[derive(Debug, Clone, Default)]
struct FileState {
    /// Hash of the content; `None` if the file could not be read yet.
    hash: Option<u64>,
    /// Why the last try failed.
    error: Option<String>,
}

impl Default for SecretStore {
    fn default() -> Self {
        Self {
            slots: Arc::default(),
            files: Arc::default(),
            generation: watch::Sender::new(0),
        }
    }
}

impl SecretStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches one name. The value is `None` until the secret is set and after it is removed.
    pub fn watch(&self, name: &str) -> watch::Receiver<Option<Arc<Secret>>> {
        self.read_file_once(name);
        if let Some(slot) = self.read().get(name) {
            return slot.subscribe();
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots
            .entry(name.to_owned())
            .or_insert_with(|| watch::Sender::new(None))
            .subscribe()
    }

    /// The current value of a secret.
    pub fn get(&self, name: &str) -> Option<Arc<Secret>> {
        self.read_file_once(name);
        self.read().get(name).and_then(|slot| slot.borrow().clone())
    }

    /// Sets or replaces a secret and wakes its watchers.
    pub fn set(&self, name: &str, secret: Secret) {
        self.put(name, Some(Arc::new(secret)));
    }

    /// Removes a secret; its watchers then see `None`.
    pub fn remove(&self, name: &str) {
        self.put(name, None);
    }

    /// Names of all secrets that are set, sorted.
    pub fn names(&self) -> Vec<String> {
        self.read()
            .iter()
            .filter(|(_, slot)| slot.borrow().is_some())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// A counter of changes of any secret, which can be awaited.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Reads all watched files again and sets the secrets of those that changed. A file that cannot
    /// be read keeps its previous secret, with one warning for each reason. A file that nobody
    /// watches is forgotten, and its key with it.
    pub fn refresh_files(&self) {
        let names: Vec<String> = self.files().keys().cloned().collect();
        for name in names {
            if self.forget_unwatched(&name) {
                self.files().remove(&name);
            } else {
                self.read_file(&name);
            }
        }
    }

    /// Removes the secret if nobody watches it; whether it is gone.
    fn forget_unwatched(&self, name: &str) -> bool {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let is_watched = slots
            .get(name)
            .is_some_and(|slot| slot.receiver_count() > 0);
        if !is_watched {
            slots.remove(name);
        }

        !is_watched
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, FileState>> {
        // The lock may be poisoned, but no operation leaves the map half changed.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_file_once(&self, name: &str) {
        if FileName::of(name).is_some() && !self.files().contains_key(name) {
            self.read_file(name);
        }
    }

    fn read_file(&self, name: &str) {
        let Some(file) = FileName::of(name) else {
            return;
        };
        let before = self.files().entry(name.to_owned()).or_default().clone();

        let after = match file.read(before.hash) {
            Ok(None) => FileState {
                error: None,
                ..before
            },
            Ok(Some((secret, hash))) => {
                self.set(name, secret);
                FileState {
                    hash: Some(hash),
                    error: None,
                }
            }
            Err(error) => {
                if before.error.as_ref() != Some(&error) {
                    tracing::warn!(secret = name, %error, "cannot be read; what it brought before stays");
                }
                FileState {
                    error: Some(error),
                    ..before
                }
            }
        };
        self.files().insert(name.to_owned(), after);
    }

    fn put(&self, name: &str, value: Option<Arc<Secret>>) {
        {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            slots
                .entry(name.to_owned())
                .or_insert_with(|| watch::Sender::new(None))
                .send_replace(value);
        }
        self.generation.send_modify(|generation| *generation += 1);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Slot>> {
        // The lock may be poisoned, but no operation leaves the map half changed.
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_sees_a_secret_that_is_set_later() {
        let store = SecretStore::new();
        let mut early = store.watch(DEFAULT_SECRET);
        let mut changes = store.changes();

        assert!(early.borrow_and_update().is_none());
        store.set(DEFAULT_SECRET, Secret::trust(TrustBundle::web_pki()));
        assert!(early.has_changed().expect("the store lives"));
        assert!(early.borrow_and_update().is_some());
        assert_eq!(*changes.borrow_and_update(), 1);
        assert_eq!(store.names(), [DEFAULT_SECRET]);
        store.remove(DEFAULT_SECRET);
        assert!(store.get(DEFAULT_SECRET).is_none() && store.names().is_empty());
    }

    #[test]
    fn a_file_that_nobody_watches_any_more_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("roots.pem");
        let name = format!("file-root:{}", path.display());
        let store = SecretStore::new();
        let read = |store: &SecretStore| store.files().get(&name).cloned();

        let watching = store.watch(&name);
        store.refresh_files();
        assert!(read(&store).is_some_and(|file| file.error.is_some()));
        assert!(store.get(&name).is_none());

        let key = rcgen::KeyPair::generate().expect("a key");
        let roots = rcgen::CertificateParams::default().self_signed(&key);
        std::fs::write(&path, roots.expect("signed").pem()).expect("written");
        store.refresh_files();
        assert!(read(&store).is_some_and(|file| file.error.is_none()));
        assert_eq!(store.names(), [&*name]);

        // What it brought stays while somebody watches.
        std::fs::remove_file(&path).expect("removed");
        store.refresh_files();
        assert_eq!(store.names(), [&*name]);

        drop(watching);
        store.refresh_files();
        assert!(read(&store).is_none() && store.names().is_empty());
    }
}
