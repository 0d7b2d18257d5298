//! Settings of the algorithms that choose an endpoint, with Envoy's defaults and bounds.

use meltemi_filters::{Rejection, Scope};
use meltemi_lb::{Policy, RingHashFunction};
use meltemi_proto::google::protobuf::{UInt32Value, UInt64Value};

use crate::convert::number;

/// Envoy's bound on the number of entries in a ring.
const MAX_RING: u64 = 8 << 20;
/// Envoy's bound on `table_size`.
const MAX_MAGLEV: u64 = 5_000_011;

pub(super) fn least_request(choice_count: Option<&UInt32Value>) -> Policy {
    Policy::LeastRequest {
        choices: number(choice_count, 2).clamp(2, 64),
    }
}

pub(super) fn ring_hash(
    minimum: Option<&UInt64Value>,
    maximum: Option<&UInt64Value>,
    murmur: bool,
    scope: &Scope,
) -> Result<Policy, Rejection> {
    let min_size = minimum.map_or(1024, |size| size.value);
    let max_size = maximum.map_or(MAX_RING, |size| size.value);
    if min_size > max_size || max_size > MAX_RING {
        return scope.refuse(format!(
            "ring sizes {min_size} and {max_size} are out of order or above {MAX_RING}"
        ));
    }

    Ok(Policy::RingHash {
        min_size,
        max_size,
        function: match murmur {
            true => RingHashFunction::Murmur2,
            false => RingHashFunction::XxHash,
        },
    })
}

pub(super) fn maglev(table_size: Option<&UInt64Value>, scope: &Scope) -> Result<Policy, Rejection> {
    let table_size = table_size.map_or(65_537, |size| size.value);
    if !(2..=MAX_MAGLEV).contains(&table_size) || !is_prime(table_size) {
        return scope.refuse(format!(
            "maglev table_size {table_size} is not a prime up to {MAX_MAGLEV}"
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
