//! `x-envoy-decorator-operation`: the header in which the proxies of a call tell each other the
//! name of the operation. Source: Envoy `ConnectionManagerImpl::ActiveStream::traceRequest`.

use std::sync::Arc;

use meltemi_filters::head::{Fields, Known};
use meltemi_proxy_config::listener::Direction;

const NAME: &str = "x-envoy-decorator-operation";

/// Tells the upstream's proxy the route's operation, or takes the caller's out of the request.
/// Returns the operation that the response tells the caller.
pub fn request(
    direction: Direction,
    operation: Option<&Arc<str>>,
    fields: &mut Fields,
) -> Option<Arc<str>> {
    if direction == Direction::Outbound {
        if let Some(operation) = operation {
            fields.set(NAME, operation.as_bytes());
        }
        return None;
    }

    // The name that the caller gives to its call counts before our own.
    let is_named = fields
        .known(Known::XEnvoyDecoratorOperation)
        .is_some_and(|named| !named.is_empty());
    fields.remove_known(Known::XEnvoyDecoratorOperation);

    operation.filter(|_| !is_named).cloned()
}

/// Tells the caller's proxy the operation, or keeps from the application what the upstream's proxy
/// has told.
pub fn response(direction: Direction, operation: Option<&str>, fields: &mut Fields) {
    match (direction, operation) {
        (Direction::Outbound, _) => {
            fields.remove_known(Known::XEnvoyDecoratorOperation);
        }
        (_, Some(operation)) => fields.set(NAME, operation.as_bytes()),
        (_, None) => {}
    }
}
