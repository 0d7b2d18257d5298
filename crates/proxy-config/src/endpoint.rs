//! Endpoints of a cluster.

use std::net::IpAddr;
use std::sync::Arc;

use meltemi_filters::matcher::Fraction;
use meltemi_filters::metadata::{Metadata, Value};
use meltemi_filters::{Rejection, Scope};
use meltemi_lb::{Balancer, Config, Health, Host, LocalitySpec, SubsetMatch};
use meltemi_proto::envoy::config::core::v3::HealthStatus;
use meltemi_proto::envoy::config::endpoint::v3 as proto;
use meltemi_types::Locality;

use crate::address::Address;
use crate::convert::number;

/// The endpoints of a cluster. Source: Envoy `ClusterLoadAssignment`.
#[derive(Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// The assignment's name: an EDS resource or the cluster.
    pub name: Arc<str>,
    /// The endpoints. A balancer knows an endpoint by its place in this list.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The localities that the endpoints are in.
    pub localities: Vec<EndpointLocality>,
    /// How much of a priority's endpoints may be unhealthy before load goes to the next priority,
    /// in percent. Default 140.
    pub overprovisioning_factor: u32,
    /// The share of requests that each category drops.
    pub drops: Vec<(Box<str>, Fraction)>,
}

/// A locality within a priority.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointLocality {
    /// Region, zone and subzone.
    pub locality: Locality,
    /// Its priority; 0 is served first.
    pub priority: u32,
    /// Its share of the load where localities are weighted; 0 takes none.
    pub weight: u32,
    /// Metadata of all its endpoints.
    pub metadata: Metadata,
}

/// An endpoint.
#[derive(Debug, PartialEq)]
pub struct Endpoint {
    /// The address to connect to.
    pub address: Address,
    /// Further addresses, which are tried where the first does not answer.
    pub additional_addresses: Vec<Address>,
    /// Its host name, for `auto_host_rewrite`; empty if it has none.
    pub hostname: Arc<str>,
    /// Its share of the load within its locality. Default 1.
    pub weight: u32,
    /// Its health, according to the configuration.
    pub status: EndpointStatus,
    /// Its metadata: `envoy.lb`, `envoy.transport_socket_match`, `istio`.
    pub metadata: Metadata,
    /// The place of its locality in [`EndpointSet::localities`].
    pub locality: u32,
    /// Its priority; 0 is served first.
    pub priority: u32,
    /// The text that consistent hashing hashes: metadata `envoy.lb: hash_key`, else the address.
    pub hash_key: Arc<str>,
}

/// The health of an endpoint, according to the configuration. Source: Envoy `HealthStatus`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum EndpointStatus {
    /// It is healthy, or its health is unknown.
    #[default]
    Healthy,
    /// It is unhealthy.
    Unhealthy,
    /// It takes no new requests.
    Draining,
    /// A health check timed out.
    Timeout,
    /// It takes load only where healthy endpoints are too few.
    Degraded,
}

impl EndpointStatus {
    /// A status that is unknown may be one that must take no load.
    fn compile(status: i32) -> Self {
        match HealthStatus::try_from(status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Self::Healthy,
            Ok(HealthStatus::Unhealthy) | Err(_) => Self::Unhealthy,
            Ok(HealthStatus::Draining) => Self::Draining,
            Ok(HealthStatus::Timeout) => Self::Timeout,
            Ok(HealthStatus::Degraded) => Self::Degraded,
        }
    }

    /// The health that load balancing goes by.
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
/// Envoy's default for `overprovisioning_factor`, in percent.
const DEFAULT_OVERPROVISIONING: u32 = 140;

impl EndpointSet {
    pub(crate) fn compile(
        message: &proto::ClusterLoadAssignment,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let proto::ClusterLoadAssignment {
            cluster_name,
            endpoints,
            policy,
            // An endpoint that would be one of these by name is refused.
            named_endpoints: _,
        } = message;

        let proto::cluster_load_assignment::Policy {
            drop_overloads,
            overprovisioning_factor,
            endpoint_stale_after,
            weighted_priority_health,
        } = policy.clone().unwrap_or_default();

        scope.within("policy", |scope| {
            let (stale_after, by_weight) = (&endpoint_stale_after, &weighted_priority_health);
            scope.unsupported("endpoint_stale_after", stale_after.is_some());
            scope.unsupported("weighted_priority_health", *by_weight);
        });

        let drops = drop_overloads.iter().map(|drop| {
            let share = Fraction::from_option(drop.drop_percentage.as_ref(), Fraction::NONE);
            (drop.category.as_str().into(), share)
        });

        let mut set = Self {
            name: cluster_name.as_str().into(),
            overprovisioning_factor: number(
                overprovisioning_factor.as_ref(),
                DEFAULT_OVERPROVISIONING,
            )
            .max(1),
            drops: drops.collect(),
            ..Self::default()
        };
        scope.each("endpoints", endpoints, |scope, group| {
            set.add_locality(group, scope)
        })?;

        Ok(set)
    }

    fn add_locality(
        &mut self,
        message: &proto::LocalityLbEndpoints,
        scope: &mut Scope,
    ) -> Result<(), Rejection> {
        use proto::locality_lb_endpoints::LbConfig;

        let proto::LocalityLbEndpoints {
            locality,
            metadata,
            lb_endpoints,
            load_balancing_weight,
            priority,
            lb_config,
            // Envoy does not implement it either.
            proximity: _,
        } = message;

        if *priority > MAX_PRIORITY {
            return scope.refuse(format!("priority {priority} is above {MAX_PRIORITY}"));
        }

        let number = u32::try_from(self.localities.len())
            .map_err(|_| scope.reject("too many localities"))?;
        let locality = locality.clone().unwrap_or_default();
        self.localities.push(EndpointLocality {
            locality: Locality {
                region: locality.region,
                zone: locality.zone,
                subzone: locality.sub_zone,
            },
            priority: *priority,
            weight: load_balancing_weight
                .as_ref()
                .map_or(0, |weight| weight.value),
            metadata: Metadata::from_option(metadata.as_ref()),
        });

        #[expect(deprecated, reason = "the older list means the same as the newer one")]
        let endpoints = match lb_config {
            None => lb_endpoints,
            Some(LbConfig::LoadBalancerEndpoints(list)) => &list.lb_endpoints,
            Some(LbConfig::LedsClusterLocalityConfig(_)) => {
                return scope.refuse("LEDS is not supported");
            }
        };

        let compiled = scope.each("lb_endpoints", endpoints, |scope, endpoint| {
            Endpoint::compile(endpoint, number, *priority, scope).map(Arc::new)
        })?;
        self.endpoints.extend(compiled);

        Ok(())
    }

    /// A set without endpoints, for a resource that does not exist.
    pub fn empty(name: &str) -> Self {
        Self {
            name: name.into(),
            overprovisioning_factor: DEFAULT_OVERPROVISIONING,
            ..Self::default()
        }
    }

    /// The endpoints as a balancer sees them.
    fn hosts(&self, hash_by_hostname: bool) -> Vec<Host> {
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

    /// The category that drops this request, if one does. Each category draws its own number from
    /// `random`.
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
        use proto::lb_endpoint::HostIdentifier;

        let proto::LbEndpoint {
            health_status,
            metadata,
            load_balancing_weight,
            host_identifier,
        } = message;

        let endpoint = match host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
            Some(HostIdentifier::EndpointName(_)) => {
                return scope.refuse("named endpoints are unknown");
            }
            None => return scope.refuse("an endpoint without address"),
        };
        let proto::Endpoint {
            address,
            hostname,
            additional_addresses,
            // Concerns active health checks, of which there are none.
            health_check_config: _,
            // Names the endpoint in statistics of Envoy's.
            observability_name: _,
        } = endpoint;

        let address = Address::compile_required(address.as_ref(), scope)?;
        let additional_addresses = scope.each(
            "additional_addresses",
            additional_addresses,
            |scope, proto::endpoint::AdditionalAddress { address }| {
                Address::compile_required(address.as_ref(), scope)
            },
        )?;

        let metadata = Metadata::from_option(metadata.as_ref());
        let hash_key = metadata
            .at("envoy.lb", &["hash_key"])
            .and_then(Value::as_str)
            .filter(|key| !key.is_empty());

        Ok(Self {
            hash_key: hash_key.map_or_else(|| address.to_string().into(), Into::into),
            additional_addresses,
            hostname: hostname.as_str().into(),
            weight: number(load_balancing_weight.as_ref(), 1).max(1),
            status: EndpointStatus::compile(*health_status),
            metadata,
            locality,
            priority,
            address,
        })
    }

    /// This endpoint at an address that its name resolves to.
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

    /// Whether its metadata (`envoy.lb`) has all of these values; of a list one element is enough.
    pub fn has_metadata(&self, wanted: &SubsetMatch) -> bool {
        let Some(Value::Struct(fields)) = self.metadata.filter("envoy.lb") else {
            return false;
        };
        let is = |value: &Value, wanted: &str| *crate::convert::canonical_value(value) == *wanted;

        wanted.iter().all(|(key, wanted)| match fields.get(key) {
            Some(Value::List(values)) => values.iter().any(|value| is(value, wanted)),
            Some(value) => is(value, wanted),
            None => false,
        })
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
