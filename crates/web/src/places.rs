//! Places for connections that have not shown who they are. A connection is always admitted; where
//! there is no place left, another one loses its: the eldest of the source that holds most.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// The places of one listener. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    limit: usize,
    holders: Arc<Mutex<Holders>>,
}

#[derive(Debug, Default)]
struct Holders {
    next: u64,
    count: usize,
    /// Eldest first, by source.
    by_source: HashMap<Option<IpAddr>, VecDeque<(u64, oneshot::Sender<()>)>>,
}

/// A connection's place. Dropped, it is free again.
#[derive(Debug)]
pub struct Place {
    number: u64,
    source: Option<IpAddr>,
    holders: Arc<Mutex<Holders>>,
    taken: oneshot::Receiver<()>,
}

impl Places {
    /// So many places; at least one.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            holders: Arc::default(),
        }
    }

    /// Admits a connection. Sources that share an address count as one, and so do those without an
    /// address, as the clients of a Unix socket.
    pub fn admit(&self, source: Option<IpAddr>) -> Place {
        let mut holders = lock(&self.holders);
        if holders.count >= self.limit {
            holders.evict(source);
        }

        let number = holders.next;
        let (owner, taken) = oneshot::channel();
        holders.next += 1;
        holders.count += 1;
        holders
            .by_source
            .entry(source)
            .or_default()
            .push_back((number, owner));

        Place {
            number,
            source,
            holders: Arc::clone(&self.holders),
            taken,
        }
    }
}

impl Holders {
    /// Takes the place of the eldest connection of the source that would hold most, once `newcomer`
    /// has one more. Of several such sources the one with the eldest connection loses.
    fn evict(&mut self, newcomer: Option<IpAddr>) {
        let greediest = self.by_source.iter().max_by_key(|(source, held)| {
            let wanted = held.len() + usize::from(**source == newcomer);
            let eldest = held.front().map(|(number, _)| Reverse(*number));
            (wanted, eldest)
        });
        let Some(source) = greediest.map(|(source, _)| *source) else {
            return;
        };
        let eldest = self
            .by_source
            .get_mut(&source)
            .and_then(VecDeque::pop_front);
        if let Some((_, owner)) = eldest {
            self.count -= 1;
            // Fails where the connection ends at the same time.
            let _ = owner.send(());
        }
        self.forget_empty(source);
    }

    fn forget_empty(&mut self, source: Option<IpAddr>) {
        if self.by_source.get(&source).is_some_and(VecDeque::is_empty) {
            self.by_source.remove(&source);
        }
    }
}

impl Place {
    /// Resolves when another connection needs the place. The owner then ends its connection.
    pub async fn lost(&mut self) {
        std::future::poll_fn(|cx| self.poll_lost(cx)).await;
    }

    /// See [`Place::lost`]. Ready once.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.taken).poll(cx).map(|_| ())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut holders = lock(&self.holders);
        let Some(held) = holders.by_source.get_mut(&self.source) else {
            return;
        };
        if let Ok(at) = held.binary_search_by_key(&self.number, |(number, _)| *number) {
            held.remove(at);
            holders.count -= 1;
            holders.forget_empty(self.source);
        }
    }
}

fn lock(holders: &Mutex<Holders>) -> MutexGuard<'_, Holders> {
    holders.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    async fn is_lost(place: &mut Place) -> bool {
        tokio::select! {
            biased;
            () = place.lost() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn the_eldest_of_the_greediest_source_makes_room() {
        let places = Places::new(3);
        let mut honest = places.admit(address(1));
        let mut greedy = [places.admit(address(2)), places.admit(address(2))];

        let mut newcomer = places.admit(address(3));
        assert!(is_lost(&mut greedy[0]).await, "the eldest of the greediest");
        assert!(!is_lost(&mut greedy[1]).await && !is_lost(&mut honest).await);

        // Who comes again and again takes its own places.
        let mut more = [places.admit(address(2)), places.admit(address(2))];
        assert!(is_lost(&mut greedy[1]).await && is_lost(&mut more[0]).await);
        assert!(!is_lost(&mut honest).await && !is_lost(&mut newcomer).await);
    }

    #[test]
    fn places_come_back_and_nobody_is_remembered() {
        let places = Places::new(2);
        drop([
            places.admit(address(1)),
            places.admit(None),
            places.admit(None),
        ]);

        let holders = lock(&places.holders);
        assert!(holders.by_source.is_empty() && holders.count == 0);
    }
}
