//! Endpoints of a cluster.

use std::net::IpAddr;
use std::sync::Arc;

use meltemi_filters::matcher::Fraction;
use meltemi_filters::metadata::{Metadata, Value};
use meltemi_filters::{Rejection, Scope};
use meltemi_lb::{Balancer, Config, Health, Host, LocalitySpec};
use meltemi_proto::envoy::config::core::v3::HealthStatus;
use meltemi_proto::envoy::config::endpoint::v3 as proto;
use meltemi_types::Locality;

use crate::address::Address;

/// The endpoints of a cluster. Source: Envoy `ClusterLoadAssignment`.
#[derive(Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// The assignment's name: an EDS resource or the cluster.
    pub name: Arc<str>,
    /// The endpoints; an endpoint's number is its place.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The localities that they are in.
    pub localities: Vec<EndpointLocality>,
    /// In percent. Default 140.
    pub overprovisioning_factor: u32,
    /// Load that is dropped: category and share.
    pub drops: Vec<(Box<str>, Fraction)>,
}

/// A locality within a priority.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointLocality {
    /// Where.
    pub locality: Locality,
    /// Its priority.
    pub priority: u32,
    /// Its share; 0 takes nothing where localities are weighted.
    pub weight: u32,
    /// Metadata of all its endpoints.
    pub metadata: Metadata,
}

/// An endpoint.
#[derive(Debug, PartialEq)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// Further addresses, for happy eyeballs.
    pub additional_addresses: Vec<Address>,
    /// Its name, for `auto_host_rewrite` and health checks.
    pub hostname: Arc<str>,
    /// Its share. Default 1.
    pub weight: u32,
    /// What configuration says of its health.
    pub status: EndpointStatus,
    /// Its metadata: `envoy.lb`, `envoy.transport_socket_match`, `istio`.
    pub metadata: Metadata,
    /// Which of the localities it is in.
    pub locality: u32,
    /// Its priority.
    pub priority: u32,
    /// What consistent hashing hashes: metadata `envoy.lb: hash_key`, else the address.
    pub hash_key: Arc<str>,
}

/// What configuration says of an endpoint's health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum EndpointStatus {
    /// It is well, or nothing is known.
    #[default]
    Healthy,
    /// It is not.
    Unhealthy,
    /// It takes no new requests.
    Draining,
    /// A health check timed out.
    Timeout,
    /// It takes what others do not.
    Degraded,
}

impl EndpointStatus {
    /// As load balancing sees it.
    pub fn health(self) -> Health {
        match self {
            Self::Healthy => Health::Healthy,
            Self::Degraded => Health::Degraded,
            Self::Unhealthy | Self::Draining | Self::Timeout => Health::Unhealthy,
        }
    }
}

/// Envoy's bound on priorities.
const MAX_PRIORITY: u32 = 128;

impl EndpointSet {
    /// Compiles Envoy's message.
    pub fn compile(
        message: &proto::ClusterLoadAssignment,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let mut set = Self {
            name: message.cluster_name.as_str().into(),
            overprovisioning_factor: 140,
            ..Self::default()
        };

        if let Some(policy) = &message.policy {
            if let Some(factor) = &policy.overprovisioning_factor {
                set.overprovisioning_factor = factor.value.max(1);
            }
            scope.unsupported(
                "policy.endpoint_stale_after",
                policy.endpoint_stale_after.is_some(),
            );

            set.drops = policy
                .drop_overloads
                .iter()
                .map(|drop| {
                    let share =
                        Fraction::from_option(drop.drop_percentage.as_ref(), Fraction::NONE);
                    (drop.category.as_str().into(), share)
                })
                .collect();
        }

        scope.each("endpoints", &message.endpoints, |scope, group| {
            set.compile_locality(group, scope)
        })?;

        Ok(set)
    }

    #[allow(deprecated)] // the list in lb_config means the same as the older field
    fn compile_locality(
        &mut self,
        group: &proto::LocalityLbEndpoints,
        scope: &mut Scope,
    ) -> Result<(), Rejection> {
        if group.priority > MAX_PRIORITY {
            return scope.refuse(format!(
                "priority {} is above {MAX_PRIORITY}",
                group.priority
            ));
        }

        let number = u32::try_from(self.localities.len())
            .map_err(|_| scope.reject("too many localities"))?;
        let locality = group.locality.clone().unwrap_or_default();
        self.localities.push(EndpointLocality {
            locality: Locality {
                region: locality.region,
                zone: locality.zone,
                subzone: locality.sub_zone,
            },
            priority: group.priority,
            weight: group
                .load_balancing_weight
                .as_ref()
                .map_or(0, |weight| weight.value),
            metadata: Metadata::from_option(group.metadata.as_ref()),
        });

        let endpoints = match &group.lb_config {
            None => &group.lb_endpoints,
            Some(proto::locality_lb_endpoints::LbConfig::LoadBalancerEndpoints(list)) => {
                &list.lb_endpoints
            }
            Some(proto::locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(_)) => {
                return scope.refuse("LEDS is not supported");
            }
        };

        let compiled = scope.each("lb_endpoints", endpoints, |scope, endpoint| {
            Endpoint::compile(endpoint, number, group.priority, scope).map(Arc::new)
        })?;
        self.endpoints.extend(compiled);

        Ok(())
    }

    /// The endpoints as a balancer sees them.
    pub fn hosts(&self, hash_by_hostname: bool) -> Vec<Host> {
        self.endpoints
            .iter()
            .map(|endpoint| endpoint.host(hash_by_hostname))
            .collect()
    }

    /// A balancer over these endpoints, given their health (of which [`EndpointStatus::health`] is
    /// one part).
    pub fn balancer(
        &self,
        config: &Config,
        hash_by_hostname: bool,
        health: impl Fn(u32) -> Health,
    ) -> Balancer {
        let config = Config {
            overprovisioning_factor: self.overprovisioning_factor,
            ..config.clone()
        };

        let localities: Vec<LocalitySpec> = self
            .localities
            .iter()
            .map(|locality| LocalitySpec {
                weight: locality.weight,
            })
            .collect();

        Balancer::build(&config, &self.hosts(hash_by_hostname), &localities, health)
    }

    /// The share of requests that the endpoints' policy drops: the category, if this request is
    /// dropped. Each category draws its own number from `random`.
    pub fn drops(&self, mut random: u64) -> Option<&str> {
        let hit = self
            .drops
            .iter()
            .find(|(_, share)| share.hits(meltemi_lb::random::next(&mut random)));
        hit.map(|(category, _)| &**category)
    }
}

impl Endpoint {
    fn compile(
        message: &proto::LbEndpoint,
        locality: u32,
        priority: u32,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let endpoint = match &message.host_identifier {
            Some(proto::lb_endpoint::HostIdentifier::Endpoint(endpoint)) => endpoint,
            Some(proto::lb_endpoint::HostIdentifier::EndpointName(_)) => {
                return scope.refuse("named endpoints are unknown");
            }
            None => return scope.refuse("an endpoint without address"),
        };

        let address = Address::compile_required(endpoint.address.as_ref(), scope)?;
        let additional_addresses = scope.each(
            "additional_addresses",
            &endpoint.additional_addresses,
            |scope, more| Address::compile_required(more.address.as_ref(), scope),
        )?;

        let metadata = Metadata::from_option(message.metadata.as_ref());
        let hash_key = metadata
            .at("envoy.lb", &["hash_key"])
            .and_then(Value::as_str)
            .filter(|key| !key.is_empty());

        let status = match HealthStatus::try_from(message.health_status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy) => EndpointStatus::Healthy,
            Ok(HealthStatus::Unhealthy) | Err(_) => EndpointStatus::Unhealthy,
            Ok(HealthStatus::Draining) => EndpointStatus::Draining,
            Ok(HealthStatus::Timeout) => EndpointStatus::Timeout,
            Ok(HealthStatus::Degraded) => EndpointStatus::Degraded,
        };

        Ok(Self {
            hash_key: hash_key.map_or_else(|| address.to_string().into(), Into::into),
            additional_addresses,
            hostname: endpoint.hostname.as_str().into(),
            weight: message
                .load_balancing_weight
                .as_ref()
                .map_or(1, |weight| weight.value)
                .max(1),
            status,
            metadata,
            locality,
            priority,
            address,
        })
    }

    /// This endpoint at another address: one that its name resolves to.
    pub fn resolved(&self, ip: IpAddr) -> Self {
        let port = self.address.port().unwrap_or(0);
        let address = Address::Socket(std::net::SocketAddr::new(ip, port));

        // Logical names keep hashing by address, as Envoy does.
        let own_key = *self.hash_key != *self.address.to_string();

        Self {
            hash_key: if own_key {
                self.hash_key.clone()
            } else {
                address.to_string().into()
            },
            address,
            additional_addresses: Vec::new(),
            hostname: match (&*self.hostname, &self.address) {
                ("", Address::Name(name, _)) => (&**name).into(),
                _ => self.hostname.clone(),
            },
            weight: self.weight,
            status: self.status,
            metadata: self.metadata.clone(),
            locality: self.locality,
            priority: self.priority,
        }
    }

    fn host(&self, hash_by_hostname: bool) -> Host {
        let subset_values = match self.metadata.filter("envoy.lb") {
            Some(Value::Struct(fields)) => fields
                .iter()
                .map(|(key, value)| (key.clone(), crate::convert::canonical_value(value)))
                .collect(),
            _ => Vec::new(),
        };

        Host {
            weight: self.weight,
            priority: self.priority,
            locality: self.locality,
            hash_key: match hash_by_hostname && !self.hostname.is_empty() {
                true => self.hostname.clone(),
                false => self.hash_key.clone(),
            },
            subset_values,
        }
    }
}
