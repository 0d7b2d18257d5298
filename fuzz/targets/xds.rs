//! xDS messages, compiled. What compiles once compiles again, with the same warnings.
//!
//! The first byte picks the type, the others are the message. Seeds are JSON with `@type`, for
//! people to read: they are encoded before the first mutation.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::envoy::config::route::v3::RouteConfiguration;
use meltemi_proto::envoy::extensions::transport_sockets::tls::v3::Secret;
use meltemi_proto::json::Reflection;
use meltemi_proto::{Any, pack, type_url, unpack};
use meltemi_proxy_config::tls::SecretContent;
use meltemi_proxy_config::{Compiler, Rejection, Warning};
use serde_json::Value;

static REFLECTION: LazyLock<Reflection> =
    LazyLock::new(|| Reflection::new().expect("the descriptors decode"));

fuzz_target!(|bytes: &[u8]| {
    let encoded = match bytes {
        [b'{', ..] => encode(bytes),
        _ => Some(bytes.to_vec()),
    };
    let Some((kind, message)) = encoded.as_deref().and_then(<[u8]>::split_first) else {
        return;
    };

    let first = compile(*kind, message);
    let second = compile(*kind, message);
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
});

fuzz_mutator!(
    |data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
        let seed = &data[..size];
        let encoded = if seed.starts_with(b"{") {
            encode(seed)
        } else {
            None
        };
        let size = match encoded {
            Some(encoded) if encoded.len() <= max_size => {
                data[..encoded.len()].copy_from_slice(&encoded);
                encoded.len()
            }
            _ => size,
        };

        fuzzer_mutate(data, size, max_size)
    }
);

/// JSON with `@type` as the byte for the type and the encoded message.
fn encode(json: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(json).ok()?;
    let url = value.as_object_mut()?.remove("@type")?;
    let (kind, any) = match url.as_str()? {
        type_url::CLUSTER => (b'c', pack(&REFLECTION.from_json::<Cluster>(&value).ok()?)),
        type_url::ENDPOINT => (
            b'e',
            pack(&REFLECTION.from_json::<ClusterLoadAssignment>(&value).ok()?),
        ),
        type_url::LISTENER => (b'l', pack(&REFLECTION.from_json::<Listener>(&value).ok()?)),
        type_url::ROUTE => (
            b'r',
            pack(&REFLECTION.from_json::<RouteConfiguration>(&value).ok()?),
        ),
        type_url::SECRET => (b's', pack(&REFLECTION.from_json::<Secret>(&value).ok()?)),
        _ => return None,
    };

    Some([&[kind], any.value.as_slice()].concat())
}

fn compile(kind: u8, message: &[u8]) -> Result<Vec<Warning>, Rejection> {
    let compiler = Compiler::default();
    let any = |url: &str| Any {
        type_url: url.to_owned(),
        value: message.to_vec(),
    };

    match kind {
        b'c' => {
            let compiled = compiler.cluster_from(&any(type_url::CLUSTER));
            compiled.map(|(_, warnings)| warnings)
        }
        b'e' => {
            let compiled = compiler.endpoints_from(&any(type_url::ENDPOINT));
            compiled.map(|(_, warnings)| warnings)
        }
        b'l' => {
            let compiled = compiler.listener_from(&any(type_url::LISTENER));
            compiled.map(|(_, warnings)| warnings)
        }
        b'r' => {
            let compiled = compiler.route_from(&any(type_url::ROUTE));
            compiled.map(|(_, warnings)| warnings)
        }
        _ => match unpack(&any(type_url::SECRET)) {
            Ok(secret) => SecretContent::compile(&secret).map(|(_, warnings)| warnings),
            Err(_) => Ok(Vec::new()),
        },
    }
}
