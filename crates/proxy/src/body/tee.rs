//! The copy of a request's body and trailers, for another attempt or a mirror, and how much of such copies a
//! worker holds.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use http::HeaderMap;

/// Bytes of one body that are kept where configuration says nothing. Source: Envoy's default of
/// `per_connection_buffer_limit_bytes`.
pub const DEFAULT_LIMIT: u64 = 1024 * 1024;
/// Bytes that the copies of a worker may hold together before each of them gets
/// [`LIMIT_UNDER_PRESSURE`].
const WORKER: usize = 32 * 1024 * 1024;
/// Bytes of one body that are kept while the copies of the worker hold too much, whatever
/// configuration says: small requests can still be retried.
const LIMIT_UNDER_PRESSURE: u64 = 64 * 1024;

/// How a copy is read again: in pieces of this size, so that sending it costs little memory.
const PIECE: usize = 64 * 1024;

/// Counts the bytes that the copies of one worker hold.
#[derive(Debug, Clone, Default)]
pub struct CopyBudget(Rc<Cell<usize>>);

impl CopyBudget {
    /// How much of a body with this limit may be kept now.
    fn allows(&self, limit: u64) -> u64 {
        match self.0.get() < WORKER {
            true => limit,
            false => limit.min(LIMIT_UNDER_PRESSURE),
        }
    }
}

/// Bytes that a copy holds of the worker's budget; dropping this gives them back.
#[derive(Debug)]
struct Charge {
    budget: CopyBudget,
    bytes: usize,
}

impl Charge {
    fn set(&mut self, bytes: usize) {
        let held = &self.budget.0;
        held.set(held.get() - self.bytes + bytes);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Why there is no copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The body is longer than its limit.
    TooLong,
    /// The copies of the worker hold too much.
    Pressure,
    /// Nobody will read it.
    Unneeded,
}

impl Lost {
    /// As metrics and logs name it; `None` if nothing was lost that anybody wanted.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::TooLong => Some("body_too_long"),
            Self::Pressure => Some("too_many_bodies"),
            Self::Unneeded => None,
        }
    }
}

/// A whole body with its trailers. It is in the worker's budget for as long as this or a clone of
/// it lives.
#[derive(Debug, Clone, Default)]
pub struct KeptBody {
    /// The body.
    pub bytes: Bytes,
    /// The trailers.
    pub trailers: Option<HeaderMap>,
    /// The body's share of the worker's budget.
    _charge: Option<Rc<Charge>>,
}

/// A copy of the part of a body that went by so far.
#[derive(Debug)]
pub struct Tee {
    bytes: Vec<u8>,
    trailers: Option<HeaderMap>,
    limit: u64,
    lost: Option<Lost>,
    is_whole: bool,
    charge: Charge,
}

impl Tee {
    /// Keeps up to `limit` bytes, within the worker's budget.
    pub fn new(limit: u64, budget: CopyBudget) -> Self {
        Self {
            bytes: Vec::new(),
            trailers: None,
            limit,
            lost: None,
            is_whole: false,
            charge: Charge { budget, bytes: 0 },
        }
    }

    /// Why there is no copy; `None` while there is one.
    pub fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// Whether the whole body has gone by.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether neither a byte nor a trailer is kept.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.trailers.is_none()
    }

    /// The trailers.
    pub fn trailers(&self) -> Option<HeaderMap> {
        self.trailers.clone()
    }

    /// The copied bytes from `at` on, or the first of them; `None` at the end.
    pub fn piece(&self, at: usize) -> Option<Bytes> {
        let rest = self.bytes.get(at..)?;
        let piece = rest.get(..PIECE).unwrap_or(rest);
        (!piece.is_empty()).then(|| Bytes::copy_from_slice(piece))
    }

    /// Copies a piece of the body that goes by.
    pub fn see(&mut self, bytes: &[u8]) {
        if self.lost.is_some() {
            return;
        }

        let length = (self.bytes.len() + bytes.len()) as u64;
        if length > self.limit {
            self.give_up(Lost::TooLong);
        } else if length > self.charge.budget.allows(self.limit) {
            self.give_up(Lost::Pressure);
        } else {
            self.bytes.extend_from_slice(bytes);
            self.charge.set(self.bytes.capacity());
        }
    }

    /// The body has gone by to its end. The connection's limit on heads bounds the trailers.
    pub fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.is_whole = true;
        if self.lost.is_none() {
            self.trailers = trailers.cloned();
        }
    }

    /// Drops the copy.
    pub fn give_up(&mut self, why: Lost) {
        self.lost = Some(why);
        self.bytes = Vec::new();
        self.trailers = None;
        self.charge.set(0);
    }

    /// The body, if all of it was kept. `Err` says why there is none, and is `None` for a body that
    /// has not ended.
    pub fn into_body(self) -> Result<KeptBody, Option<Lost>> {
        match (self.lost, self.is_whole) {
            (None, true) => Ok(KeptBody {
                bytes: self.bytes.into(),
                trailers: self.trailers,
                _charge: Some(Rc::new(self.charge)),
            }),
            (lost, _) => Err(lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn a_body_is_kept_up_to_its_limit_and_read_in_pieces() {
        let budget = CopyBudget::default();
        let mut tee = Tee::new(100_000, budget.clone());
        tee.see(&vec![b'a'; PIECE]);
        tee.see(&vec![b'b'; 100_000 - PIECE]);
        assert_eq!(tee.lost(), None);

        let pieces: Vec<_> = [0, PIECE, 100_000]
            .iter()
            .map(|at| tee.piece(*at).map(|piece| piece.len()))
            .collect();
        assert_eq!(pieces, [Some(PIECE), Some(100_000 - PIECE), None]);

        tee.see(b"x");
        assert_eq!((tee.lost(), budget.0.get()), (Some(Lost::TooLong), 0));
    }

    #[test]
    fn a_worker_that_holds_much_keeps_only_small_bodies() {
        let budget = CopyBudget::default();
        let bodies: Vec<_> = (0..WORKER / MIB)
            .map(|_| {
                let mut tee = Tee::new(DEFAULT_LIMIT, budget.clone());
                tee.see(&vec![0; MIB]);
                tee.end(None);
                tee.into_body().expect("within the limit")
            })
            .collect();
        assert!(budget.0.get() >= WORKER, "mirrors hold what they send");

        let mut long = Tee::new(u64::MAX, budget.clone());
        let mut short = Tee::new(DEFAULT_LIMIT, budget.clone());
        long.see(&vec![0; 64 * 1024 + 1]);
        short.see(&vec![0; 64 * 1024]);
        assert_eq!((long.lost(), short.lost()), (Some(Lost::Pressure), None));

        drop((bodies, short));
        assert_eq!(budget.0.get(), 0);
    }
}
