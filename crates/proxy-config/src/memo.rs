//! Compiling the same bytes once, so that a resource that a server sends again keeps its `Arc`.
//!
//! Equal bytes are equal resources. Equal resources may have different bytes, since maps have no
//! order on the wire; then the resource is compiled a second time, and no harm is done.

use std::any::Any as Dynamic;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use meltemi_filters::{Rejection, Scope, Warning};
use meltemi_lb::hash::xxh64;
use meltemi_proto::Any;

/// The result of compiling a resource: the value with a warning for each part that has no effect,
/// or the reason for a NACK.
pub type Compiled<T> = Result<(T, Vec<Warning>), Rejection>;

/// Compiled resources that are still in use, by type and bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memo(Arc<Mutex<Parts>>);

#[derive(Debug, Default)]
struct Parts {
    known: HashMap<u128, Part>,
    /// The number of entries at which unused ones are removed.
    sweep_at: usize,
}

#[derive(Debug)]
struct Part {
    value: Weak<dyn Dynamic + Send + Sync>,
    warnings: Vec<Warning>,
}

impl Memo {
    /// The value of these bytes: the one that was compiled before, if somebody keeps it, else a new
    /// one.
    pub(crate) fn get<M, T>(
        &self,
        any: &Any,
        compile: impl FnOnce(&M) -> Compiled<Arc<T>>,
    ) -> Compiled<Arc<T>>
    where
        M: prost::Message + prost::Name + Default,
        T: Dynamic + Send + Sync,
    {
        let key = fingerprint::<M>(any);

        // A poisoned lock is no reason to stop: the table is consistent after every statement.
        if let Some(part) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .known
            .get(&key)
            && let Some(value) = part.value.upgrade()
            && let Ok(value) = value.downcast::<T>()
        {
            return Ok((value, part.warnings.clone()));
        }

        let message: M = Scope::new().unpack(any)?;
        let (value, warnings) = compile(&message)?;
        let shared: Arc<dyn Dynamic + Send + Sync> = value.clone();
        let part = Part {
            value: Arc::downgrade(&shared),
            warnings: warnings.clone(),
        };

        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.known.len() >= parts.sweep_at {
            parts.known.retain(|_, part| part.value.strong_count() > 0);
            parts.sweep_at = (parts.known.len() * 2).max(64);
        }

        parts.known.insert(key, part);

        Ok((value, warnings))
    }
}

/// A hash of type and bytes. A server is trusted not to look for collisions: it could as well send
/// the configuration that it wants.
fn fingerprint<M: prost::Name>(any: &Any) -> u128 {
    let kind = xxh64(M::full_name().as_bytes(), any.value.len() as u64);
    let half = |salt: u64| u128::from(xxh64(&any.value, kind ^ salt));
    half(0) << 64 | half(0x9e37_79b9_7f4a_7c15)
}
