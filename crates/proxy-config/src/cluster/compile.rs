//! Compiling clusters.

use meltemi_filters::{Rejection, Scope};
use meltemi_lb::{Fallback, Policy, RingHashFunction, SubsetConfig, SubsetMatch, SubsetSelector};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::load_balancing_policies as policies;
use meltemi_proto::envoy::extensions::upstreams::http::v3 as upstream;
use proto::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy};

use super::*;
use crate::convert::{boolean, canonical_value, http2_options, keepalive, limit, number};
use crate::tls::compile::type_name;

/// The key of HTTP settings in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

impl Cluster {
    pub(crate) fn compile(message: &proto::Cluster, scope: &mut Scope) -> Result<Self, Rejection> {
        if message.name.is_empty() {
            return scope.refuse("a cluster without name");
        }
        if message.transport_socket_matcher.is_some() {
            return scope.refuse("transport_socket_matcher is unknown; use transport_socket_matches");
        }
        let discovery = compile_discovery(message, scope)?;
        let exchanges_metadata = compile_filters(message, scope)?;
        let (protocol, http) = compile_http(message, scope)?;
        let common = message.common_lb_config.clone().unwrap_or_default();
        let hashing = common.consistent_hashing_lb_config.as_ref();
        scope.unsupported(
            "common_lb_config.consistent_hashing_lb_config.hash_balance_factor",
            hashing.is_some_and(|hashing| hashing.hash_balance_factor.is_some()),
        );
        scope.unsupported("preconnect_policy", message.preconnect_policy.is_some());
        scope.unsupported("upstream_config", message.upstream_config.is_some());
        // Endpoints are as healthy as EDS and outlier detection say; nobody is probed.
        scope.unsupported("health_checks", !message.health_checks.is_empty());
        scope.unsupported("alt_stat_name", !message.alt_stat_name.is_empty());
        scope.unsupported("per_connection_buffer_limit_bytes", message.per_connection_buffer_limit_bytes.is_some());
        scope.unsupported("close_connections_on_host_health_failure", message.close_connections_on_host_health_failure);
        scope.unsupported("ignore_health_on_host_removal", message.ignore_health_on_host_removal);
        let (lb, hash_by_hostname) = compile_lb(message, &common, scope)?;
        Ok(Self {
            name: message.name.as_str().into(),
            alt_stat_name: Some(message.alt_stat_name.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            discovery,
            lb,
            hash_by_hostname: hash_by_hostname || hashing.is_some_and(|hashing| hashing.use_hostname_for_hashing),
            connect_timeout: scope
                .duration("connect_timeout", message.connect_timeout.as_ref())?
                .filter(|timeout| !timeout.is_zero())
                .unwrap_or(Duration::from_secs(5)),
            breakers: compile_breakers(message.circuit_breakers.as_ref(), scope),
            outlier: match &message.outlier_detection {
                None => None,
                Some(outlier) => {
                    Some(scope.within("outlier_detection", |scope| OutlierDetection::compile(outlier, scope))?)
                }
            },
            health_checks: scope
                .each("health_checks", &message.health_checks, |scope, check| HealthCheck::compile(check, scope))?
                .into_iter()
                .flatten()
                .collect(),
            protocol,
            http,
            transport: UpstreamTransport::compile(message.transport_socket.as_ref(), scope)?,
            transport_matches: scope.each(
                "transport_socket_matches",
                &message.transport_socket_matches,
                |scope, matcher| {
                    let criteria = matcher.r#match.as_ref().map(|fields| fields.fields.iter()).into_iter().flatten();
                    let mut criteria: Vec<(Box<str>, Value)> =
                        criteria.map(|(key, value)| (key.as_str().into(), Value::from_proto(value))).collect();
                    criteria.sort_by(|(a, _), (b, _)| a.cmp(b));
                    Ok(TransportMatch {
                        name: matcher.name.as_str().into(),
                        criteria,
                        transport: UpstreamTransport::compile(matcher.transport_socket.as_ref(), scope)?,
                    })
                },
            )?,
            bind: match &message.upstream_bind_config {
                None => None,
                Some(bind) => Some(scope.within("upstream_bind_config", |scope| UpstreamBind::compile(bind, scope))?),
            },
            keepalive: message
                .upstream_connection_options
                .as_ref()
                .and_then(|options| options.tcp_keepalive.as_ref())
                .map(keepalive),
            buffer_limit: number(message.per_connection_buffer_limit_bytes.as_ref(), 1 << 20),
            exchanges_metadata,
            close_on_health_failure: message.close_connections_on_host_health_failure,
            ignore_health_on_removal: message.ignore_health_on_host_removal,
            pool_per_downstream: message.connection_pool_per_downstream_connection,
            metadata: Metadata::from_option(message.metadata.as_ref()),
        })
    }
}

fn compile_discovery(message: &proto::Cluster, scope: &mut Scope) -> Result<Discovery, Rejection> {
    let kind = match &message.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => {
            DiscoveryType::try_from(*kind).map_err(|_| scope.reject(format!("unknown type {kind}")))?
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return scope.refuse(format!("unknown cluster type {:?}", custom.name));
        }
    };
    let own = |scope: &mut Scope| -> Result<Arc<EndpointSet>, Rejection> {
        let Some(assignment) = &message.load_assignment else { return Ok(Arc::default()) };
        scope.within("load_assignment", |scope| EndpointSet::compile(assignment, scope)).map(Arc::new)
    };
    Ok(match kind {
        DiscoveryType::Static => {
            let set = own(scope)?;
            if set.endpoints.iter().any(|endpoint| matches!(endpoint.address, Address::Name(..))) {
                return scope.refuse("a STATIC cluster needs IP addresses");
            }
            Discovery::Static(set)
        }
        DiscoveryType::Eds => {
            let service = message.eds_cluster_config.as_ref().map(|config| config.service_name.as_str());
            Discovery::Eds(service.filter(|name| !name.is_empty()).unwrap_or(&message.name).into())
        }
        DiscoveryType::StrictDns => Discovery::StrictDns(own(scope)?, compile_dns(message, scope)?),
        DiscoveryType::LogicalDns => {
            let set = own(scope)?;
            if set.endpoints.len() != 1 {
                return scope.refuse("a LOGICAL_DNS cluster needs exactly one endpoint");
            }
            Discovery::LogicalDns(set, compile_dns(message, scope)?)
        }
        DiscoveryType::OriginalDst => {
            if message.load_assignment.as_ref().is_some_and(|assignment| !assignment.endpoints.is_empty()) {
                return scope.refuse("an ORIGINAL_DST cluster has no endpoints of its own");
            }
            let Some(LbConfig::OriginalDstLbConfig(config)) = &message.lb_config else {
                return Ok(Discovery::OriginalDst(OriginalDst::default()));
            };
            let header = match config.http_header_name.as_str() {
                "" => "x-envoy-original-dst-host",
                name => name,
            };
            scope.unsupported("original_dst_lb_config.metadata_key", config.metadata_key.is_some());
            Discovery::OriginalDst(OriginalDst {
                header: config.use_http_header.then(|| header.to_ascii_lowercase().into()),
                port: match &config.upstream_port_override {
                    None => None,
                    Some(port) => Some(
                        u16::try_from(port.value).map_err(|_| scope.reject(format!("{} is not a port", port.value)))?,
                    ),
                },
                metadata_key: config.metadata_key.as_ref().map(|key| {
                    use meltemi_proto::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
                    let path = key.path.iter().filter_map(|segment| match &segment.segment {
                        Some(Segment::Key(key)) => Some(Box::from(key.as_str())),
                        _ => None,
                    });
                    (key.key.as_str().into(), path.collect())
                }),
            })
        }
    })
}

fn compile_dns(message: &proto::Cluster, scope: &mut Scope) -> Result<Dns, Rejection> {
    use proto::cluster::DnsLookupFamily as Family;
    scope.unsupported("dns_resolvers", !dns_resolvers(message).is_empty());
    scope.unsupported("typed_dns_resolver_config", message.typed_dns_resolver_config.is_some());
    #[allow(deprecated)]
    let (refresh, failure, respect_ttl, family) = (
        message.dns_refresh_rate.as_ref(),
        message.dns_failure_refresh_rate.as_ref(),
        message.respect_dns_ttl,
        message.dns_lookup_family,
    );
    scope.unsupported("respect_dns_ttl", respect_ttl);
    let refresh = limit("dns_refresh_rate", refresh, Some(Duration::from_secs(5)), scope)?;
    let refresh = refresh.unwrap_or(Duration::from_secs(5));
    let base = scope.duration("dns_failure_refresh_rate", failure.and_then(|f| f.base_interval.as_ref()))?;
    let base = base.filter(|base| !base.is_zero()).unwrap_or(refresh);
    let max = scope.duration("dns_failure_refresh_rate", failure.and_then(|f| f.max_interval.as_ref()))?;
    Ok(Dns {
        refresh,
        respect_ttl,
        failure_refresh: (base, max.filter(|max| *max >= base).unwrap_or(base * 10)),
        family: match Family::try_from(family) {
            Ok(Family::Auto) => DnsFamily::Auto,
            Ok(Family::V4Only) => DnsFamily::V4,
            Ok(Family::V6Only) => DnsFamily::V6,
            Ok(Family::V4Preferred) => DnsFamily::V4Preferred,
            Ok(Family::All) => DnsFamily::All,
            Err(_) => return scope.refuse(format!("unknown dns_lookup_family {family}")),
        },
    })
}

#[allow(deprecated)]
fn dns_resolvers(message: &proto::Cluster) -> &[core::Address] {
    &message.dns_resolvers
}

/// Network filters of connections to endpoints; says whether peer metadata is exchanged.
fn compile_filters(message: &proto::Cluster, scope: &mut Scope) -> Result<bool, Rejection> {
    let mut exchanges = false;
    for (index, filter) in message.filters.iter().enumerate() {
        let kind = filter.typed_config.as_ref().map_or(filter.name.as_str(), type_name);
        match (kind, filter.name.as_str()) {
            (_, "istio.metadata_exchange" | "envoy.filters.network.upstream.metadata_exchange")
            | ("envoy.tcp.metadataexchange.config.MetadataExchange", _) => exchanges = true,
            (kind, name) => {
                return scope.within(format_args!("filters[{index}]"), |scope| {
                    scope.refuse(format!("unknown upstream network filter {name:?} ({kind})"))
                });
            }
        }
    }
    Ok(exchanges)
}

fn compile_http(message: &proto::Cluster, scope: &mut Scope) -> Result<(UpstreamProtocol, UpstreamHttp), Rejection> {
    use upstream::http_protocol_options::UpstreamProtocolOptions as Options;
    use upstream::http_protocol_options::explicit_http_config::ProtocolConfig;
    let mut protocol = UpstreamProtocol::Http1;
    let mut http = UpstreamHttp::default();
    #[allow(deprecated)] // the older fields mean the same where there is no HttpProtocolOptions
    let (old_http2, old_common, old_upstream, old_selection, old_max_requests) = (
        message.http2_protocol_options.as_ref(),
        message.common_http_protocol_options.as_ref(),
        message.upstream_http_protocol_options.as_ref(),
        message.protocol_selection,
        message.max_requests_per_connection.as_ref(),
    );
    let options: Option<upstream::HttpProtocolOptions> =
        match message.typed_extension_protocol_options.get(HTTP_OPTIONS) {
            Some(any) => Some(scope.within(HTTP_OPTIONS, |scope| scope.unpack(any))?),
            None => None,
        };
    if let Some(any) = message.typed_extension_protocol_options.keys().find(|key| *key != HTTP_OPTIONS) {
        scope.warn("typed_extension_protocol_options", format!("{any:?} is not honoured"));
    }
    let (common, upstream_options) = match &options {
        Some(options) => {
            if options.http_filters.iter().any(|filter| filter.name != "envoy.filters.http.upstream_codec") {
                return scope.refuse("upstream HTTP filters are unknown");
            }
            (options.common_http_protocol_options.as_ref(), options.upstream_http_protocol_options.as_ref())
        }
        None => (old_common, old_upstream),
    };
    match options.as_ref().and_then(|options| options.upstream_protocol_options.as_ref()) {
        Some(Options::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(_)) | None => {}
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                protocol = UpstreamProtocol::Http2;
                http.http2 = http2_options(Some(http2), scope)?;
            }
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => return scope.refuse("HTTP/3 is not spoken"),
        },
        Some(Options::UseDownstreamProtocolConfig(config)) => {
            protocol = UpstreamProtocol::Downstream;
            http.http2 = http2_options(config.http2_protocol_options.as_ref(), scope)?;
        }
        Some(Options::AutoConfig(config)) => {
            protocol = UpstreamProtocol::Auto;
            http.http2 = http2_options(config.http2_protocol_options.as_ref(), scope)?;
        }
        None => {
            if old_selection == proto::cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32 {
                protocol = UpstreamProtocol::Downstream;
            } else if old_http2.is_some() {
                protocol = UpstreamProtocol::Http2;
            }
            http.http2 = http2_options(old_http2, scope)?;
        }
    }
    if let Some(common) = common {
        http.idle_timeout = limit("idle_timeout", common.idle_timeout.as_ref(), http.idle_timeout, scope)?;
        http.max_connection_duration =
            limit("max_connection_duration", common.max_connection_duration.as_ref(), None, scope)?;
        http.max_stream_duration = limit("max_stream_duration", common.max_stream_duration.as_ref(), None, scope)?;
        http.max_requests_per_connection = number(common.max_requests_per_connection.as_ref(), 0);
        http.max_head_fields = number(common.max_headers_count.as_ref(), http.max_head_fields).max(1);
    }
    if http.max_requests_per_connection == 0 {
        http.max_requests_per_connection = number(old_max_requests, 0);
    }
    if let Some(options) = upstream_options {
        http.auto_sni = options.auto_sni;
        http.auto_san_validation = options.auto_san_validation;
        http.auto_sni_header =
            Some(options.override_auto_sni_header.to_ascii_lowercase()).filter(|name| !name.is_empty()).map(Into::into);
    }
    Ok((protocol, http))
}

fn compile_lb(
    message: &proto::Cluster,
    common: &proto::cluster::CommonLbConfig,
    scope: &mut Scope,
) -> Result<(meltemi_lb::Config, bool), Rejection> {
    use proto::cluster::common_lb_config::LocalityConfigSpecifier as Locality;
    let mut config = meltemi_lb::Config {
        panic_threshold: common.healthy_panic_threshold.as_ref().map_or(50.0, |percent| percent.value),
        locality_weighted: matches!(common.locality_config_specifier, Some(Locality::LocalityWeightedLbConfig(_))),
        ..meltemi_lb::Config::default()
    };
    scope.unsupported(
        "common_lb_config.zone_aware_lb_config",
        matches!(common.locality_config_specifier, Some(Locality::ZoneAwareLbConfig(_))),
    );
    let mut by_hostname = false;
    let policy = LbPolicy::try_from(message.lb_policy);
    config.policy = match (&message.load_balancing_policy, policy) {
        (Some(list), _) if !list.policies.is_empty() => compile_policies(list, &mut config, &mut by_hostname, scope)?,
        (_, Ok(LbPolicy::RoundRobin)) => {
            if let Some(LbConfig::RoundRobinLbConfig(round_robin)) = &message.lb_config {
                scope.unsupported("round_robin_lb_config.slow_start_config", round_robin.slow_start_config.is_some());
            }
            Policy::RoundRobin
        }
        (_, Ok(LbPolicy::LeastRequest)) => {
            let own = match &message.lb_config {
                Some(LbConfig::LeastRequestLbConfig(own)) => own.clone(),
                _ => Default::default(),
            };
            scope.unsupported("least_request_lb_config.slow_start_config", own.slow_start_config.is_some());
            Policy::LeastRequest { choices: choices(own.choice_count.as_ref()) }
        }
        (_, Ok(LbPolicy::Random)) => Policy::Random,
        (_, Ok(LbPolicy::RingHash)) => {
            let own = match &message.lb_config {
                Some(LbConfig::RingHashLbConfig(own)) => *own,
                _ => Default::default(),
            };
            let murmur = proto::cluster::ring_hash_lb_config::HashFunction::MurmurHash2 as i32;
            ring(
                own.minimum_ring_size.as_ref().map(|size| size.value),
                own.maximum_ring_size.as_ref().map(|size| size.value),
                own.hash_function == murmur,
                scope,
            )?
        }
        (_, Ok(LbPolicy::Maglev)) => {
            let size = match &message.lb_config {
                Some(LbConfig::MaglevLbConfig(own)) => own.table_size.as_ref().map(|size| size.value),
                _ => None,
            };
            maglev(size, scope)?
        }
        (_, Ok(LbPolicy::ClusterProvided)) => Policy::OriginalDst,
        (_, Ok(LbPolicy::LoadBalancingPolicyConfig)) => return scope.refuse("load_balancing_policy is missing"),
        (_, Err(_)) => return scope.refuse(format!("unknown lb_policy {}", message.lb_policy)),
    };
    if !(0.0..=100.0).contains(&config.panic_threshold) {
        return scope.refuse("healthy_panic_threshold is not a percentage");
    }
    if let Some(subsets) = &message.lb_subset_config {
        config.subsets = Some(scope.within("lb_subset_config", |scope| compile_subsets(subsets, scope))?);
    }
    Ok((config, by_hostname))
}

fn choices(count: Option<&meltemi_proto::google::protobuf::UInt32Value>) -> u32 {
    number(count, 2).clamp(2, 64)
}

fn ring(min: Option<u64>, max: Option<u64>, murmur: bool, scope: &Scope) -> Result<Policy, Rejection> {
    const LIMIT: u64 = 8 << 20;
    let (min_size, max_size) = (min.unwrap_or(1024), max.unwrap_or(LIMIT));
    if min_size > max_size || max_size > LIMIT {
        return scope.refuse(format!("ring sizes {min_size} and {max_size} are out of order or above {LIMIT}"));
    }
    let function = if murmur { RingHashFunction::Murmur2 } else { RingHashFunction::XxHash };
    Ok(Policy::RingHash { min_size, max_size, function })
}

fn maglev(size: Option<u64>, scope: &Scope) -> Result<Policy, Rejection> {
    let table_size = size.unwrap_or(65_537);
    if !(2..=5_000_011).contains(&table_size) || !is_prime(table_size) {
        return scope.refuse(format!("maglev table_size {table_size} is not a prime up to 5000011"));
    }
    Ok(Policy::Maglev { table_size })
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

/// The first policy of the list that is known, as Envoy has it.
fn compile_policies(
    list: &proto::LoadBalancingPolicy,
    config: &mut meltemi_lb::Config,
    by_hostname: &mut bool,
    scope: &mut Scope,
) -> Result<Policy, Rejection> {
    use policies::common::v3::locality_lb_config::LocalityConfigSpecifier as Locality;
    let mut locality = |own: Option<&policies::common::v3::LocalityLbConfig>, scope: &mut Scope| match own
        .and_then(|own| own.locality_config_specifier.as_ref())
    {
        Some(Locality::LocalityWeightedLbConfig(_)) => config.locality_weighted = true,
        Some(Locality::ZoneAwareLbConfig(_)) => scope.warn("zone_aware_lb_config", "not honoured by this proxy"),
        None => {}
    };
    for policy in &list.policies {
        let Some(any) = policy.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref()) else {
            continue;
        };
        match type_name(any) {
            "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
                let own: policies::round_robin::v3::RoundRobin = scope.unpack(any)?;
                scope.unsupported("slow_start_config", own.slow_start_config.is_some());
                locality(own.locality_lb_config.as_ref(), scope);
                return Ok(Policy::RoundRobin);
            }
            "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
                let own: policies::least_request::v3::LeastRequest = scope.unpack(any)?;
                scope.unsupported("slow_start_config", own.slow_start_config.is_some());
                locality(own.locality_lb_config.as_ref(), scope);
                return Ok(Policy::LeastRequest { choices: choices(own.choice_count.as_ref()) });
            }
            "envoy.extensions.load_balancing_policies.random.v3.Random" => {
                let own: policies::random::v3::Random = scope.unpack(any)?;
                locality(own.locality_lb_config.as_ref(), scope);
                return Ok(Policy::Random);
            }
            "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
                let own: policies::ring_hash::v3::RingHash = scope.unpack(any)?;
                *by_hostname = own.consistent_hashing_lb_config.as_ref().is_some_and(|c| c.use_hostname_for_hashing);
                config.locality_weighted |= own.locality_weighted_lb_config.is_some();
                let murmur = policies::ring_hash::v3::ring_hash::HashFunction::MurmurHash2 as i32;
                return ring(
                    own.minimum_ring_size.as_ref().map(|size| size.value),
                    own.maximum_ring_size.as_ref().map(|size| size.value),
                    own.hash_function == murmur,
                    scope,
                );
            }
            "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => {
                let own: policies::maglev::v3::Maglev = scope.unpack(any)?;
                *by_hostname = own.consistent_hashing_lb_config.as_ref().is_some_and(|c| c.use_hostname_for_hashing);
                config.locality_weighted |= own.locality_weighted_lb_config.is_some();
                return maglev(own.table_size.as_ref().map(|size| size.value), scope);
            }
            "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
                return Ok(Policy::OriginalDst);
            }
            other => {
                scope.warn("load_balancing_policy", format!("{other:?} is unknown; the next of the list is tried"))
            }
        }
    }
    scope.refuse("no policy of load_balancing_policy is known")
}

fn compile_subsets(message: &proto::cluster::LbSubsetConfig, scope: &mut Scope) -> Result<SubsetConfig, Rejection> {
    use proto::cluster::lb_subset_config::LbSubsetFallbackPolicy as General;
    use proto::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Own;
    scope.unsupported("locality_weight_aware", message.locality_weight_aware);
    scope.unsupported("list_as_any", message.list_as_any);
    scope.unsupported("panic_mode_any", message.panic_mode_any);
    let keys = |names: &[String]| {
        let mut keys: Vec<Arc<str>> = names.iter().map(|name| name.as_str().into()).collect();
        keys.sort();
        keys.dedup();
        keys
    };
    let selectors = scope.each("subset_selectors", &message.subset_selectors, |scope, selector| {
        if selector.keys.is_empty() {
            return scope.refuse("a selector without keys");
        }
        Ok(SubsetSelector {
            keys: keys(&selector.keys),
            fallback: match Own::try_from(selector.fallback_policy) {
                Ok(Own::NotDefined) => None,
                Ok(Own::NoFallback) => Some(Fallback::None),
                Ok(Own::AnyEndpoint) => Some(Fallback::Any),
                Ok(Own::DefaultSubset) => Some(Fallback::Default),
                Ok(Own::KeysSubset) => Some(Fallback::Keys(keys(&selector.fallback_keys_subset))),
                Err(_) => return scope.refuse(format!("unknown fallback_policy {}", selector.fallback_policy)),
            },
        })
    })?;
    Ok(SubsetConfig {
        selectors,
        fallback: match General::try_from(message.fallback_policy) {
            Ok(General::NoFallback) => Fallback::None,
            Ok(General::AnyEndpoint) => Fallback::Any,
            Ok(General::DefaultSubset) => Fallback::Default,
            Err(_) => return scope.refuse(format!("unknown fallback_policy {}", message.fallback_policy)),
        },
        default: SubsetMatch::new(
            message
                .default_subset
                .iter()
                .flat_map(|fields| &fields.fields)
                .map(|(key, value)| (Arc::from(key.as_str()), canonical_value(&Value::from_proto(value)))),
        ),
    })
}

fn compile_breakers(message: Option<&proto::CircuitBreakers>, scope: &mut Scope) -> [Breakers; 2] {
    let mut breakers = [Breakers::default(), Breakers::default()];
    let Some(message) = message else { return breakers };
    for thresholds in &message.thresholds {
        let own = &mut breakers[usize::from(thresholds.priority == core::RoutingPriority::High as i32)];
        let default = Breakers::default();
        scope.unsupported("circuit_breakers.max_connection_pools", thresholds.max_connection_pools.is_some());
        *own = Breakers {
            max_connections: number(thresholds.max_connections.as_ref(), default.max_connections),
            max_pending: number(thresholds.max_pending_requests.as_ref(), default.max_pending),
            max_requests: number(thresholds.max_requests.as_ref(), default.max_requests),
            max_retries: number(thresholds.max_retries.as_ref(), default.max_retries),
            retry_budget: thresholds.retry_budget.as_ref().map(|budget| RetryBudget {
                percent: budget.budget_percent.as_ref().map_or(20.0, |percent| percent.value).clamp(0.0, 100.0),
                min_concurrency: number(budget.min_retry_concurrency.as_ref(), 3),
            }),
            max_connections_per_host: own.max_connections_per_host,
        };
    }
    scope.unsupported("circuit_breakers.per_host_thresholds", !message.per_host_thresholds.is_empty());
    for thresholds in &message.per_host_thresholds {
        let own = &mut breakers[usize::from(thresholds.priority == core::RoutingPriority::High as i32)];
        own.max_connections_per_host = thresholds.max_connections.as_ref().map(|max| max.value);
    }
    breakers
}

impl OutlierDetection {
    fn compile(message: &proto::OutlierDetection, scope: &mut Scope) -> Result<Self, Rejection> {
        scope.unsupported("monitors", !message.monitors.is_empty());
        scope.unsupported("always_eject_one_host", boolean(message.always_eject_one_host.as_ref(), false));
        // Envoy enforces success rates unless told otherwise.
        scope.unsupported("enforcing_success_rate", number(message.enforcing_success_rate.as_ref(), 100) > 0);
        scope.unsupported("enforcing_failure_percentage", number(message.enforcing_failure_percentage.as_ref(), 0) > 0);
        scope.unsupported("detect_degraded_hosts", boolean(message.detect_degraded_hosts.as_ref(), false));
        let base_ejection = scope
            .duration("base_ejection_time", message.base_ejection_time.as_ref())?
            .unwrap_or(Duration::from_secs(30));
        let max_ejection = scope
            .duration("max_ejection_time", message.max_ejection_time.as_ref())?
            .unwrap_or(Duration::from_secs(300));
        let percent =
            |value: Option<&meltemi_proto::google::protobuf::UInt32Value>, default| number(value, default).min(100);
        Ok(Self {
            consecutive_5xx: number(message.consecutive_5xx.as_ref(), 5),
            enforcing_5xx: percent(message.enforcing_consecutive_5xx.as_ref(), 100),
            consecutive_gateway: number(message.consecutive_gateway_failure.as_ref(), 5),
            enforcing_gateway: percent(message.enforcing_consecutive_gateway_failure.as_ref(), 0),
            split_local: message.split_external_local_origin_errors,
            consecutive_local: number(message.consecutive_local_origin_failure.as_ref(), 5),
            enforcing_local: percent(message.enforcing_consecutive_local_origin_failure.as_ref(), 100),
            interval: scope
                .duration("interval", message.interval.as_ref())?
                .filter(|interval| !interval.is_zero())
                .unwrap_or(Duration::from_secs(10)),
            base_ejection,
            max_ejection: max_ejection.max(base_ejection),
            jitter: scope
                .duration("max_ejection_time_jitter", message.max_ejection_time_jitter.as_ref())?
                .unwrap_or_default(),
            max_ejection_percent: percent(message.max_ejection_percent.as_ref(), 10),
            always_eject_one: boolean(message.always_eject_one_host.as_ref(), false),
            success_rate: SuccessRate {
                enforcing: percent(message.enforcing_success_rate.as_ref(), 100),
                minimum_hosts: number(message.success_rate_minimum_hosts.as_ref(), 5),
                request_volume: number(message.success_rate_request_volume.as_ref(), 100),
                stdev_factor: number(message.success_rate_stdev_factor.as_ref(), 1900),
            },
            failure_percentage: FailurePercentage {
                threshold: percent(message.failure_percentage_threshold.as_ref(), 85),
                enforcing: percent(message.enforcing_failure_percentage.as_ref(), 0),
                minimum_hosts: number(message.failure_percentage_minimum_hosts.as_ref(), 5),
                request_volume: number(message.failure_percentage_request_volume.as_ref(), 50),
            },
        })
    }
}

impl HealthCheck {
    /// `None` for kinds that are unknown; endpoints then count as healthy.
    fn compile(message: &core::HealthCheck, scope: &mut Scope) -> Result<Option<Self>, Rejection> {
        use core::health_check::HealthChecker;
        let kind = match scope.required("health_checker", message.health_checker.as_ref())? {
            HealthChecker::HttpHealthCheck(http) => HealthCheckKind::Http {
                path: http.path.as_str().into(),
                host: http.host.as_str().into(),
                expected: http
                    .expected_statuses
                    .iter()
                    .map(|range| (u16::try_from(range.start).unwrap_or(0), u16::try_from(range.end).unwrap_or(0)))
                    .collect(),
                http2: http.codec_client_type == 1,
            },
            HealthChecker::TcpHealthCheck(tcp) => {
                scope.unsupported("tcp_health_check.send", tcp.send.is_some());
                scope.unsupported("tcp_health_check.receive", !tcp.receive.is_empty());
                HealthCheckKind::Tcp
            }
            HealthChecker::GrpcHealthCheck(grpc) => HealthCheckKind::Grpc {
                service: grpc.service_name.as_str().into(),
                authority: grpc.authority.as_str().into(),
            },
            HealthChecker::CustomHealthCheck(custom) => {
                scope.warn("", format!("health check {:?} is unknown and left out", custom.name));
                return Ok(None);
            }
        };
        let second = Duration::from_secs(1);
        Ok(Some(Self {
            timeout: scope.duration("timeout", message.timeout.as_ref())?.unwrap_or(second),
            interval: scope
                .duration("interval", message.interval.as_ref())?
                .filter(|interval| !interval.is_zero())
                .unwrap_or(second * 5),
            unhealthy_threshold: number(message.unhealthy_threshold.as_ref(), 1).max(1),
            healthy_threshold: number(message.healthy_threshold.as_ref(), 1).max(1),
            kind,
        }))
    }
}

impl UpstreamBind {
    /// Compiles Envoy's message, of a cluster or of the bootstrap.
    pub fn compile(message: &core::BindConfig, scope: &mut Scope) -> Result<Self, Rejection> {
        let socket = |address: &core::SocketAddress, scope: &mut Scope| match Address::compile_socket(address, scope)? {
            Address::Socket(address) => Ok(address),
            _ => scope.refuse("a source address must be an IP address"),
        };
        let source = match &message.source_address {
            None => None,
            Some(address) => Some(socket(address, scope)?),
        };
        let extra = scope.each("extra_source_addresses", &message.extra_source_addresses, |scope, extra| {
            socket(scope.required("address", extra.address.as_ref())?, scope)
        })?;
        scope.unsupported("socket_options", !message.socket_options.is_empty());
        let mut socket_options = Vec::new();
        for option in &message.socket_options {
            use core::socket_option::Value;
            let number = |value: i64| i32::try_from(value).ok();
            match (number(option.level), number(option.name), &option.value) {
                (Some(level), Some(name), Some(Value::IntValue(value))) => {
                    socket_options.push((level, name, i32::try_from(*value).unwrap_or(i32::MAX)));
                }
                _ => scope.warn("socket_options", "only integer values are known"),
            }
        }
        Ok(Self { source, extra, freebind: boolean(message.freebind.as_ref(), false), socket_options })
    }
}
