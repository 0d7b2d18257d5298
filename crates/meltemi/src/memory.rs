//! Gives memory back to the system after a burst.
//!
//! The allocator of glibc keeps what a burst has freed between small pieces that are still in use,
//! so a process would stay as large as its largest moment. Other allocators give back by themselves.

use std::time::Duration;

use meltemi_net::heap;

/// How often the heap is looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// Freed bytes that are not worth the work.
const WORTH: usize = 16 * 1024 * 1024;

/// Decides when to give back.
#[derive(Debug, Default)]
struct Watch {
    /// Free bytes of the heap after it was last given back: addresses stay, their pages are gone.
    given: usize,
}

impl Watch {
    /// Whether [`WORTH`] bytes were freed since the last time. `free`: free bytes of the heap now.
    fn is_worth_it(&mut self, free: usize) -> bool {
        self.given = self.given.min(free);
        if free - self.given < WORTH {
            return false;
        }
        self.given = free;
        true
    }
}

/// Gives back for as long as the process lives.
pub(crate) async fn give_back() {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        if watch.is_worth_it(heap::free()) {
            heap::trim();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_for_each_burst() {
        let mut watch = Watch::default();
        assert!(!watch.is_worth_it(WORTH - 1));
        assert!(watch.is_worth_it(WORTH));
        assert!(!watch.is_worth_it(WORTH), "its pages are gone already");

        // Another burst takes the addresses, and frees them.
        assert!(!watch.is_worth_it(0));
        assert!(watch.is_worth_it(WORTH));
    }
}
