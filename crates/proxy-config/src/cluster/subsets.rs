//! Subsets of a cluster's endpoints by metadata.

use std::sync::Arc;

use meltemi_filters::metadata::Value;
use meltemi_filters::{Rejection, Scope};
use meltemi_lb::{Fallback, SubsetConfig, SubsetMatch, SubsetSelector};
use meltemi_proto::envoy::config::cluster::v3::cluster as proto;
use meltemi_proto::google::protobuf::Struct;
use proto::lb_subset_config::LbSubsetSelector;

use crate::convert::{canonical_value, not_honoured};

pub(super) fn compile_subsets(
    message: &proto::LbSubsetConfig,
    scope: &mut Scope,
) -> Result<SubsetConfig, Rejection> {
    use proto::lb_subset_config::LbSubsetFallbackPolicy as General;

    let proto::LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    } = message;
    not_honoured!(
        scope,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    );

    Ok(SubsetConfig {
        selectors: scope.each("subset_selectors", subset_selectors, compile_selector)?,
        fallback: match General::try_from(*fallback_policy) {
            Ok(General::NoFallback) => Fallback::None,
            Ok(General::AnyEndpoint) => Fallback::Any,
            Ok(General::DefaultSubset) => Fallback::Default,
            Err(_) => return scope.refuse(format!("unknown fallback_policy {fallback_policy}")),
        },
        default: compile_default(default_subset.as_ref()),
    })
}

fn compile_selector(
    scope: &mut Scope,
    message: &LbSubsetSelector,
) -> Result<SubsetSelector, Rejection> {
    use proto::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Own;

    let LbSubsetSelector {
        keys,
        single_host_per_subset,
        fallback_policy,
        fallback_keys_subset,
    } = message;
    not_honoured!(scope, single_host_per_subset);

    if keys.is_empty() {
        return scope.refuse("a selector without keys");
    }

    Ok(SubsetSelector {
        keys: sorted_keys(keys),
        fallback: match Own::try_from(*fallback_policy) {
            Ok(Own::NotDefined) => None,
            Ok(Own::NoFallback) => Some(Fallback::None),
            Ok(Own::AnyEndpoint) => Some(Fallback::Any),
            Ok(Own::DefaultSubset) => Some(Fallback::Default),
            Ok(Own::KeysSubset) => Some(Fallback::Keys(sorted_keys(fallback_keys_subset))),
            Err(_) => return scope.refuse(format!("unknown fallback_policy {fallback_policy}")),
        },
    })
}

/// The metadata of the subset that serves where no other does.
fn compile_default(message: Option<&Struct>) -> SubsetMatch {
    let fields = message.into_iter().flat_map(|default| &default.fields);
    SubsetMatch::new(fields.map(|(key, value)| {
        (
            Arc::from(key.as_str()),
            canonical_value(&Value::from_proto(value)),
        )
    }))
}

fn sorted_keys(names: &[String]) -> Vec<Arc<str>> {
    let mut keys: Vec<Arc<str>> = names.iter().map(|name| name.as_str().into()).collect();
    keys.sort();
    keys.dedup();
    keys
}
