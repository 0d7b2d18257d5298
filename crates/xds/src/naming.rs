//! Finds the name inside an encoded resource, since state-of-the-world responses carry no names
//! beside the resources.

use meltemi_proto::{Any, type_url};

/// The type URL of `envoy.service.discovery.v3.Resource`, in which a state-of-the-world server may
/// wrap a resource without a name field.
pub(crate) const WRAPPED: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// The name of a packed resource. All of Envoy's discovered types have it in the string field 1.
/// Types that this function does not know, such as the name table, have the empty name. `None` if
/// the bytes are malformed.
pub fn name_of(any: &Any) -> Option<String> {
    match any.type_url.as_str() {
        type_url::CLUSTER
        | type_url::ENDPOINT
        | type_url::LISTENER
        | type_url::ROUTE
        | type_url::VIRTUAL_HOST
        | type_url::SECRET
        | type_url::EXTENSION_CONFIG => first_string(&any.value),
        _ => Some(String::new()),
    }
}

/// The last occurrence of field 1 as text; fields are skipped, not decoded. Absent means empty
/// (proto3).
fn first_string(mut bytes: &[u8]) -> Option<String> {
    let mut found = String::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let (field, wire) = (key >> 3, key & 7);
        match wire {
            0 => {
                varint(&mut bytes)?;
            }
            1 => bytes = bytes.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let value = bytes.get(..length)?;
                if field == 1 {
                    found = String::from_utf8(value.to_vec()).ok()?;
                }
                bytes = &bytes[length..];
            }
            5 => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }

    Some(found)
}

/// A base-128 integer of at most ten bytes.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if shift < 64 {
            value |= u64::from(byte & 0x7f) << shift;
        }
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }

    None
}

#[cfg(test)]
mod tests {
    use meltemi_proto::envoy::config::cluster::v3::Cluster;
    use meltemi_proto::pack;

    use super::*;

    #[test]
    fn the_name_is_found_behind_other_fields() {
        let cluster = Cluster {
            name: "outbound|80||a.b".into(),
            alt_stat_name: "x".into(),
            ..Cluster::default()
        };
        assert_eq!(
            name_of(&pack(&cluster)).as_deref(),
            Some("outbound|80||a.b")
        );
    }

    #[test]
    fn foreign_bytes_are_no_name_and_no_panic() {
        for value in [
            vec![0x0a, 0xff],
            vec![0xff; 12],
            vec![0x0a, 0x02, 0xff, 0xfe],
            vec![0x0f],
            vec![0x09, 1],
        ] {
            assert_eq!(
                name_of(&Any {
                    type_url: type_url::CLUSTER.into(),
                    value
                }),
                None
            );
        }
    }
}
