//! What validation takes, no proxy refuses: neither ours nor Envoy.
//!
//! One refused route takes its whole table with it, in every proxy. So objects are damaged at random,
//! and whatever validation still takes is translated, and compiled as each proxy does.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use meltemi_api::{Object, parse, to_yaml, validate};
use meltemi_model::{BuildOptions, Snapshot, Tables};
use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::config::core::v3::{address, socket_address::PortSpecifier};
use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::envoy::config::route::v3::RouteConfiguration;
use meltemi_proto::{Any, type_url, unpack};
use meltemi_proxy_config::Compiler;
use meltemi_translate::{Memo, Proxy, Translated, translate};
use meltemi_types::Severity;
use prost::Message;
use serde_json::Value;

use crate::envoy::{bootstrap_of, envoy};

/// Something of every kind and field that proxies get to see.
const CORPUS: &str = include_str!("data/corpus.yaml");

/// Texts that some field does not bear.
const TEXTS: &[&str] = &[
    "",
    "a",
    "*",
    "*.example.com",
    "*foo.example.com",
    "foo.*",
    "a b",
    "5% off",
    "100%%",
    "%NOPE%",
    "%PROTOCOL%",
    "%REQ(a?b)%",
    "%REQ(a?b?c)%",
    "%START_TIME(%s)%",
    "a\r\nx: y",
    "\u{0}",
    "\t",
    "é",
    "/",
    "/a/{*}",
    "/a/{*}/{**}",
    "/a b/{*}",
    "/{id}/x",
    "/x{1001}",
    "(a",
    "a{2}{3}",
    "[a&&b]",
    r"\1",
    r"\9",
    r"\Qa",
    "(?i)é+",
    r"\p{Greek}{900}",
    "(?:[^a]{10}){99}",
    "unix:///tmp/x",
    "10.0.0.0/8",
    "::1",
    "10.0.0.1",
    "1.2.3",
    "-1",
    "0",
    "65536",
    "istio-system",
    ".",
    "~",
    "TLS",
    "HTTP",
    "TCP",
    "GRPC",
    "0s",
    "1ms",
    "0.5ms",
    "1h",
    "2562047h",
    "999999999h",
    "Host",
    ":path",
    ":authority",
    "x_y",
    "content-length",
    "set-cookie",
    "a:b",
    "ALL",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "NOPE",
];

const NUMBERS: &[i64] = &[
    -1,
    0,
    1,
    2,
    80,
    99,
    100,
    101,
    200,
    599,
    600,
    15001,
    15006,
    65535,
    65536,
    5_000_011,
    8_388_609,
    2_147_483_647,
    4_294_967_295,
];

/// How many objects are damaged, or `MELTEMI_ROUNDS` of them, to look for more.
fn rounds(usual: usize) -> usize {
    let asked = std::env::var("MELTEMI_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

struct Random(u64);

impl Random {
    /// The same numbers in every run, or those of `MELTEMI_SEED`, to look for more.
    fn new() -> Self {
        let seed = std::env::var("MELTEMI_SEED").ok();
        let seed = seed.and_then(|text| text.parse::<u64>().ok());
        Self(seed.unwrap_or(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or(0)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// The leaves and lists of a value, as JSON pointers.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(inner, &format!("{at}/{key}"), out);
            }
        }
        Value::Array(items) => {
            out.push(at.to_owned());
            for (index, inner) in items.iter().enumerate() {
                places(inner, &format!("{at}/{index}"), out);
            }
        }
        _ => out.push(at.to_owned()),
    }
}

/// Changes one place of the spec.
fn damage(spec: &mut Value, random: &mut Random) {
    let mut all = Vec::new();
    places(spec, "", &mut all);
    let place = random.of(&all).clone();
    let Some(target) = spec.pointer_mut(&place) else {
        return;
    };

    *target = match target {
        Value::Array(items) if !items.is_empty() => {
            let mut items = items.clone();
            let copied = random.of(&items).clone();
            match random.below(3) {
                0 => items.push(copied),
                1 => items.reverse(),
                _ => {
                    items.remove(0);
                }
            }
            Value::Array(items)
        }
        Value::Number(_) => Value::from(*random.of(NUMBERS)),
        Value::Bool(on) => Value::from(!*on),
        // Often two texts together, so that a part of what was valid stays.
        Value::String(text) if random.below(3) == 0 => {
            Value::from(format!("{text}{}", random.of(TEXTS)))
        }
        _ => Value::from(*random.of(TEXTS)),
    };
}

/// A sidecar and a gateway, ours or stock Envoy.
fn proxies(is_meltemi: bool) -> [Proxy; 2] {
    let gateway = super::proxy(
        "router~10.44.0.9~entry-1.shop~shop.svc.cluster.local",
        "entry",
        &[("istio", "ingressgateway")],
    );
    [caller(), gateway].map(|mut proxy| {
        proxy.is_meltemi = is_meltemi;
        proxy
    })
}

fn caller() -> Proxy {
    super::proxy(
        "sidecar~10.44.0.2~front-1.shop~shop.svc.cluster.local",
        "front",
        &[("app", "front")],
    )
}

/// The corpus with one object damaged; `None` if validation refuses the object.
fn mutant(corpus: &[Arc<Object>], random: &mut Random) -> Option<(String, Tables)> {
    // Every place of the corpus is damaged as often as any other, whoever's it is.
    let sizes = corpus.iter().map(|object| {
        let mut all = Vec::new();
        places(object.raw.get("spec").unwrap_or(&Value::Null), "", &mut all);
        all.len()
    });
    let sizes: Vec<usize> = sizes.collect();
    let mut place = random.below(sizes.iter().sum());
    let at = sizes.iter().position(|size| {
        let is_here = place < *size;
        place = place.saturating_sub(*size);
        is_here
    })?;
    let mut raw = corpus[at].raw.clone();
    for _ in 0..=random.below(2) {
        damage(raw.get_mut("spec")?, random);
    }

    let text = to_yaml(&raw);
    let parsed = parse("mutant.yaml", &text);
    let [object] = parsed.objects.as_slice() else {
        return None;
    };
    let is_error = |one: &meltemi_types::Diagnostic| one.severity == Severity::Error;
    if parsed.diagnostics.iter().any(is_error) || validate(object).iter().any(is_error) {
        return None;
    }

    let object = Arc::new(object.clone());
    let others = corpus.iter().enumerate().filter(|(index, _)| *index != at);
    let tables = others
        .map(|(_, other)| other.clone())
        .chain([object])
        .collect();

    Some((text, tables))
}

fn translated(tables: &Tables, proxy: &Proxy) -> Translated {
    let snapshot = Snapshot::build(None, tables, &BuildOptions::default()).snapshot;
    translate(&snapshot, proxy, &Memo::new())
}

fn corpus() -> Vec<Arc<Object>> {
    let parsed = parse("corpus.yaml", CORPUS);
    let errors: Vec<_> = parsed
        .diagnostics
        .iter()
        .cloned()
        .chain(parsed.objects.iter().flat_map(validate))
        .filter(|one| one.severity == Severity::Error)
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    parsed.objects.into_iter().map(Arc::new).collect()
}

/// Compiles every resource as our proxy does.
fn compile(compiler: &Compiler, translated: &Translated) -> Vec<String> {
    let mut refused = Vec::new();
    for (url, resources) in &translated.resources {
        for one in resources {
            let result = match *url {
                type_url::CLUSTER => compiler.cluster_from(&one.any).map(drop),
                type_url::ENDPOINT => compiler.endpoints_from(&one.any).map(drop),
                type_url::LISTENER => compiler.listener_from(&one.any).map(drop),
                type_url::ROUTE => compiler.route_from(&one.any).map(drop),
                _ => Ok(()),
            };
            if let Err(rejection) = result {
                refused.push(format!("{}: {rejection}", one.name));
            }
        }
    }

    refused
}

#[test]
fn what_validation_takes_our_proxy_takes() {
    let (corpus, mut random) = (corpus(), Random::new());
    let compiler = Compiler::default();
    let mut taken = 0;

    let proxies = proxies(true);
    for _ in 0..rounds(1500) {
        let Some((text, tables)) = mutant(&corpus, &mut random) else {
            continue;
        };
        taken += 1;
        let proxy = &proxies[taken % proxies.len()];
        let refused = compile(&compiler, &translated(&tables, proxy));
        assert!(refused.is_empty(), "{refused:#?}\nafter\n{text}");
    }

    assert!(taken > 200, "only {taken} mutants are valid");
}

/// The files below a folder that hold YAML.
fn yaml_files(folder: &Path, out: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() {
            yaml_files(&path, out);
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            out.push(path);
        }
    }
}

/// The objects of Istio's samples, file by file, with the services of bookinfo before them.
fn samples(folder: &Path) -> Vec<Vec<Arc<Object>>> {
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let objects = parse("sample.yaml", &text).objects.into_iter();
        objects.map(Arc::new).collect::<Vec<_>>()
    };

    let bookinfo = read(&folder.join("bookinfo/platform/kube/bookinfo.yaml"));
    let mut files = Vec::new();
    yaml_files(folder, &mut files);
    files.sort();

    files
        .iter()
        .map(|path| read(path))
        .filter(|objects| objects.iter().any(|object| object.kind.is_mesh()))
        .map(|objects| objects.into_iter().chain(bookinfo.clone()).collect())
        .collect()
}

/// Proxies that most of the samples are for, ours or stock Envoy.
fn sample_proxies(is_meltemi: bool) -> Vec<Proxy> {
    let sidecars = [
        ("productpage", "bookinfo-productpage"),
        ("reviews", "bookinfo-reviews"),
        ("httpbin", "httpbin"),
    ];
    let sidecars = sidecars.map(|(app, account)| {
        super::proxy(
            &format!("sidecar~10.44.0.2~{app}-1.default~default.svc.cluster.local"),
            account,
            &[("app", app), ("version", "v1")],
        )
    });
    let gateway = super::proxy(
        "router~10.44.0.9~entry-1.istio-system~istio-system.svc.cluster.local",
        "entry",
        &[("istio", "ingressgateway")],
    );

    let all = sidecars.into_iter().chain([gateway]);
    all.map(|proxy| Proxy {
        is_meltemi,
        ..proxy
    })
    .collect()
}

#[test]
fn what_validation_takes_of_damaged_samples_our_proxy_takes() {
    let Some(folder) = meltemi_testkit::shared_or_skip("istio/samples") else {
        return;
    };

    let (samples, mut random) = (samples(&folder), Random::new());
    assert!(samples.len() > 10, "only {} samples", samples.len());
    let proxies = sample_proxies(true);
    let compiler = Compiler::default();
    let mut taken = 0;
    for _ in 0..rounds(2500) {
        let sample = random.of(&samples);
        let Some((text, tables)) = mutant(sample, &mut random) else {
            continue;
        };
        taken += 1;
        let refused = compile(
            &compiler,
            &translated(&tables, &proxies[taken % proxies.len()]),
        );
        assert!(refused.is_empty(), "{refused:#?}\nafter\n{text}");
    }

    assert!(taken > 100, "only {taken} mutants are valid");
}

/// Resources of many mutants under names of their own, so that Envoy reads them at once.
#[derive(Default)]
struct Heap {
    seen: HashSet<Vec<u8>>,
    clusters: Vec<Cluster>,
    listeners: Vec<Listener>,
    tables: Vec<RouteConfiguration>,
}

impl Heap {
    fn add(&mut self, translated: &Translated) {
        for one in translated.resources.values().flatten() {
            let Any { type_url, value } = &one.any;
            if !self.seen.insert(value.clone()) {
                continue;
            }
            let number = self.seen.len();
            match type_url.as_str() {
                type_url::CLUSTER => {
                    let mut cluster: Cluster = unpack(&one.any).expect("a cluster");
                    cluster.name = format!("{number}/{}", cluster.name);
                    self.clusters.push(cluster);
                }
                type_url::LISTENER => {
                    let mut listener: Listener = unpack(&one.any).expect("a listener");
                    listener.name = format!("{number}/{}", listener.name);
                    if let Some(address::Address::SocketAddress(at)) =
                        listener.address.as_mut().and_then(|at| at.address.as_mut())
                    {
                        let port = 30_000 + u32::try_from(number).expect("few") % 30_000;
                        at.port_specifier = Some(PortSpecifier::PortValue(port));
                        at.address = "127.0.0.1".to_owned();
                    }
                    self.listeners.push(listener);
                }
                type_url::ROUTE => self.tables.push(unpack(&one.any).expect("a table")),
                _ => {}
            }
        }
    }

    fn verdict(self, envoy: &Path, file: &Path) -> Result<(), String> {
        let bootstrap = bootstrap_of(self.clusters, self.listeners, self.tables, "mutants");
        std::fs::write(file, bootstrap.encode_to_vec()).expect("a file");
        let output = Command::new(envoy)
            .args(["--mode", "validate", "--log-level", "error", "-c"])
            .arg(file)
            .output()
            .expect("Envoy runs");

        let said = String::from_utf8_lossy(&output.stdout).contains("OK");
        match output.status.success() && said {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

/// Has Envoy read what its proxies get of each mutant, many at once.
fn check_in_envoy(envoy: &Path, all: &[(String, Tables)], proxies: &[Proxy]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mutants.pb");
    let heap_of = |mutants: &[(String, Tables)]| {
        let mut heap = Heap::default();
        for (_, tables) in mutants {
            for proxy in proxies {
                heap.add(&translated(tables, proxy));
            }
        }
        heap
    };

    for mutants in all.chunks(100) {
        let Err(whole) = heap_of(mutants).verdict(envoy, &file) else {
            continue;
        };
        for one in mutants {
            if let Err(said) = heap_of(std::slice::from_ref(one)).verdict(envoy, &file) {
                panic!("{said}\nafter\n{}", one.0);
            }
        }
        panic!("together only: {whole}");
    }
}

#[test]
fn what_validation_takes_envoy_takes() {
    let Some(envoy) = envoy() else {
        super::skip(
            "what_validation_takes_envoy_takes",
            "there is no Envoy (cargo xtask peers)",
        );
        return;
    };

    let (corpus, mut random) = (corpus(), Random::new());
    let all: Vec<(String, Tables)> = (0..rounds(1500))
        .filter_map(|_| mutant(&corpus, &mut random))
        .collect();
    assert!(all.len() > 200, "only {} mutants are valid", all.len());
    check_in_envoy(&envoy, &all, &proxies(false));
}

#[test]
fn what_validation_takes_of_damaged_samples_envoy_takes() {
    let Some(envoy) = envoy() else {
        super::skip(
            "what_validation_takes_of_damaged_samples_envoy_takes",
            "there is no Envoy (cargo xtask peers)",
        );
        return;
    };
    let Some(folder) = meltemi_testkit::shared_or_skip("istio/samples") else {
        return;
    };

    let (samples, mut random) = (samples(&folder), Random::new());
    let all: Vec<(String, Tables)> = (0..rounds(1500))
        .filter_map(|_| {
            let sample = random.of(&samples).clone();
            mutant(&sample, &mut random)
        })
        .collect();
    assert!(all.len() > 100, "only {} mutants are valid", all.len());
    check_in_envoy(&envoy, &all, &sample_proxies(false));
}
