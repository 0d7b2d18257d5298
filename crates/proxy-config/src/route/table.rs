//! A route table: hosts to virtual hosts, requests to routes.

use std::collections::HashMap;
use std::sync::Arc;

use meltemi_filters::http::{FilterSettings, Overrides};
use meltemi_filters::metadata::Metadata;
use meltemi_filters::{ConnInfo, RequestHead};
use smallvec::SmallVec;

use super::action::{Chosen, ClusterChoice, Forward};
use super::redirect::split_port;
use super::{HeaderOps, Route, Target, VirtualHost};
use crate::fast_hash::FastHash;

/// A route table, from a listener or over RDS. Source: Envoy `RouteConfiguration`.
#[derive(Debug)]
pub struct RouteTable {
    /// The resource's name.
    pub name: Arc<str>,
    /// Settings of all virtual hosts.
    pub settings: Arc<RouteSettings>,
    /// The virtual hosts, in the order of the message.
    pub hosts: Vec<Arc<VirtualHost>>,
    index: HostIndex,
}

/// Settings of all virtual hosts of a table.
#[derive(Debug, Default)]
pub struct RouteSettings {
    /// Request headers, applied after the virtual host's.
    pub request_headers: HeaderOps,
    /// Response headers, applied after the virtual host's.
    pub response_headers: HeaderOps,
    /// The table's headers are applied first and the weighted cluster's last; else the other way
    /// round.
    pub most_specific_wins: bool,
    /// Headers that are removed from requests from outside the mesh.
    pub internal_only_headers: Vec<Box<str>>,
    /// The port of a request's host does not count when its virtual host is chosen.
    pub ignore_port: bool,
    /// Filter settings of all requests.
    pub overrides: Overrides,
    /// Static metadata.
    pub metadata: Metadata,
}

/// What choosing a route depends on beside the request's head.
#[derive(Debug, Clone, Copy)]
pub struct RouteContext<'a> {
    /// The random number from which shares and weights of this request are drawn.
    pub random: u64,
    /// The dynamic metadata that filters have set, for routes with conditions on it.
    pub metadata: &'a Metadata,
    /// The connection, for routes with conditions on the client's certificate.
    pub conn: Option<&'a ConnInfo>,
}

/// The route of one request.
#[derive(Debug, Clone, Copy)]
pub struct RouteDecision<'a> {
    pub table: &'a RouteTable,
    pub host: &'a VirtualHost,
    pub route: &'a Route,
    /// What the route does with this request.
    pub chosen: Chosen<'a>,
    /// The decision's place in the table, by which [`RouteTable::at`] finds it again.
    pub position: Position,
}

/// A decision as numbers, which borrows nothing. Only the table that made it can read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    host: u32,
    route: u32,
    weighted: Option<u32>,
}

/// Numbers of virtual hosts, by a domain or by the fixed part of a wildcard.
type Hosts = HashMap<Box<str>, u32, FastHash>;

/// Finds the virtual host of a request's host.
#[derive(Debug, Default)]
struct HostIndex {
    exact: Hosts,
    /// `*.example.com` as `.example.com`, grouped by length, longest first.
    suffixes: Vec<(usize, Hosts)>,
    /// `example.*` as `example.`, likewise.
    prefixes: Vec<(usize, Hosts)>,
    any: Option<u32>,
}

impl RouteTable {
    /// Puts a table together. Fails where two virtual hosts claim a domain.
    pub(crate) fn assemble(
        name: Arc<str>,
        settings: Arc<RouteSettings>,
        hosts: Vec<Arc<VirtualHost>>,
    ) -> Result<Self, String> {
        let mut index = HostIndex::default();
        for (number, host) in hosts.iter().enumerate() {
            let number = u32::try_from(number).map_err(|_| "too many virtual hosts".to_owned())?;
            for domain in &host.domains {
                index.insert(domain, number).map_err(|()| {
                    format!(
                        "domain {domain:?} of virtual host {:?} belongs to another one already",
                        host.name
                    )
                })?;
            }
        }

        Ok(Self {
            name,
            settings,
            hosts,
            index,
        })
    }

    /// A table without hosts: every request is answered 404.
    pub fn empty(name: &str) -> Self {
        Self {
            name: name.into(),
            settings: Arc::default(),
            hosts: Vec::new(),
            index: HostIndex::default(),
        }
    }

    /// The route for a request; `None`: 404 with flag NR.
    pub fn select<'a>(
        &'a self,
        head: &RequestHead,
        context: &RouteContext<'_>,
    ) -> Option<RouteDecision<'a>> {
        let host_at = self.find_host(head.authority())?;
        let host = self.hosts.get(host_at as usize)?;
        let route_at = host
            .routes
            .iter()
            .position(|route| route.matcher.is_match(head, context))?;

        let weighted = match &host.routes[route_at].target {
            Target::Forward(action) => match &action.cluster {
                ClusterChoice::Weighted(clusters) => {
                    let point = match &clusters.header {
                        Some(header) => head
                            .get_str(header)
                            .and_then(|value| value.trim().parse().ok()),
                        None => None,
                    };
                    let (at, _) = clusters.pick(point.unwrap_or(context.random))?;
                    Some(u32::try_from(at).ok()?)
                }
                _ => None,
            },
            _ => None,
        };

        self.at(Position {
            host: host_at,
            route: u32::try_from(route_at).ok()?,
            weighted,
        })
    }

    /// The decision at a position, if the table has it.
    pub fn at(&self, position: Position) -> Option<RouteDecision<'_>> {
        let host = self.hosts.get(position.host as usize)?;
        let route = host.routes.get(position.route as usize)?;
        let chosen = match &route.target {
            Target::Forward(action) => Chosen::Forward(Forward {
                action,
                weighted: match (&action.cluster, position.weighted) {
                    (ClusterChoice::Weighted(clusters), Some(at)) => {
                        clusters.clusters.get(at as usize)
                    }
                    _ => None,
                },
            }),
            Target::Redirect(redirect) => Chosen::Redirect(redirect),
            Target::Direct(direct) => Chosen::Direct(direct),
            Target::NonForwarding => Chosen::NonForwarding,
        };

        Some(RouteDecision {
            table: self,
            host,
            route,
            chosen,
            position,
        })
    }

    /// The virtual host of a request with this authority.
    pub fn host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        self.find_host(authority)
            .and_then(|at| self.hosts.get(at as usize))
    }

    fn find_host(&self, authority: &str) -> Option<u32> {
        if self.index.exact.is_empty()
            && self.index.suffixes.is_empty()
            && self.index.prefixes.is_empty()
        {
            return self.index.any;
        }

        // RFC 9112 §3.2: a request may have an empty host. Only `*` takes it.
        if authority.is_empty() {
            return self.index.any;
        }
        let host = if self.settings.ignore_port {
            split_port(authority).0
        } else {
            authority
        };

        if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.index.find(host);
        }
        let mut lower: SmallVec<[u8; 128]> = SmallVec::from_slice(host.as_bytes());
        lower.make_ascii_lowercase();

        self.index.find(std::str::from_utf8(&lower).ok()?)
    }
}

impl HostIndex {
    fn insert(&mut self, domain: &str, host: u32) -> Result<(), ()> {
        if domain == "*" {
            return match self.any.replace(host) {
                None => Ok(()),
                Some(_) => Err(()),
            };
        }

        let (groups, key) = match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
            (Some(suffix), _) => (&mut self.suffixes, suffix),
            (None, Some(prefix)) => (&mut self.prefixes, prefix),
            (None, None) => {
                return self
                    .exact
                    .insert(domain.into(), host)
                    .map_or(Ok(()), |_| Err(()));
            }
        };

        let at = match groups.iter().position(|(length, _)| *length <= key.len()) {
            Some(at) if groups[at].0 == key.len() => at,
            at => {
                let at = at.unwrap_or(groups.len());
                groups.insert(at, (key.len(), HashMap::default()));
                at
            }
        };

        groups[at]
            .1
            .insert(key.into(), host)
            .map_or(Ok(()), |_| Err(()))
    }

    fn find(&self, host: &str) -> Option<u32> {
        // A trailing dot is part of the name here as it is for policies on hosts: both must see the
        // same host.
        self.exact
            .get(host)
            .copied()
            .or_else(|| self.find_wildcard(host))
            .or(self.any)
    }

    fn find_wildcard(&self, host: &str) -> Option<u32> {
        let bytes = host.as_bytes();

        // The wildcard stands for at least one character.
        let suffix = self
            .suffixes
            .iter()
            .filter(|(length, _)| *length < bytes.len())
            .find_map(|(length, group)| {
                host.get(bytes.len() - length..)
                    .and_then(|suffix| group.get(suffix))
            });

        let prefix = || {
            self.prefixes
                .iter()
                .filter(|(length, _)| *length < bytes.len())
                .find_map(|(length, group)| {
                    host.get(..*length).and_then(|prefix| group.get(prefix))
                })
        };

        suffix.or_else(prefix).copied()
    }
}

impl<'a> RouteDecision<'a> {
    /// The name by which causes call the route: its own, or its virtual host's where it has none.
    pub fn label(&self) -> &'a Arc<str> {
        match self.route.name.is_empty() {
            true => &self.host.name,
            false => &self.route.name,
        }
    }

    /// The settings for a filter: of the weighted cluster, route, virtual host and table.
    pub fn settings(&self, filter: &str) -> FilterSettings<'a> {
        let weighted = match self.chosen {
            Chosen::Forward(Forward {
                weighted: Some(weighted),
                ..
            }) => weighted.overrides.find(filter),
            _ => None,
        };

        FilterSettings([
            weighted,
            self.route.overrides.find(filter),
            self.host.overrides.find(filter),
            self.table.settings.overrides.find(filter),
        ])
    }

    /// Request header changes, in the order in which they apply.
    pub fn request_headers(&self) -> impl Iterator<Item = &'a HeaderOps> {
        let weighted = match self.chosen {
            Chosen::Forward(Forward {
                weighted: Some(weighted),
                ..
            }) => Some(&weighted.request_headers),
            _ => None,
        };

        self.ordered([
            weighted,
            Some(&self.route.request_headers),
            Some(&self.host.request_headers),
            Some(&self.table.settings.request_headers),
        ])
    }

    /// Response header changes, in the order in which they apply.
    pub fn response_headers(&self) -> impl Iterator<Item = &'a HeaderOps> {
        let weighted = match self.chosen {
            Chosen::Forward(Forward {
                weighted: Some(weighted),
                ..
            }) => Some(&weighted.response_headers),
            _ => None,
        };

        self.ordered([
            weighted,
            Some(&self.route.response_headers),
            Some(&self.host.response_headers),
            Some(&self.table.settings.response_headers),
        ])
    }

    fn ordered(
        &self,
        mut levels: [Option<&'a HeaderOps>; 4],
    ) -> impl Iterator<Item = &'a HeaderOps> + use<'a> {
        if self.table.settings.most_specific_wins {
            levels.reverse();
        }
        levels.into_iter().flatten().filter(|ops| !ops.is_empty())
    }
}
