//! The phases that a chain's filters want, so that the proxy leaves out those that none wants.

use std::ops::BitOr;

use super::phase::Direction;

/// Phases beside the request's head, which every filter sees. Holding a body in a head phase needs
/// none of those of data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    pub response_head: bool,
    /// Every piece of the request's body.
    pub request_data: bool,
    /// Every piece of the response's body.
    pub response_data: bool,
    /// The end of the exchange.
    pub done: bool,
}

impl Needs {
    /// Whether a body streams through the filter.
    pub fn data(self, which: Direction) -> bool {
        match which {
            Direction::Request => self.request_data,
            Direction::Response => self.response_data,
        }
    }
}

impl BitOr for Needs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            response_head: self.response_head | other.response_head,
            request_data: self.request_data | other.request_data,
            response_data: self.response_data | other.response_data,
            done: self.done | other.done,
        }
    }
}
