//! Turns of those who write applied objects and the source that reads them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One at a time writes applied objects or reads them.
#[derive(Debug, Clone, Default)]
pub struct Turn(Arc<Mutex<()>>);

impl Turn {
    /// Waits until nobody else has it.
    pub(crate) fn take(&self) -> MutexGuard<'_, ()> {
        // There is nothing behind the lock that a panic could have left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
