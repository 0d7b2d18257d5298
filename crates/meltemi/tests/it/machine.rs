//! Tests run beside each other; one that makes a load of its own wants the machine alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many use it; [`ALONE`] stands for one who shares it with nobody.
static USERS: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();
const ALONE: usize = usize::MAX;

/// The right to use the machine, until it is dropped.
pub struct Machine(());

impl Machine {
    /// Beside others.
    pub fn shared() -> Self {
        let mut users = wait_until(|users| users != ALONE);
        *users += 1;
        Self(())
    }

    /// Alone, once nobody else uses it.
    pub fn alone() -> Self {
        *wait_until(|users| users == 0) = ALONE;
        Self(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        *users = if *users == ALONE { 0 } else { *users - 1 };
        FREED.notify_all();
    }
}

fn wait_until(holds: impl Fn(usize) -> bool) -> MutexGuard<'static, usize> {
    let users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
    FREED
        .wait_while(users, |users| !holds(*users))
        .unwrap_or_else(PoisonError::into_inner)
}
