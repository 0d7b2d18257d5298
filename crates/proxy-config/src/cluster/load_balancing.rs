//! How an endpoint of a cluster is chosen.

use meltemi_filters::{Rejection, Scope};
use meltemi_lb::Policy;
use meltemi_proto::envoy::config::cluster::v3 as proto;
use proto::cluster::common_lb_config::{ConsistentHashingLbConfig, LocalityConfigSpecifier};
use proto::cluster::{LbConfig, LbPolicy};

use super::algorithms::{least_request, maglev, ring_hash};
use super::policies::compile_policies;
use super::subsets::compile_subsets;
use crate::convert::not_honoured;

/// The balancer's configuration, and whether consistent hashing hashes host names.
pub(super) fn compile(
    message: &proto::Cluster,
    scope: &mut Scope,
) -> Result<(meltemi_lb::Config, bool), Rejection> {
    let common = message.common_lb_config.clone().unwrap_or_default();
    let (mut config, mut by_hostname) = compile_common(&common, scope)?;

    match &message.load_balancing_policy {
        Some(list) if !list.policies.is_empty() => {
            let chosen = compile_policies(list, scope)?;
            config.policy = chosen.policy;
            config.locality_weighted |= chosen.locality_weighted;
            by_hostname |= chosen.by_hostname;
        }
        _ => config.policy = compile_policy(message, scope)?,
    }

    if let Some(subsets) = &message.lb_subset_config {
        config.subsets =
            Some(scope.within("lb_subset_config", |scope| compile_subsets(subsets, scope))?);
    }

    Ok((config, by_hostname))
}

fn compile_common(
    message: &proto::cluster::CommonLbConfig,
    scope: &mut Scope,
) -> Result<(meltemi_lb::Config, bool), Rejection> {
    let proto::cluster::CommonLbConfig {
        healthy_panic_threshold,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
        // Every change is applied at once.
        update_merge_window: _,
    } = message;

    let panic_threshold = healthy_panic_threshold
        .as_ref()
        .map_or(50.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&panic_threshold) {
        return scope.refuse("healthy_panic_threshold is not a percentage");
    }

    let (locality_weighted, zone_aware_lb_config) = match locality_config_specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => (true, false),
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => (false, true),
        None => (false, false),
    };
    let ConsistentHashingLbConfig {
        use_hostname_for_hashing,
        hash_balance_factor,
    } = consistent_hashing_lb_config.unwrap_or_default();

    scope.within("common_lb_config", |scope| {
        let zone_aware_lb_config = &zone_aware_lb_config;
        not_honoured!(
            scope,
            ignore_new_hosts_until_first_hc,
            close_connections_on_host_set_change,
            override_host_status,
            zone_aware_lb_config,
        );
        scope.unsupported(
            "consistent_hashing_lb_config.hash_balance_factor",
            hash_balance_factor.is_some(),
        );
    });

    let config = meltemi_lb::Config {
        panic_threshold,
        locality_weighted,
        ..meltemi_lb::Config::default()
    };

    Ok((config, use_hostname_for_hashing))
}

/// Compiles `lb_policy` with its `lb_config`. A configuration of another policy has no effect, as
/// in Envoy.
fn compile_policy(message: &proto::Cluster, scope: &mut Scope) -> Result<Policy, Rejection> {
    let own = message.lb_config.as_ref();

    match LbPolicy::try_from(message.lb_policy) {
        Ok(LbPolicy::RoundRobin) => {
            if let Some(LbConfig::RoundRobinLbConfig(own)) = own {
                let proto::cluster::RoundRobinLbConfig { slow_start_config } = own;
                scope.within("round_robin_lb_config", |scope| {
                    not_honoured!(scope, slow_start_config);
                });
            }
            Ok(Policy::RoundRobin)
        }
        Ok(LbPolicy::LeastRequest) => {
            let Some(LbConfig::LeastRequestLbConfig(own)) = own else {
                return Ok(least_request(None));
            };
            let proto::cluster::LeastRequestLbConfig {
                choice_count,
                active_request_bias,
                slow_start_config,
            } = own;
            scope.within("least_request_lb_config", |scope| {
                not_honoured!(scope, active_request_bias, slow_start_config);
            });
            Ok(least_request(choice_count.as_ref()))
        }
        Ok(LbPolicy::Random) => Ok(Policy::Random),
        Ok(LbPolicy::RingHash) => {
            use proto::cluster::ring_hash_lb_config::HashFunction;

            let proto::cluster::RingHashLbConfig {
                minimum_ring_size,
                hash_function,
                maximum_ring_size,
            } = match own {
                Some(LbConfig::RingHashLbConfig(own)) => *own,
                _ => Default::default(),
            };
            ring_hash(
                minimum_ring_size.as_ref(),
                maximum_ring_size.as_ref(),
                hash_function == HashFunction::MurmurHash2 as i32,
                scope,
            )
        }
        Ok(LbPolicy::Maglev) => {
            let proto::cluster::MaglevLbConfig { table_size } = match own {
                Some(LbConfig::MaglevLbConfig(own)) => *own,
                _ => Default::default(),
            };
            maglev(table_size.as_ref(), scope)
        }
        Ok(LbPolicy::ClusterProvided) => Ok(Policy::OriginalDst),
        Ok(LbPolicy::LoadBalancingPolicyConfig) => scope.refuse("load_balancing_policy is missing"),
        Err(_) => scope.refuse(format!("unknown lb_policy {}", message.lb_policy)),
    }
}
