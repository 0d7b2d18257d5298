//! What a mesh does on request only.

use std::fs;

use serde_json::json;

use crate::mesh::Plan;
use crate::peers::{App, Peers, curl, yaml};

/// A bootstrap for our proxy alone, under the control plane's plaintext port.
fn bootstrap() -> String {
    let address = |address: &str, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
    let endpoint = json!({"endpoint": {"address": address("10.44.0.1", 15010)}});
    json!({
        "node": {
            "id": "sidecar~10.44.99.99~guest.default~default.svc.cluster.local",
            "cluster": "guest",
            "metadata": {"NAMESPACE": "default"},
        },
        "admin": {"address": address("127.0.0.1", 19000)},
        "dynamic_resources": {
            "ads_config": {"api_type": "DELTA_GRPC", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
            "cds_config": {"ads": {}},
        },
        "static_resources": {"clusters": [{
            "name": "xds",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }]},
    })
    .to_string()
}

#[test]
fn plaintext_xds_is_served_on_request_only() {
    let Some(peers) = Peers::of("plaintext_xds_is_served_on_request_only") else {
        return;
    };
    for is_wanted in [true, false] {
        let plan = Plan::new().argument("--no-gateways");
        let plan = if is_wanted {
            plan.argument("--plaintext-xds")
        } else {
            plan
        };

        let file = plan.path("bootstrap.json");
        fs::write(&file, bootstrap()).expect("a writable folder");
        let words = [
            &crate::binary().display().to_string(),
            "proxy",
            "-c",
            &file.display().to_string(),
        ];

        let guest = App::new("guest", &[], words.map(str::to_owned).to_vec()).unmeshed();
        let apps = [peers.recorder("ledger"), App::idle("inside"), guest];
        let mesh = plan.file("apps.yaml", &yaml(&apps)).start();

        if !is_wanted {
            let refused = curl(&mesh, "guest", &["http://10.44.0.1:15010/"]);
            assert_eq!(
                (refused.status, refused.code),
                (0, 7),
                "nobody listens: {}",
                refused.text
            );
            continue;
        }

        mesh.wait("a proxy without any proof gets configuration", || {
            let clusters = curl(&mesh, "guest", &["http://127.0.0.1:19000/clusters"]);
            clusters.status == 200
                && clusters
                    .text
                    .contains("outbound|9080||ledger.default.svc.cluster.local")
        });

        // Through a sidecar as well, which passes on what is not the mesh's.
        let answered = curl(
            &mesh,
            "inside",
            &["--http2-prior-knowledge", "http://10.44.0.1:15010/"],
        );

        assert_eq!(
            (answered.status, answered.code),
            (200, 0),
            "gRPC refuses in the trailers: {}",
            answered.text
        );
    }
}
