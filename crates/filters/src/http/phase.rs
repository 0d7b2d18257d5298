//! The vocabulary of the phases: events that a filter sees, and the steps that it answers with.
//!
//! The phases of an exchange, in order: the request's head, the request's data, the response's
//! head, the response's data, done. A filter is stepped with an [`Event`] and answers with a
//! [`Step`]. It never waits by itself: the proxy performs its [`Call`] and steps it again with the
//! result.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::head::{Fields, RequestHead, ResponseHead};
use crate::reply::LocalReply;

/// Which message of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the upstream.
    Request,
    /// From the upstream, or the proxy itself, to the client.
    Response,
}

/// Why a filter is stepped in a head phase.
#[derive(Debug)]
pub enum Event<'a> {
    /// The head has come.
    Head,
    /// The filter asked for the body with [`Step::Hold`], and as much as it asked for is held.
    Held {
        /// The body so far.
        body: &'a [u8],
        /// Nothing follows.
        ended: bool,
    },
    /// The call that the filter asked for is done.
    Called(CallResult),
}

/// Why a filter is stepped in a data phase.
#[derive(Debug)]
pub enum DataEvent {
    /// A piece of the body is in [`DataContext::data`](super::context::DataContext::data).
    Piece,
    /// The call that the filter asked for is done; the piece is still there.
    Called(CallResult),
}

/// The answer of a filter.
#[derive(Debug)]
pub enum Step {
    /// Go on with the next filter.
    Continue,
    /// End the exchange with this response. In a data phase whose response head is on its way
    /// already, the exchange is broken off instead.
    Reply(Box<LocalReply>),
    /// Perform the call, then step the same filter with its result.
    Call(Call),
    /// Hold the message at this filter. In a head phase the filter is stepped again with
    /// [`Event::Held`]; in a data phase the next piece is added to the one that is held.
    Hold(Hold),
}

impl From<LocalReply> for Step {
    fn from(reply: LocalReply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// How much of a body a filter wants held before it is stepped again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// In bytes.
    pub limit: usize,
    /// What happens to a body that is longer.
    pub beyond: Beyond,
}

/// What happens to a body that is longer than the limit of a [`Hold`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// The message is refused: a request with 413, a response with 500.
    Refuse,
    /// The filter is stepped with the held bytes; the sender is held back meanwhile.
    Deliver,
}

/// What a filter cannot do itself, since it does no IO.
#[derive(Debug)]
pub enum Call {
    /// Let time pass.
    Sleep(Duration),
    /// Ask another service.
    Fetch(Box<Fetch>),
}

/// A request of the proxy's own. A call of gRPC is one too: the filter frames its message, see
/// [`crate::grpc`].
#[derive(Debug)]
pub struct Fetch {
    /// The cluster that is asked.
    pub cluster: Arc<str>,
    /// The request's head; framing fields are the proxy's business.
    pub head: RequestHead,
    /// The whole body.
    pub body: Bytes,
    /// The response must be whole by then; `None` waits for as long as the client does.
    pub timeout: Option<Duration>,
    /// The longest response body that is read.
    pub max_response: usize,
}

/// The result of a [`Call`].
#[derive(Debug)]
pub enum CallResult {
    /// The time has passed.
    Slept,
    /// The other service answered, or did not.
    Fetched(Result<Box<Fetched>, FetchError>),
}

/// A response to a [`Fetch`].
#[derive(Debug, Default)]
pub struct Fetched {
    pub head: ResponseHead,
    /// Its whole body.
    pub body: Bytes,
    /// Its trailers, empty if there are none.
    pub trailers: Fields,
}

/// Why a [`Fetch`] has no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct FetchError {
    /// Words that name what failed.
    pub reason: Box<str>,
    /// The request cannot be written in the service's protocol. Where it carries what a client
    /// sent, the client chooses whether this happens: no filter may take it for an outage.
    pub is_unsendable: bool,
}
