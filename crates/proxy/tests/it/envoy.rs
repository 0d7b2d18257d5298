//! Stock Envoy with the same static resources as our proxy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use meltemi_proto::envoy::config::cluster::v3::Cluster;
use meltemi_proto::envoy::config::listener::v3::Listener;
use meltemi_proto::json::Reflection;
use meltemi_proto::{Any, pack};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::peers::Client;

/// Where it is: `MELTEMI_ENVOY`, else where the repository's chores put it. `None` after a visible,
/// counted skip.
pub fn program(test: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
    let program = std::env::var_os("MELTEMI_ENVOY")
        .map_or_else(|| root.join("target/peers/python/bin/envoy"), PathBuf::from);
    if program.is_file() {
        return Some(program);
    }
    crate::skip(test, "there is no Envoy (cargo xtask peers)");
    None
}

/// A running Envoy; dropping it ends it.
pub struct Envoy {
    folder: tempfile::TempDir,
    admin: SocketAddr,
    _child: Child,
}

impl Envoy {
    /// Starts with these resources. Logs that name a file go below its folder: see [`Envoy::log`].
    pub async fn start(
        program: PathBuf,
        clusters: Vec<Cluster>,
        listeners: impl FnOnce(&Path) -> Vec<Listener>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (config, admin) = (
            folder.path().join("envoy.json"),
            folder.path().join("admin"),
        );

        let reflection = Reflection::new().expect("descriptors");
        let show = |any: Any| match reflection.to_json(&any) {
            Value::Object(mut fields) => {
                fields.remove("@type");
                Value::Object(fields)
            }
            other => panic!("not a message: {other}"),
        };

        let bootstrap = json!({
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            // As Istio's bootstrap has it: a fragment is cut, and does not refuse the request.
            "layered_runtime": { "layers": [{ "name": "istio", "static_layer": {
                "envoy.reloadable_features.http_reject_path_with_fragment": false,
            } }] },
            "static_resources": {
                "clusters": clusters.iter().map(|cluster| show(pack(cluster))).collect::<Vec<_>>(),
                "listeners": listeners(folder.path()).iter().map(|one| show(pack(one))).collect::<Vec<_>>(),
            }
        });

        std::fs::write(&config, bootstrap.to_string()).expect("written");
        let errors = std::fs::File::create(folder.path().join("errors")).expect("a file");
        let mut child = Command::new(program)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "-l",
                "warn",
                "--file-flush-interval-msec",
                "10",
            ])
            .args([
                "-c".as_ref(),
                config.as_os_str(),
                "--admin-address-path".as_ref(),
                admin.as_os_str(),
            ])
            .stdout(Stdio::null())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .expect("Envoy starts");

        let address = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                let errors =
                    std::fs::read_to_string(folder.path().join("errors")).unwrap_or_default();
                panic!("Envoy ended with {status}: {errors}");
            }

            let written = std::fs::read_to_string(&admin).unwrap_or_default();
            if let Ok(address) = written.trim().parse() {
                break address;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };

        let envoy = Self {
            folder,
            admin: address,
            _child: child,
        };

        while envoy.admin("/ready").await != "LIVE\n" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        envoy
    }

    /// A page of its admin interface.
    pub async fn admin(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\nhost: localhost\n\n");
        Client::connect(self.admin).await.ask(&request).await.1
    }

    /// Where a listener listens.
    pub async fn at(&self, name: &str) -> SocketAddr {
        let page: Value =
            serde_json::from_str(&self.admin("/listeners?format=json").await).expect("JSON");
        let all = page["listener_statuses"].as_array().expect("a list");
        let own = all
            .iter()
            .find(|status| status["name"] == name)
            .expect("it listens");

        let socket = &own["local_address"]["socket_address"];
        let ip = socket["address"]
            .as_str()
            .expect("an address")
            .parse()
            .expect("an address");

        SocketAddr::new(
            ip,
            socket["port_value"]
                .as_u64()
                .and_then(|port| port.try_into().ok())
                .expect("a port"),
        )
    }

    /// Waits for a line of a log that begins so.
    pub async fn line(&self, log: &str, start: &str) -> String {
        for _ in 0..500 {
            let text = std::fs::read(self.folder.path().join(log)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            if let Some(line) = text.lines().find(|line| line.starts_with(start)) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("Envoy logged no line that begins with {start:?}");
    }
}
