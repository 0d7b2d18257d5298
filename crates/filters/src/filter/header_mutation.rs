//! `envoy.filters.http.header_mutation`.

use meltemi_proto::envoy::extensions::filters::http::header_mutation::v3 as proto;

use crate::finding::{Rejection, Scope};
use crate::format::Place;
use crate::header_ops::HeaderOps;
use crate::http::context::{RequestContext, ResponseContext};

/// Changes to the heads of requests and responses.
#[derive(Debug, Clone, Default)]
pub struct HeaderMutation {
    request: HeaderOps,
    response: HeaderOps,
    most_specific_wins: bool,
}

impl HeaderMutation {
    /// Compiles the filter's message.
    pub fn compile(message: &proto::HeaderMutation, scope: &mut Scope) -> Result<Self, Rejection> {
        let proto::HeaderMutation {
            mutations,
            most_specific_header_mutations_wins,
        } = message;

        let mut own = Self::compile_mutations(mutations.as_ref(), scope)?;
        own.most_specific_wins = *most_specific_header_mutations_wins;
        Ok(own)
    }

    /// Compiles a route's message.
    pub fn compile_route(
        message: &proto::HeaderMutationPerRoute,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::HeaderMutationPerRoute { mutations } = message;
        Self::compile_mutations(mutations.as_ref(), scope)
    }

    fn compile_mutations(
        message: Option<&proto::Mutations>,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let Some(message) = message else {
            return Ok(Self::default());
        };
        let proto::Mutations {
            request_mutations,
            query_parameter_mutations,
            response_mutations,
            response_trailers_mutations,
            request_trailers_mutations,
        } = message;
        for (field, mutations) in [
            ("request_trailers_mutations", request_trailers_mutations),
            ("response_trailers_mutations", response_trailers_mutations),
        ] {
            scope.unsupported(field, !mutations.is_empty());
        }
        let has_query = !query_parameter_mutations.is_empty();
        scope.unsupported("query_parameter_mutations", has_query);

        Ok(Self {
            request: HeaderOps::compile_mutations(
                Place::FilterRequest,
                "request_mutations",
                request_mutations,
                scope,
            )?,
            response: HeaderOps::compile_mutations(
                Place::FilterResponse,
                "response_mutations",
                response_mutations,
                scope,
            )?,
            most_specific_wins: false,
        })
    }

    /// Changes a request: the filter's changes first, the route's last, or the other way round as
    /// configured.
    pub(crate) fn on_request(&self, route: Option<&Self>, cx: &mut RequestContext<'_>) {
        for own in self.ordered(route).into_iter().flatten() {
            cx.change(&own.request);
        }
    }

    /// Changes a response likewise.
    pub(crate) fn on_response(&self, route: Option<&Self>, cx: &mut ResponseContext<'_>) {
        for own in self.ordered(route).into_iter().flatten() {
            cx.change(&own.response);
        }
    }

    fn ordered<'a>(&'a self, route: Option<&'a Self>) -> [Option<&'a Self>; 2] {
        // Most specific wins: it is applied last. Envoy's default applies the route's first.
        match self.most_specific_wins {
            true => [Some(self), route],
            false => [route, Some(self)],
        }
    }
}
