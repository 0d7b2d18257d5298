//! Settings that routes have for filters.

use smallvec::SmallVec;

use crate::filter::buffer::Buffer;
use crate::filter::cors::CorsPolicy;
use crate::filter::ext_authz::CheckSettings;
use crate::filter::fault::Fault;
use crate::filter::header_mutation::HeaderMutation;
use crate::filter::rate_limit::LocalRateLimit;
use crate::filter::rbac::Rbac;
use crate::filter::set_filter_state::SetFilterState;

/// A filter's settings where they differ from those of the chain.
#[derive(Debug)]
pub enum Override {
    /// The filter is off.
    Disabled,
    /// The filter is on, even if the chain has it off.
    Enabled,
    /// `envoy.filters.http.rbac`.
    Rbac(Box<Rbac>),
    /// `envoy.filters.http.fault`.
    Fault(Box<Fault>),
    /// `envoy.filters.http.cors`.
    Cors(Box<CorsPolicy>),
    /// `envoy.filters.http.header_mutation`.
    HeaderMutation(Box<HeaderMutation>),
    /// `envoy.filters.http.set_filter_state`.
    SetFilterState(Box<SetFilterState>),
    /// `envoy.filters.http.local_ratelimit`.
    LocalRateLimit(Box<LocalRateLimit>),
    /// `envoy.filters.http.buffer`.
    Buffer(Buffer),
    /// `envoy.filters.http.ext_authz`.
    ExtAuthz(Box<CheckSettings>),
    /// `envoy.filters.http.jwt_authn`: the name of a requirement.
    TokenRequirement(Box<str>),
}

/// Settings of one route, virtual host, weighted cluster or table, by the filter's name.
#[derive(Debug, Default)]
pub struct Overrides(Vec<(Box<str>, Override)>);

impl Overrides {
    /// Settings by filter name.
    pub fn new(settings: Vec<(Box<str>, Override)>) -> Self {
        Self(settings)
    }

    /// With one more.
    pub fn with(mut self, filter: Box<str>, setting: Override) -> Self {
        self.0.push((filter, setting));
        self
    }

    /// The settings for a filter. Nearly always there is nothing to search.
    pub fn find(&self, filter: &str) -> Option<&Override> {
        self.0
            .iter()
            .find(|(name, _)| &**name == filter)
            .map(|(_, setting)| setting)
    }
}

/// All settings that a request's route has for one filter, the most specific first: weighted
/// cluster, route, virtual host, table.
#[derive(Debug, Clone, Copy, Default)]
pub struct FilterSettings<'a>(pub [Option<&'a Override>; 4]);

impl<'a> FilterSettings<'a> {
    /// The settings that count where they are not merged.
    pub fn most_specific(self) -> Option<&'a Override> {
        self.iter().next()
    }

    fn iter(self) -> impl Iterator<Item = &'a Override> {
        self.0.into_iter().flatten()
    }

    /// The settings of external authorization, which are merged, the most specific first.
    pub(crate) fn check_settings(self) -> SmallVec<[&'a CheckSettings; 4]> {
        let settings = self.iter().filter_map(|setting| match setting {
            Override::ExtAuthz(settings) => Some(&**settings),
            _ => None,
        });
        settings.collect()
    }
}

/// Whether a filter runs for a request.
#[derive(Debug, Clone, Copy)]
pub enum Activation<'a> {
    /// It is passed over.
    Off,
    /// It runs, with its own configuration and what the route sets.
    On(FilterSettings<'a>),
}
