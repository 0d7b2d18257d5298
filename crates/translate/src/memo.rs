//! Every proxy that needs the same resource shares one build: (type, hash of the input) ->
//! resource.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use meltemi_proto::Any;
use twox_hash::XxHash64;

/// One xDS resource, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// The resource's name, unique within its type.
    pub name: String,
    /// Hash of the input that it was built from, and of the release that built it; never of its
    /// bytes, since equal messages have many encodings.
    pub version: u64,
    /// The packed message.
    pub any: Any,
}

/// How the memo fares: for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoStats {
    /// Resources held.
    pub entries: usize,
    /// Look-ups that found their resource.
    pub hits: u64,
    /// Look-ups that had to build.
    pub misses: u64,
}

/// The release of the builders: another one may build something else of the same input, and a
/// client that comes back to an upgraded control plane is to be sent that.
const BUILDER: &str = env!("CARGO_PKG_VERSION");

/// 128 bits of the input: two seeds of xxh64, so that a chance collision is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    type_url: &'static str,
    version: u64,
    check: u64,
}

#[derive(Debug)]
struct Entry {
    resource: Arc<Resource>,
    generation: u64,
}

/// Built resources by the hash of their input, shared by all proxies and threads.
///
/// The lock is held for a look-up or an insertion, never while a resource is built: two threads may
/// build the same one at the same time, and the first wins. [`Memo::sweep`] forgets what the last
/// generations did not use and no proxy holds.
#[derive(Debug, Default)]
pub struct Memo {
    entries: Mutex<HashMap<Key, Entry>>,
    generation: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Memo {
    /// An empty memo.
    pub fn new() -> Self {
        Self::default()
    }

    /// The resource that `build` makes of `input`, built at most once.
    pub(crate) fn resource<I: Hash>(
        &self,
        type_url: &'static str,
        name: &str,
        input: &I,
        build: impl FnOnce(&I) -> Any,
    ) -> Arc<Resource> {
        let version = hash_with(0, BUILDER, input);
        let key = Key {
            type_url,
            version,
            check: hash_with(0x6d65_6c74_656d_6900, BUILDER, input),
        };

        let generation = self.generation.load(Ordering::Relaxed);
        if let Some(entry) = self.lock().get_mut(&key) {
            entry.generation = generation;
            self.hits.fetch_add(1, Ordering::Relaxed);
            return entry.resource.clone();
        }

        self.misses.fetch_add(1, Ordering::Relaxed);
        let built = Arc::new(Resource {
            name: name.to_owned(),
            version,
            any: build(input),
        });

        self.lock()
            .entry(key)
            .or_insert(Entry {
                resource: built,
                generation,
            })
            .resource
            .clone()
    }

    /// Starts a new generation and forgets what neither this one nor the one before has used, and
    /// no proxy holds. To be called once for each snapshot, after its pushes are planned.
    pub fn sweep(&self) {
        let current = self.generation.fetch_add(1, Ordering::Relaxed);
        self.lock().retain(|_, entry| {
            // A proxy that no change touched has looked nothing up; its next push will.
            let is_held = Arc::strong_count(&entry.resource) > 1;
            is_held || entry.generation + 1 >= current
        });
    }

    /// Counters for metrics.
    pub fn stats(&self) -> MemoStats {
        MemoStats {
            entries: self.lock().len(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        // Nothing that can panic runs under the lock, and a half-done insertion cannot be seen.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash_with<I: Hash>(seed: u64, builder: &str, input: &I) -> u64 {
    let mut hasher = XxHash64::with_seed(seed);
    builder.hash(&mut hasher);
    input.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(memo: &Memo, input: &str) -> Arc<Resource> {
        memo.resource("type", input, &input, |text| Any {
            type_url: "type".into(),
            value: text.as_bytes().to_vec(),
        })
    }

    #[test]
    fn same_input_is_built_once_and_has_the_same_version() {
        let memo = Memo::new();
        let first = build(&memo, "a");
        let second = build(&memo, "a");

        assert!(Arc::ptr_eq(&first, &second));
        assert_ne!(first.version, build(&memo, "b").version);
        assert_eq!(
            memo.stats(),
            MemoStats {
                entries: 2,
                hits: 1,
                misses: 2
            }
        );
    }

    #[test]
    fn the_version_outlives_the_process() {
        assert_eq!(hash_with(0, BUILDER, &"a"), hash_with(0, BUILDER, &"a"));
        assert_eq!(
            build(&Memo::new(), "a").version,
            build(&Memo::new(), "a").version
        );
    }

    #[test]
    fn another_release_gives_other_versions() {
        assert_ne!(
            build(&Memo::new(), "a").version,
            hash_with(0, "another", &"a")
        );
        assert_eq!(
            build(&Memo::new(), "a").version,
            hash_with(0, env!("CARGO_PKG_VERSION"), &"a")
        );
    }

    #[test]
    fn sweeping_forgets_what_two_generations_did_not_use() {
        let memo = Memo::new();
        build(&memo, "a");
        memo.sweep();
        build(&memo, "b");
        memo.sweep();
        memo.sweep();
        assert_eq!(memo.stats().entries, 1);
        memo.sweep();
        assert_eq!(memo.stats().entries, 0);
    }

    #[test]
    fn sweeping_keeps_what_a_proxy_holds() {
        let memo = Memo::new();
        let held = build(&memo, "a");
        for _ in 0..4 {
            memo.sweep();
        }
        assert!(Arc::ptr_eq(&held, &build(&memo, "a")));

        drop(held);
        for _ in 0..3 {
            memo.sweep();
        }
        assert_eq!(memo.stats().entries, 0);
    }
}
