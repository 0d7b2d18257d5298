//! `envoy.filters.http.buffer`: a request is forwarded once its whole body has come.

use meltemi_proto::envoy::extensions::filters::http::buffer::v3 as proto;

use crate::digits;
use crate::finding::{Rejection, Scope};
use crate::head::Known;
use crate::http::context::RequestContext;
use crate::http::phase::{Beyond, Event, Hold, Step};

/// How long a body may be that is buffered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    max_request_bytes: usize,
}

impl Buffer {
    /// Compiles the filter's message.
    pub fn compile(message: &proto::Buffer, scope: &mut Scope) -> Result<Self, Rejection> {
        let proto::Buffer { max_request_bytes } = message;
        match max_request_bytes.as_ref().map(|max| max.value) {
            None | Some(0) => scope.refuse("max_request_bytes must be above 0"),
            Some(max) => Ok(Self {
                // Lossless: the proxy is built for 64-bit machines.
                max_request_bytes: max as usize,
            }),
        }
    }

    /// Compiles a route's message; `None` turns the filter off.
    pub fn compile_route(
        message: &proto::BufferPerRoute,
        scope: &mut Scope,
    ) -> Result<Option<Self>, Rejection> {
        match scope.required("override", message.r#override.as_ref())? {
            proto::buffer_per_route::Override::Disabled(true) => Ok(None),
            proto::buffer_per_route::Override::Disabled(false) => {
                scope.refuse("disabled must be true")
            }
            proto::buffer_per_route::Override::Buffer(buffer) => {
                Self::compile(buffer, scope).map(Some)
            }
        }
    }

    pub(crate) fn on_request(self, event: Event<'_>, cx: &mut RequestContext<'_>) -> Step {
        match event {
            Event::Head if cx.has_body => Step::Hold(Hold {
                limit: self.max_request_bytes,
                beyond: Beyond::Refuse,
            }),
            Event::Head | Event::Called(_) => Step::Continue,
            Event::Held { body, .. } => {
                // The length is known now, so the upstream need not be sent chunks.
                if !cx.head.fields().has(Known::ContentLength) {
                    let mut length = Vec::new();
                    digits::integer(body.len(), &mut length);
                    cx.head.fields_mut().append("content-length", &length);
                }
                Step::Continue
            }
        }
    }
}
