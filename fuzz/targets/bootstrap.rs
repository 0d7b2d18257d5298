//! A bootstrap in JSON, read by reflection and compiled.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use meltemi_proto::envoy::config::bootstrap::v3::Bootstrap as Message;
use meltemi_proto::json::Reflection;
use meltemi_proxy_config::bootstrap::Bootstrap;

static REFLECTION: LazyLock<Reflection> =
    LazyLock::new(|| Reflection::new().expect("the descriptors decode"));

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice(bytes) else {
        return;
    };
    let Ok(message) = REFLECTION.from_json::<Message>(&value) else {
        return;
    };

    let _ = Bootstrap::compile(&message);
    let _ = REFLECTION.to_json(&meltemi_proto::pack(&message));
});
