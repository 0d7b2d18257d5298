//! How an endpoint is chosen.

use std::sync::Arc;

use meltemi_filters::metadata::Value;
use meltemi_filters::{Rejection, Scope};
use meltemi_lb::{Fallback, Policy, RingHashFunction, SubsetConfig, SubsetMatch, SubsetSelector};
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::envoy::extensions::load_balancing_policies as policies;
use proto::cluster::{LbConfig, LbPolicy};

use crate::convert::{canonical_value, number};
use crate::tls::compile::type_name;

/// The balancer's configuration, and whether names are hashed in place of addresses.
pub(super) fn compile(
    message: &proto::Cluster,
    common: &proto::cluster::CommonLbConfig,
    scope: &mut Scope,
) -> Result<(meltemi_lb::Config, bool), Rejection> {
    use proto::cluster::common_lb_config::LocalityConfigSpecifier as Locality;

    let mut config = meltemi_lb::Config {
        panic_threshold: common
            .healthy_panic_threshold
            .as_ref()
            .map_or(50.0, |percent| percent.value),
        locality_weighted: matches!(
            common.locality_config_specifier,
            Some(Locality::LocalityWeightedLbConfig(_))
        ),
        ..meltemi_lb::Config::default()
    };

    scope.unsupported(
        "common_lb_config.zone_aware_lb_config",
        matches!(
            common.locality_config_specifier,
            Some(Locality::ZoneAwareLbConfig(_))
        ),
    );

    let mut by_hostname = false;
    let policy = LbPolicy::try_from(message.lb_policy);
    config.policy = match (&message.load_balancing_policy, policy) {
        (Some(list), _) if !list.policies.is_empty() => {
            compile_policies(list, &mut config, &mut by_hostname, scope)?
        }
        (_, Ok(LbPolicy::RoundRobin)) => {
            if let Some(LbConfig::RoundRobinLbConfig(round_robin)) = &message.lb_config {
                scope.unsupported(
                    "round_robin_lb_config.slow_start_config",
                    round_robin.slow_start_config.is_some(),
                );
            }
            Policy::RoundRobin
        }
        (_, Ok(LbPolicy::LeastRequest)) => {
            let own = match &message.lb_config {
                Some(LbConfig::LeastRequestLbConfig(own)) => own.clone(),
                _ => Default::default(),
            };

            scope.unsupported(
                "least_request_lb_config.slow_start_config",
                own.slow_start_config.is_some(),
            );

            Policy::LeastRequest {
                choices: choices(own.choice_count.as_ref()),
            }
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
                Some(LbConfig::MaglevLbConfig(own)) => {
                    own.table_size.as_ref().map(|size| size.value)
                }
                _ => None,
            };
            maglev(size, scope)?
        }
        (_, Ok(LbPolicy::ClusterProvided)) => Policy::OriginalDst,
        (_, Ok(LbPolicy::LoadBalancingPolicyConfig)) => {
            return scope.refuse("load_balancing_policy is missing");
        }
        (_, Err(_)) => return scope.refuse(format!("unknown lb_policy {}", message.lb_policy)),
    };

    if !(0.0..=100.0).contains(&config.panic_threshold) {
        return scope.refuse("healthy_panic_threshold is not a percentage");
    }
    if let Some(subsets) = &message.lb_subset_config {
        config.subsets =
            Some(scope.within("lb_subset_config", |scope| compile_subsets(subsets, scope))?);
    }

    Ok((config, by_hostname))
}

fn choices(count: Option<&meltemi_proto::google::protobuf::UInt32Value>) -> u32 {
    number(count, 2).clamp(2, 64)
}

fn ring(
    min: Option<u64>,
    max: Option<u64>,
    murmur: bool,
    scope: &Scope,
) -> Result<Policy, Rejection> {
    const LIMIT: u64 = 8 << 20;

    let (min_size, max_size) = (min.unwrap_or(1024), max.unwrap_or(LIMIT));
    if min_size > max_size || max_size > LIMIT {
        return scope.refuse(format!(
            "ring sizes {min_size} and {max_size} are out of order or above {LIMIT}"
        ));
    }

    let function = if murmur {
        RingHashFunction::Murmur2
    } else {
        RingHashFunction::XxHash
    };

    Ok(Policy::RingHash {
        min_size,
        max_size,
        function,
    })
}

fn maglev(size: Option<u64>, scope: &Scope) -> Result<Policy, Rejection> {
    let table_size = size.unwrap_or(65_537);
    if !(2..=5_000_011).contains(&table_size) || !is_prime(table_size) {
        return scope.refuse(format!(
            "maglev table_size {table_size} is not a prime up to 5000011"
        ));
    }
    Ok(Policy::Maglev { table_size })
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

/// The first policy of the list that is known, as Envoy has it.
fn compile_policies(
    list: &proto::LoadBalancingPolicy,
    config: &mut meltemi_lb::Config,
    by_hostname: &mut bool,
    scope: &mut Scope,
) -> Result<Policy, Rejection> {
    use policies::common::v3::locality_lb_config::LocalityConfigSpecifier as Locality;

    let mut locality =
        |own: Option<&policies::common::v3::LocalityLbConfig>, scope: &mut Scope| match own
            .and_then(|own| own.locality_config_specifier.as_ref())
        {
            Some(Locality::LocalityWeightedLbConfig(_)) => config.locality_weighted = true,
            Some(Locality::ZoneAwareLbConfig(_)) => {
                scope.warn("zone_aware_lb_config", "not honoured by this proxy")
            }
            None => {}
        };

    for policy in &list.policies {
        let Some(any) = policy
            .typed_extension_config
            .as_ref()
            .and_then(|config| config.typed_config.as_ref())
        else {
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
                return Ok(Policy::LeastRequest {
                    choices: choices(own.choice_count.as_ref()),
                });
            }
            "envoy.extensions.load_balancing_policies.random.v3.Random" => {
                let own: policies::random::v3::Random = scope.unpack(any)?;
                locality(own.locality_lb_config.as_ref(), scope);
                return Ok(Policy::Random);
            }
            "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
                let own: policies::ring_hash::v3::RingHash = scope.unpack(any)?;
                *by_hostname = own
                    .consistent_hashing_lb_config
                    .as_ref()
                    .is_some_and(|c| c.use_hostname_for_hashing);

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
                *by_hostname = own
                    .consistent_hashing_lb_config
                    .as_ref()
                    .is_some_and(|c| c.use_hostname_for_hashing);
                config.locality_weighted |= own.locality_weighted_lb_config.is_some();
                return maglev(own.table_size.as_ref().map(|size| size.value), scope);
            }
            "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
                return Ok(Policy::OriginalDst);
            }
            other => scope.warn(
                "load_balancing_policy",
                format!("{other:?} is unknown; the next of the list is tried"),
            ),
        }
    }

    scope.refuse("no policy of load_balancing_policy is known")
}

fn compile_subsets(
    message: &proto::cluster::LbSubsetConfig,
    scope: &mut Scope,
) -> Result<SubsetConfig, Rejection> {
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

    let selectors = scope.each(
        "subset_selectors",
        &message.subset_selectors,
        |scope, selector| {
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
                    Ok(Own::KeysSubset) => {
                        Some(Fallback::Keys(keys(&selector.fallback_keys_subset)))
                    }
                    Err(_) => {
                        return scope.refuse(format!(
                            "unknown fallback_policy {}",
                            selector.fallback_policy
                        ));
                    }
                },
            })
        },
    )?;

    Ok(SubsetConfig {
        selectors,
        fallback: match General::try_from(message.fallback_policy) {
            Ok(General::NoFallback) => Fallback::None,
            Ok(General::AnyEndpoint) => Fallback::Any,
            Ok(General::DefaultSubset) => Fallback::Default,
            Err(_) => {
                return scope.refuse(format!(
                    "unknown fallback_policy {}",
                    message.fallback_policy
                ));
            }
        },
        default: SubsetMatch::new(
            message
                .default_subset
                .iter()
                .flat_map(|fields| &fields.fields)
                .map(|(key, value)| {
                    (
                        Arc::from(key.as_str()),
                        canonical_value(&Value::from_proto(value)),
                    )
                }),
        ),
    })
}
