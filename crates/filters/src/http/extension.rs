//! The open arm: filters of optional crates.

use std::fmt::Debug;
use std::sync::Arc;

use meltemi_proto::Any;

use super::context::{DataContext, DoneContext, RequestContext, ResponseContext};
use super::needs::Needs;
use super::phase::{DataEvent, Direction, Event, Step};
use crate::finding::{Rejection, Scope};

/// A filter that another crate brings. As with built-in ones nothing in it may wait, and a stream's
/// state is kept through its context.
pub trait Extension: Debug + Send + Sync {
    /// The phases beside the request's head in which it wants to be stepped.
    fn needs(&self) -> Needs;

    /// The request, before it is forwarded.
    fn on_request(&self, _event: Event<'_>, _cx: &mut RequestContext<'_>) -> Step {
        Step::Continue
    }

    /// The response, before it is sent.
    fn on_response(&self, _event: Event<'_>, _cx: &mut ResponseContext<'_>) -> Step {
        Step::Continue
    }

    /// A piece of a body that streams by.
    fn on_data(&self, _which: Direction, _event: DataEvent, _cx: &mut DataContext<'_>) -> Step {
        Step::Continue
    }

    /// The exchange is over.
    fn on_done(&self, _cx: &mut DoneContext<'_>) {}
}

/// Makes filters of one kind.
pub trait ExtensionFactory: Debug + Send + Sync {
    /// The message that configures it, as in a type URL: `envoy.extensions.filters.http.x.v3.X`.
    fn message(&self) -> &str;

    /// Compiles its configuration.
    fn compile(&self, config: &Any, scope: &mut Scope) -> Result<Arc<dyn Extension>, Rejection>;
}
