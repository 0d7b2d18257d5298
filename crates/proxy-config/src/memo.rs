//! Compiling the same bytes once: a resource that a server sends again keeps its `Arc`, and with it
//! what lives in it.
//!
//! Equal bytes are equal resources. The reverse does not hold (maps have many encodings); then
//! sharing is lost and nothing else.

use std::any::Any as Dynamic;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use meltemi_filters::{Scope, Warning};
use meltemi_lb::hash::xxh64;
use meltemi_proto::Any;

use crate::compiler::Compiled;

/// What was compiled before and is still in use, by type and bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memo(Arc<Mutex<Parts>>);

#[derive(Debug, Default)]
struct Parts {
    known: HashMap<u128, Part>,
    /// At this size the dead are swept out.
    sweep_at: usize,
}

#[derive(Debug)]
struct Part {
    value: Weak<dyn Dynamic + Send + Sync>,
    warnings: Vec<Warning>,
}

impl Memo {
    /// The value of these bytes: known from before, or compiled now.
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

        // Nobody panics with the lock held, and what it guards is whole at all times.
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

/// 128 bits over type and bytes; servers are trusted not to look for collisions.
fn fingerprint<M: prost::Name>(any: &Any) -> u128 {
    let kind = xxh64(M::full_name().as_bytes(), any.value.len() as u64);
    let half = |salt: u64| u128::from(xxh64(&any.value, kind ^ salt));
    half(0) << 64 | half(0x9e37_79b9_7f4a_7c15)
}
