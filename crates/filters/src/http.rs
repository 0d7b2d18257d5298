//! HTTP filters: a closed enum with one open arm, stepped by `match`.
//!
//! A filter is configuration; what lives in a stream is in its [`context`]. The [`phase`]s are the
//! same for all filters, so the proxy needs to know none of them.

pub(crate) mod chain;
pub(crate) mod context;
pub(crate) mod extension;
pub(crate) mod facts;
pub(crate) mod grpc_call;
pub(crate) mod needs;
pub(crate) mod own;
pub(crate) mod phase;
pub(crate) mod settings;
pub(crate) mod shared;

use std::sync::Arc;

pub use self::chain::{HttpChain, HttpFilterSlot, Router, Stats};
pub use self::context::{
    DataContext, DoneContext, Entropy, RequestContext, ResponseContext, StreamFacts, StreamState,
};
pub use self::extension::{Extension, ExtensionFactory};
pub use self::facts::HeaderFacts;
pub use self::needs::Needs;
pub use self::own::OwnStates;
pub use self::phase::{
    Beyond, Call, CallResult, DataEvent, Direction, Event, Fetch, FetchError, Fetched, Hold, Step,
};
pub use self::settings::{Activation, FilterSettings, Override, Overrides};
pub use self::shared::FilterShared;
use crate::alpn::AlpnOverrides;
use crate::filter::buffer::Buffer;
use crate::filter::ext_authz::ExtAuthz;
use crate::filter::fault::Fault;
use crate::filter::header_mutation::HeaderMutation;
use crate::filter::jwt_authn::JwtAuthn;
use crate::filter::peer_metadata::PeerMetadata;
use crate::filter::rate_limit::LocalRateLimit;
use crate::filter::rbac::Rbac;
use crate::filter::set_filter_state::SetFilterState;

/// Every HTTP filter there is.
#[derive(Debug)]
pub enum HttpFilter {
    /// `envoy.filters.http.rbac`.
    Rbac(Box<Rbac>),
    /// `envoy.filters.http.fault`.
    Fault(Box<Fault>),
    /// `envoy.filters.http.cors`, whose policy is the route's.
    Cors,
    /// Istio's `istio.alpn`: the ALPN that a request offers upstream.
    Alpn(Arc<AlpnOverrides>),
    /// Istio's `peer_metadata`: who the peer is.
    PeerMetadata(PeerMetadata),
    /// `envoy.filters.http.header_mutation`.
    HeaderMutation(Box<HeaderMutation>),
    /// `envoy.filters.http.set_filter_state`.
    SetFilterState(Box<SetFilterState>),
    /// `envoy.filters.http.local_ratelimit`.
    LocalRateLimit(Box<LocalRateLimit>),
    /// `envoy.filters.http.buffer`.
    Buffer(Buffer),
    /// `envoy.filters.http.ext_authz`.
    ExtAuthz(Box<ExtAuthz>),
    /// `envoy.filters.http.jwt_authn`.
    JwtAuthn(Box<JwtAuthn>),
    /// A filter of an optional crate.
    Extension(Arc<dyn Extension>),
}

impl HttpFilter {
    /// The phases beside the request's head in which the filter is stepped.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Extension(extension) => extension.needs(),
            Self::Cors
            | Self::PeerMetadata(_)
            | Self::HeaderMutation(_)
            | Self::LocalRateLimit(_)
            | Self::ExtAuthz(_) => Needs {
                response_head: true,
                ..Needs::default()
            },
            Self::Rbac(_)
            | Self::Fault(_)
            | Self::Alpn(_)
            | Self::SetFilterState(_)
            | Self::Buffer(_)
            | Self::JwtAuthn(_) => Needs::default(),
        }
    }

    /// Steps the filter in the request's phase of the head.
    pub fn on_request(
        &self,
        route: FilterSettings<'_>,
        event: Event<'_>,
        cx: &mut RequestContext<'_>,
    ) -> Step {
        match (self, route.most_specific()) {
            (Self::Rbac(_), Some(Override::Rbac(own))) => own.on_request(cx),
            (Self::Rbac(rbac), _) => rbac.on_request(cx),

            (Self::Fault(_), Some(Override::Fault(own))) => own.on_request(event, cx),
            (Self::Fault(fault), _) => fault.on_request(event, cx),

            (Self::Cors, Some(Override::Cors(policy))) => policy.on_request(cx),
            (Self::Cors, _) => Step::Continue,

            (Self::Alpn(overrides), _) => {
                cx.state.alpn = Some(overrides.clone());
                Step::Continue
            }

            (Self::PeerMetadata(peer), _) => {
                peer.on_request(cx);
                Step::Continue
            }

            (Self::HeaderMutation(mutation), setting) => {
                mutation.on_request(route_mutation(setting), cx);
                Step::Continue
            }

            (Self::SetFilterState(set), setting) => {
                set.on_request(cx);
                if let Some(Override::SetFilterState(own)) = setting {
                    own.on_request(cx);
                }
                Step::Continue
            }

            (Self::LocalRateLimit(_), Some(Override::LocalRateLimit(own))) => own.on_request(cx),
            (Self::LocalRateLimit(limit), _) => limit.on_request(cx),

            (Self::Buffer(_), Some(Override::Buffer(own))) => own.on_request(event, cx),
            (Self::Buffer(buffer), _) => buffer.on_request(event, cx),

            (Self::ExtAuthz(authz), _) => authz.on_request(&route.check_settings(), event, cx),

            (Self::JwtAuthn(tokens), Some(Override::TokenRequirement(name))) => {
                tokens.on_request(Some(name), cx)
            }
            (Self::JwtAuthn(tokens), _) => tokens.on_request(None, cx),

            (Self::Extension(extension), _) => extension.on_request(event, cx),
        }
    }

    /// Steps the filter in the response's phase of the head, from upstream or the proxy itself.
    pub fn on_response(
        &self,
        route: FilterSettings<'_>,
        event: Event<'_>,
        cx: &mut ResponseContext<'_>,
    ) -> Step {
        match (self, route.most_specific()) {
            (Self::Cors, Some(Override::Cors(policy))) => policy.on_response(cx),
            (Self::PeerMetadata(peer), _) => peer.on_response(cx),
            (Self::HeaderMutation(mutation), setting) => {
                mutation.on_response(route_mutation(setting), cx);
            }
            (Self::LocalRateLimit(_), Some(Override::LocalRateLimit(own))) => own.on_response(cx),
            (Self::LocalRateLimit(limit), _) => limit.on_response(cx),
            (Self::ExtAuthz(authz), _) => authz.on_response(cx),
            (Self::Extension(extension), _) => return extension.on_response(event, cx),
            (
                Self::Rbac(_)
                | Self::Fault(_)
                | Self::Cors
                | Self::Alpn(_)
                | Self::SetFilterState(_)
                | Self::Buffer(_)
                | Self::JwtAuthn(_),
                _,
            ) => {}
        }

        Step::Continue
    }

    /// Steps the filter with a piece of a body. Only filters that [`HttpFilter::needs`] it are.
    pub fn on_data(&self, which: Direction, event: DataEvent, cx: &mut DataContext<'_>) -> Step {
        match self {
            Self::Extension(extension) => extension.on_data(which, event, cx),
            _ => Step::Continue,
        }
    }

    /// Tells the filter that the exchange is over. Only filters that [`HttpFilter::needs`] it are
    /// told.
    pub fn on_done(&self, cx: &mut DoneContext<'_>) {
        if let Self::Extension(extension) = self {
            extension.on_done(cx);
        }
    }
}

fn route_mutation(setting: Option<&Override>) -> Option<&HeaderMutation> {
    match setting {
        Some(Override::HeaderMutation(own)) => Some(own),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
