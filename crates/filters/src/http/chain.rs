//! A compiled chain of HTTP filters.

use std::sync::Arc;

use super::HttpFilter;
use super::needs::Needs;
use super::settings::{Activation, FilterSettings, Override};

/// A connection manager's filters, compiled: those that are stepped, and what configuration lists
/// among them for the proxy itself.
#[derive(Debug, Default)]
pub struct HttpChain {
    slots: Box<[HttpFilterSlot]>,
    /// The places of filters that see responses, the last first.
    response: Box<[u16]>,
    needs: Needs,
    /// How requests are forwarded.
    pub router: Router,
    /// Istio's standard metrics, if they are wanted.
    pub stats: Option<Stats>,
    /// Messages of gRPC are counted (`envoy.filters.http.grpc_stats`).
    pub grpc_stats: bool,
}

/// A filter in a chain.
#[derive(Debug)]
pub struct HttpFilterSlot {
    /// Its name, by which routes address their settings.
    pub name: Arc<str>,
    pub filter: HttpFilter,
    /// Off unless a route turns it on.
    pub disabled: bool,
}

/// `envoy.filters.http.router`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Router {
    /// Set no `x-envoy-*` headers.
    pub suppress_envoy_headers: bool,
    /// Obey `x-envoy-expected-rq-timeout-ms`.
    pub respect_expected_timeout: bool,
}

/// Istio's `istio.stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// A request to a destination that is no known service is counted under the host that it asked
    /// for. Default true.
    pub host_header_fallback: bool,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            host_header_fallback: true,
        }
    }
}

impl HttpChain {
    /// A chain of these filters, in the order in which they see a request.
    pub fn new(slots: Vec<HttpFilterSlot>, router: Router) -> Self {
        // Compilers refuse chains whose places do not fit.
        let needs = slots.iter().map(|slot| slot.filter.needs());
        let mut response: Vec<u16> = (0_u16..)
            .zip(&slots)
            .filter(|(_, slot)| slot.filter.needs().response_head)
            .map(|(place, _)| place)
            .collect();
        response.reverse();
        Self {
            needs: needs.fold(Needs::default(), |sum, needs| sum | needs),
            response: response.into(),
            slots: slots.into(),
            router,
            stats: None,
            grpc_stats: false,
        }
    }

    /// The filters with their places, in the order in which they see a request.
    pub fn slots(&self) -> impl Iterator<Item = (u16, &HttpFilterSlot)> {
        (0_u16..).zip(&self.slots)
    }

    /// The filters that see responses, in that order.
    pub fn response_slots(&self) -> impl Iterator<Item = (u16, &HttpFilterSlot)> {
        let places = self.response.iter();
        places.filter_map(|place| Some((*place, self.slot(*place)?)))
    }

    /// The filter at a place.
    pub fn slot(&self, place: u16) -> Option<&HttpFilterSlot> {
        self.slots.get(usize::from(place))
    }

    /// The phases that one of the filters wants.
    pub fn needs(&self) -> Needs {
        self.needs
    }
}

impl HttpFilterSlot {
    /// Whether the filter runs for a request with these settings.
    pub fn activation<'a>(&self, settings: FilterSettings<'a>) -> Activation<'a> {
        match settings.most_specific() {
            Some(Override::Disabled) => Activation::Off,
            None if self.disabled => Activation::Off,
            _ => Activation::On(settings),
        }
    }
}
