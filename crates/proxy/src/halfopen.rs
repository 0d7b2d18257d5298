//! Connections that have not shown yet what they are, counted for each worker and client address:
//! whoever opens many and says nothing must not take the room of all others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// Of one worker.
const MAX: usize = 32 * 1024;
/// Of one client address at one worker. Behind a gateway all connections have one address, so it is
/// not small.
const MAX_OF_ONE: usize = 8 * 1024;

/// The counts of one worker.
#[derive(Debug, Clone, Default)]
pub struct HalfOpen(Rc<RefCell<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A place among them, given back on drop: when the connection is known, or gone.
#[derive(Debug)]
pub struct Place {
    counts: HalfOpen,
    client: IpAddr,
}

impl HalfOpen {
    /// Takes a place; `None`: there are too many.
    pub fn admit(&self, client: IpAddr) -> Option<Place> {
        self.admit_within(client, MAX, MAX_OF_ONE)
    }

    fn admit_within(&self, client: IpAddr, max: usize, max_of_one: usize) -> Option<Place> {
        let mut counts = self.0.borrow_mut();
        if counts.all >= max {
            return None;
        }
        let own = counts.by_client.entry(client).or_default();
        if *own >= max_of_one {
            return None;
        }
        *own += 1;
        counts.all += 1;

        Some(Place {
            counts: self.clone(),
            client,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.0.borrow_mut();
        counts.all = counts.all.saturating_sub(1);
        if let Some(own) = counts.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                counts.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_does_not_take_all_places() {
        let counts = HalfOpen::default();
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held: Vec<_> = (0..2)
            .map(|_| counts.admit_within(a, 3, 2).expect("room"))
            .collect();
        assert!(counts.admit_within(a, 3, 2).is_none());
        let other = counts
            .admit_within(b, 3, 2)
            .expect("room for somebody else");
        assert!(
            counts.admit_within(b, 3, 2).is_none(),
            "but not for everybody"
        );

        drop(held);
        assert!(counts.admit_within(a, 3, 2).is_some());
        drop(other);
        assert!(
            counts.0.borrow().by_client.is_empty(),
            "nobody is remembered"
        );
    }
}
