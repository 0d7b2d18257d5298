//! `load_balancing_policy`: a list of policies, of which the first that is known is taken.

use meltemi_filters::{Rejection, Scope};
use meltemi_lb::Policy;
use meltemi_proto::Any;
use meltemi_proto::envoy::config::cluster::v3 as proto;
use meltemi_proto::envoy::extensions::load_balancing_policies as policies;
use policies::common::v3::locality_lb_config::LocalityConfigSpecifier;
use policies::common::v3::{ConsistentHashingLbConfig, LocalityLbConfig};

use super::algorithms::{least_request, maglev, ring_hash};
use crate::any::type_name;
use crate::convert::not_honoured;

/// The policy that is taken.
pub(super) struct Chosen {
    pub(super) policy: Policy,
    /// Localities take load by their weight.
    pub(super) locality_weighted: bool,
    /// Host names are hashed in place of addresses.
    pub(super) by_hostname: bool,
}

pub(super) fn compile_policies(
    list: &proto::LoadBalancingPolicy,
    scope: &mut Scope,
) -> Result<Chosen, Rejection> {
    let configs = list.policies.iter().filter_map(|policy| {
        policy
            .typed_extension_config
            .as_ref()?
            .typed_config
            .as_ref()
    });

    for any in configs {
        if let Some(chosen) = compile_policy(any, scope)? {
            return Ok(chosen);
        }
        scope.warn(
            "load_balancing_policy",
            format!(
                "{:?} is unknown; the next of the list is tried",
                type_name(any)
            ),
        );
    }

    scope.refuse("no policy of load_balancing_policy is known")
}

/// `None`: the policy is unknown.
fn compile_policy(any: &Any, scope: &mut Scope) -> Result<Option<Chosen>, Rejection> {
    let by_locality = |policy, locality_weighted| Chosen {
        policy,
        locality_weighted,
        by_hostname: false,
    };

    Ok(Some(match type_name(any) {
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
            let policies::round_robin::v3::RoundRobin {
                slow_start_config,
                locality_lb_config,
            } = &scope.unpack(any)?;
            not_honoured!(scope, slow_start_config);
            by_locality(
                Policy::RoundRobin,
                is_weighted(locality_lb_config.as_ref(), scope),
            )
        }
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
            compile_least_request(&scope.unpack(any)?, scope)
        }
        "envoy.extensions.load_balancing_policies.random.v3.Random" => {
            let policies::random::v3::Random { locality_lb_config } = &scope.unpack(any)?;
            by_locality(
                Policy::Random,
                is_weighted(locality_lb_config.as_ref(), scope),
            )
        }
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
            compile_ring_hash(&scope.unpack(any)?, scope)?
        }
        "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => {
            let policies::maglev::v3::Maglev {
                table_size,
                consistent_hashing_lb_config,
                locality_weighted_lb_config,
            } = &scope.unpack(any)?;
            Chosen {
                policy: maglev(table_size.as_ref(), scope)?,
                locality_weighted: locality_weighted_lb_config.is_some(),
                by_hostname: hashes_hostname(consistent_hashing_lb_config.as_ref(), scope),
            }
        }
        "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
            by_locality(Policy::OriginalDst, false)
        }
        _ => return Ok(None),
    }))
}

fn compile_least_request(
    message: &policies::least_request::v3::LeastRequest,
    scope: &mut Scope,
) -> Chosen {
    #[expect(deprecated, reason = "the older field is warned of like the newer one")]
    let policies::least_request::v3::LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config,
        enable_full_scan,
        selection_method,
    } = message;
    not_honoured!(
        scope,
        active_request_bias,
        slow_start_config,
        enable_full_scan,
        selection_method,
    );

    Chosen {
        policy: least_request(choice_count.as_ref()),
        locality_weighted: is_weighted(locality_lb_config.as_ref(), scope),
        by_hostname: false,
    }
}

fn compile_ring_hash(
    message: &policies::ring_hash::v3::RingHash,
    scope: &mut Scope,
) -> Result<Chosen, Rejection> {
    use policies::ring_hash::v3::ring_hash::HashFunction;

    #[expect(
        deprecated,
        reason = "the older fields mean the same as the newer ones"
    )]
    let policies::ring_hash::v3::RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = message;
    not_honoured!(scope, hash_balance_factor);

    Ok(Chosen {
        policy: ring_hash(
            minimum_ring_size.as_ref(),
            maximum_ring_size.as_ref(),
            *hash_function == HashFunction::MurmurHash2 as i32,
            scope,
        )?,
        locality_weighted: locality_weighted_lb_config.is_some(),
        by_hostname: hashes_hostname(consistent_hashing_lb_config.as_ref(), scope)
            || *use_hostname_for_hashing,
    })
}

/// Whether localities take load by their weight.
fn is_weighted(message: Option<&LocalityLbConfig>, scope: &mut Scope) -> bool {
    let Some(LocalityLbConfig {
        locality_config_specifier,
    }) = message
    else {
        return false;
    };

    match locality_config_specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            scope.unsupported("zone_aware_lb_config", true);
            false
        }
        None => false,
    }
}

/// Whether host names are hashed in place of addresses.
fn hashes_hostname(message: Option<&ConsistentHashingLbConfig>, scope: &mut Scope) -> bool {
    let Some(ConsistentHashingLbConfig {
        use_hostname_for_hashing,
        hash_balance_factor,
        hash_policy,
    }) = message
    else {
        return false;
    };
    not_honoured!(scope, hash_balance_factor, hash_policy);

    *use_hostname_for_hashing
}
