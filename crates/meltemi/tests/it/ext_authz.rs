//! An external authorizer, from Istio's YAML to the decision on a request: a real service over HTTP
//! and gRPC as a workload of the mesh, stock Envoy and our proxy before the guarded workloads.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mesh::{Mesh, Plan};
use crate::peers::{App, Curl, Dialogue, Peers, curl, envoy, yaml};

/// The workloads that are guarded, by their proxies.
const SERVERS: &[&str] = &["ours", "envoy"];

/// How a check is asked for; both kinds of provider have the same decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    Http,
    Grpc,
}

impl Api {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    /// A provider named as the API, with further fields.
    fn provider(self, fields: &str) -> String {
        let (kind, port) = match self {
            Self::Http => ("envoyExtAuthzHttp", 8000),
            Self::Grpc => ("envoyExtAuthzGrpc", 9000),
        };
        format!(
            "    - name: {}\n      {kind}: {{service: authz.default.svc.cluster.local, port: {port}{fields}}}\n",
            self.name()
        )
    }
}

const HTTP_FIELDS: &str = ", pathPrefix: /check, includeRequestHeadersInCheck: [x-decide, x-user-*], \
    includeAdditionalHeadersInCheck: {x-from-mesh: always}, headersToUpstreamOnAllow: [x-checked], \
    headersToDownstreamOnDeny: [x-reason], headersToDownstreamOnAllow: [x-answered]";

fn mesh_config(common: &str) -> String {
    let http = Api::Http.provider(&format!("{HTTP_FIELDS}{common}"));
    let grpc = Api::Grpc.provider(common);
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    accessLogFile: /dev/stdout\n    extensionProviders:\n{http}{grpc}"
    )
}

fn policy(server: &str, provider: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ask-{server}}}\nspec:\n  selector: {{matchLabels: {{app: {server}}}}}\n  action: CUSTOM\n  provider: {{name: {provider}}}\n  rules:\n  - to: [{{operation: {{paths: [\"/guarded*\"]}}}}]\n"
    )
}

fn policies(provider: &str) -> String {
    SERVERS
        .iter()
        .map(|server| policy(server, provider))
        .collect()
}

/// A mesh with an authorizer, the guarded workloads and their callers.
struct World {
    mesh: Mesh,
    peers: Peers,
}

impl World {
    fn start(test: &str) -> Option<Self> {
        let (Some(peers), Some(envoy)) = (Peers::of(test), envoy(test)) else {
            return None;
        };

        let guarded = SERVERS.iter().map(|server| {
            let app = peers.recorder(server);
            if *server == "envoy" {
                app.with_envoy()
            } else {
                app
            }
        });
        let apps: Vec<App> = guarded
            .chain(["friend", "foe"].map(App::idle))
            .chain([App::idle("outside").unmeshed()])
            .collect();

        let authorizer = App::new(
            "authz",
            &[("http", 8000), ("grpc", 9000)],
            peers.program("authorizer.py", &["8000", "9000"]),
        )
        .yaml();
        let (service, deployment) = authorizer
            .split_once("---\napiVersion: apps/v1\n")
            .expect("a Service and a Deployment");

        let mesh = Plan::new()
            .argument("--no-gateways")
            .argument("--envoy")
            .argument(&envoy.display().to_string())
            .file("apps.yaml", &yaml(&apps))
            .file("authz-service.yaml", service)
            .file("authz.yaml", &format!("apiVersion: apps/v1\n{deployment}"))
            .file("mesh.yaml", &mesh_config(""))
            .start();

        Some(Self { mesh, peers })
    }

    /// The authorizer's decision on a request, made by the header that it obeys. The caller has no
    /// sidecar, so that every request has a connection of its own: Envoy serves a connection under
    /// the configuration that it began with.
    fn call(&self, server: &str, path: &str, decision: &str, more: &[&str]) -> Curl {
        let (decide, url) = (
            format!("x-decide: {decision}"),
            format!("http://{server}:9080{path}"),
        );
        let fixed = ["-i", "-H", &decide, &url];
        curl(&self.mesh, "outside", &[&fixed[..], more].concat())
    }

    /// Waits until the authorizer of this provider, with these settings, decides on a server.
    fn until_asked(&self, server: &str, api: Api) {
        let (denied, path) = (
            format!("denied over {}", api.name()),
            format!("/guarded/{}/wait", api.name()),
        );
        self.mesh
            .wait(&format!("{server} asks over {}", api.name()), || {
                self.call(server, &path, "deny", &[]).text.contains(&denied)
            });
    }

    /// The checks that the authorizer was asked for, of requests with this path.
    fn checks(&self, path: &str) -> Vec<Value> {
        let log = self.mesh.cli_ok(&["logs", "authz"]);
        log.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|check| {
                check["path"]
                    .as_str()
                    .is_some_and(|asked| asked.ends_with(path))
            })
            .collect()
    }

    /// What the application of a server received, as its log shows it.
    fn received(&self, server: &str, path: &str) -> String {
        let seen = || {
            let log = self.mesh.cli_ok(&["logs", server]);
            log.lines()
                .find(|line| line.contains(&format!(" {path} HTTP/1.1")))
                .map(str::to_owned)
        };
        self.mesh
            .wait(&format!("{path} is in the log"), || seen().is_some());
        seen().unwrap_or_default()
    }
}

#[test]
fn an_authorizer_decides_on_requests_over_http_and_grpc() {
    let Some(world) = World::start("an_authorizer_decides_on_requests_over_http_and_grpc") else {
        return;
    };

    for api in [Api::Http, Api::Grpc] {
        world.mesh.write("policies.yaml", &policies(api.name()));
        for server in SERVERS {
            world.until_asked(server, api);
            decides(&world, server, api);
        }
    }

    let body = ", includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}";
    world.mesh.write("mesh.yaml", &mesh_config(body));
    for api in [Api::Http, Api::Grpc] {
        world.mesh.write("policies.yaml", &policies(api.name()));
        for server in SERVERS {
            sees_the_body(&world, server, api);
        }
    }

    let whole = ", includeRequestBodyInCheck: {maxRequestBytes: 10}";
    world.mesh.write("mesh.yaml", &mesh_config(whole));
    for server in SERVERS {
        let long = ["--data", "0123456789abcdef"];
        world
            .mesh
            .wait(&format!("{server} refuses a long body"), || {
                world.call(server, "/guarded/long", "allow", &long).status == 413
            });
    }
}

/// What passes, what does not, and which headers go where.
fn decides(world: &World, server: &str, api: Api) {
    let path = |name: &str| format!("/guarded/{}/{server}/{name}", api.name());
    let context = format!("{server} over {}", api.name());

    // The authorizer's own status, headers and body, not the proxy's.
    let denied = world.call(
        server,
        &path("denied"),
        "deny",
        &["-H", "x-user-name: ann", "-H", "x-other: no"],
    );
    assert_eq!(denied.status, 401, "{context}: {denied:?}");
    let said = denied.text.to_ascii_lowercase();
    assert!(said.contains("x-reason: because"), "{context}: {denied:?}");
    assert!(
        said.contains(&format!("denied over {}", api.name())),
        "{context}: {denied:?}"
    );

    let [check] = world.checks(&path("denied")).try_into().expect("one check");
    let header = |name: &str| check["headers"][name].as_str();
    assert_eq!(check["api"], api.name(), "{check}");
    assert_eq!(check["method"], "GET", "{check}");
    assert_eq!(header("x-user-name"), Some("ann"), "{check}");

    // An HTTP check carries the headers that are listed, and a denial likewise; a gRPC check
    // carries all.
    match api {
        Api::Http => {
            assert_eq!(
                check["path"],
                format!("/check{}", path("denied")),
                "{check}"
            );
            assert_eq!(header("x-from-mesh"), Some("always"), "{check}");
            assert_eq!(header("x-other"), None, "{check}");
            assert!(!said.contains("x-not-listed"), "{context}: {denied:?}");
        }
        Api::Grpc => {
            assert_eq!(header("x-other"), Some("no"), "{check}");
            assert!(
                said.contains("x-not-listed: downstream"),
                "{context}: {denied:?}"
            );
        }
    }

    let allowed = world.call(
        server,
        &path("allowed"),
        "allow",
        &["-H", "x-checked: forged"],
    );
    assert_eq!(allowed.status, 200, "{context}: {allowed:?}");
    let said = allowed.text.to_ascii_lowercase();
    assert!(said.contains("x-answered: yes"), "{context}: {allowed:?}");

    // The authorizer's header replaces the caller's.
    let received = world
        .received(server, &path("allowed"))
        .to_ascii_lowercase();
    assert!(received.contains("x-checked: yes"), "{context}: {received}");
    assert!(!received.contains("forged"), "{context}: {received}");
    let carries = received.contains("x-not-listed: upstream");
    assert_eq!(carries, api == Api::Grpc, "{context}: {received}");

    // What no rule selects is not asked about.
    let open = format!("/open/{}/{server}", api.name());
    assert_eq!(
        world.call(server, &open, "deny", &[]).status,
        200,
        "{context}"
    );
    assert_eq!(world.checks(&open), Vec::<Value>::new(), "{context}");
}

fn sees_the_body(world: &World, server: &str, api: Api) {
    let path = format!("/guarded/{}/{server}/body", api.name());
    let long = ["--data", "0123456789abcdef"];

    world.mesh.wait(
        &format!("{server} sends bodies over {}", api.name()),
        || {
            assert_eq!(
                world.call(server, &path, "allow", &long).status,
                200,
                "{server} {api:?}"
            );
            let checks = world.checks(&path);
            checks
                .iter()
                .any(|check| check["api"] == api.name() && check["body"] == "0123456789")
        },
    );

    // The application has the whole body all the same.
    let path = format!("{path}/whole");
    assert_eq!(world.call(server, &path, "allow", &long).status, 200);
    let received = world.received(server, &path);
    let log = world.mesh.cli_ok(&["logs", server]);
    assert!(
        log.contains("0123456789abcdef"),
        "{server} {api:?}: {received}"
    );

    let [check] = world.checks(&path).try_into().expect("one check");
    assert_eq!(
        check["headers"]["x-envoy-auth-partial-body"], "true",
        "{check}"
    );
}

#[test]
fn a_failing_authorizer_closes_or_opens_as_its_provider_says() {
    let Some(world) = World::start("a_failing_authorizer_closes_or_opens_as_its_provider_says")
    else {
        return;
    };
    let mesh = &world.mesh;

    for api in [Api::Http, Api::Grpc] {
        mesh.write("policies.yaml", &policies(api.name()));
        mesh.write("mesh.yaml", &mesh_config(", timeout: 1s"));
        for server in SERVERS {
            world.until_asked(server, api);
            let call = |decision: &str| world.call(server, "/guarded/x", decision, &[]);
            mesh.wait("the timeout holds", || {
                let asked = Instant::now();
                call("slow").status == 403 && asked.elapsed() < Duration::from_secs(20)
            });
            assert_eq!(call("fail").status, 403, "{server} {api:?}");
        }

        mesh.write(
            "mesh.yaml",
            &mesh_config(", timeout: 1s, statusOnError: \"503\""),
        );
        for server in SERVERS {
            let call = |decision: &str| world.call(server, "/guarded/x", decision, &[]);
            mesh.wait("the provider's own status", || call("slow").status == 503);
            assert_eq!(call("fail").status, 503, "{server} {api:?}");
        }

        mesh.write("mesh.yaml", &mesh_config(", timeout: 1s, failOpen: true"));
        for server in SERVERS {
            let call = |decision: &str| world.call(server, "/guarded/x", decision, &[]);
            mesh.wait("failures pass", || call("slow").status == 200);
            assert_eq!(call("fail").status, 200, "{server} {api:?}");
            assert_eq!(call("deny").status, 401, "{server} {api:?}");
        }
    }

    // The authorizer ends; its service stays.
    mesh.take_out("authz.yaml");
    for api in [Api::Http, Api::Grpc] {
        mesh.write("policies.yaml", &policies(api.name()));
        mesh.write("mesh.yaml", &mesh_config(", failOpen: true"));
        for server in SERVERS {
            let call = || world.call(server, "/guarded/away", "deny", &[]).status;
            mesh.wait(&format!("{server} passes without {api:?}"), || {
                call() == 200
            });
        }

        mesh.write("mesh.yaml", &mesh_config(", statusOnError: \"503\""));
        for server in SERVERS {
            let call = || world.call(server, "/guarded/away", "allow", &[]).status;
            mesh.wait(&format!("{server} refuses without {api:?}"), || {
                call() == 503
            });
        }
    }
}

#[test]
fn a_missing_authorizer_denies_and_is_reported() {
    let Some(world) = World::start("a_missing_authorizer_denies_and_is_reported") else {
        return;
    };
    let mesh = &world.mesh;
    let denied = |server: &str| {
        let answer = world.call(server, "/guarded/x", "allow", &[]);
        answer.status == 403 && answer.text.contains("RBAC: access denied")
    };

    mesh.write("policies.yaml", &policies("absent"));
    for server in SERVERS {
        mesh.wait(&format!("{server} denies for an unknown provider"), || {
            denied(server)
        });
        assert_eq!(world.call(server, "/open", "deny", &[]).status, 200);
    }
    mesh.wait("the policy says so", || {
        mesh.said("Referenced provider not found: \"absent\"")
    });

    // The service leaves the mesh, then comes back.
    mesh.write("policies.yaml", &policies("grpc"));
    SERVERS
        .iter()
        .for_each(|server| world.until_asked(server, Api::Grpc));
    let service = std::fs::read_to_string(mesh.config().join("authz-service.yaml")).expect("there");
    mesh.take_out("authz-service.yaml");
    for server in SERVERS {
        mesh.wait(&format!("{server} denies without the service"), || {
            denied(server)
        });
    }
    mesh.write("authz-service.yaml", &service);
    SERVERS
        .iter()
        .for_each(|server| world.until_asked(server, Api::Grpc));

    // Two providers for one workload.
    let second: String = SERVERS
        .iter()
        .map(|server| policy(server, "http").replace("name: ask", "name: second"))
        .collect();
    mesh.write("second.yaml", &second);
    for server in SERVERS {
        mesh.wait(&format!("{server} denies for two providers"), || {
            denied(server)
        });
    }

    mesh.take_out("second.yaml");
    SERVERS
        .iter()
        .for_each(|server| world.until_asked(server, Api::Grpc));
}

#[test]
fn a_grpc_authorizer_decides_on_connections() {
    let Some(world) = World::start("a_grpc_authorizer_decides_on_connections") else {
        return;
    };
    let World { mesh, peers } = &world;
    let ask =
        |who: &str, server: &str| Dialogue::talk(mesh, peers, who, server, 9081).ask("line hello");

    mesh.write("policies.yaml", &policies("grpc"));
    for server in SERVERS {
        world.until_asked(server, Api::Grpc);
        assert_eq!(ask("friend", server), "received hello", "{server}");
        assert_eq!(ask("foe", server), "closed", "{server}");
    }

    // An HTTP authorizer has no say on bytes.
    mesh.write("policies.yaml", &policies("http"));
    for server in SERVERS {
        world.until_asked(server, Api::Http);
        assert_eq!(ask("foe", server), "received hello", "{server}");
    }
    mesh.wait("the policy says so", || {
        mesh.said("decides on HTTP requests only")
    });
}
