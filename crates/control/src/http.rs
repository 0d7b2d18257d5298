//! The HTTP endpoints: health, metrics and debugging over TCP, all of it and the objects over the
//! Unix socket.
//!
//! Over TCP `/debug` and `/status` are for callers on the loopback address and for tokens of the
//! root namespace; objects are never served there. A process that may open the socket may do
//! everything.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use meltemi_admin_api::{
    ApplyResponse, ChangeOptions, ConfigDump, DumpedResource, DumpedType, EndpointView, ErrorBody,
    ObjectSelector, RegistryService, Status, VersionInfo, decode,
};
use meltemi_ca::CertificateAuthority;
use meltemi_model::{Health, Snapshot};
use meltemi_proto::type_url;
use meltemi_store::World;
use meltemi_translate::Memo;
use meltemi_types::is_local_host;
use meltemi_web::{Limits, WhenFull};
use serde::Serialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auth::Authenticator;
use crate::csr::Issued;
use crate::metrics::{Gauges, Metrics};
use crate::objects::{Objects, Refusal};
use crate::push::Connections;
use crate::status;

/// Larger texts are not applied.
const MAX_BODY: usize = 16 << 20;
/// Of each listener.
const LIMITS: Limits = Limits {
    connections: 256,
    when_full: WhenFull::Wait,
    header_timeout: Duration::from_secs(10),
    head_bytes: 64 * 1024,
    connection_time: None,
    grace: Duration::from_secs(2),
};

type Reply = Response<Full<Bytes>>;

/// What the endpoints look at.
pub(crate) struct Api {
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) issued: Arc<Issued>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) memo: Arc<Memo>,
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) objects: Objects,
    pub(crate) started_at_ms: u64,
}

/// Where a request comes from.
#[derive(Clone, Copy)]
enum Door {
    Socket,
    Tcp(IpAddr),
}

/// Serves TCP until cancelled.
pub(crate) async fn serve_tcp(listener: TcpListener, api: Arc<Api>, stop: CancellationToken) {
    let handler = move |request, address: SocketAddr| {
        let api = api.clone();
        async move { api.answer(request, Door::Tcp(address.ip())).await }
    };
    meltemi_web::serve(listener, LIMITS, handler, stop.cancelled()).await;
}

/// Opens the socket, for its owner alone. What an earlier process left there is replaced.
pub(crate) fn bind_socket(path: &Path) -> std::io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                format!("another control plane serves {}", path.display()),
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => _ = std::fs::remove_file(path),
    }

    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;

    Ok(listener)
}

/// Serves the socket until cancelled.
pub(crate) async fn serve_socket(listener: UnixListener, api: Arc<Api>, stop: CancellationToken) {
    let handler = move |request, ()| {
        let api = api.clone();
        async move { api.answer(request, Door::Socket).await }
    };
    meltemi_web::serve(listener, LIMITS, handler, stop.cancelled()).await;
}

impl Api {
    async fn answer(&self, request: Request<Incoming>, door: Door) -> Reply {
        let path = request.uri().path().to_owned();
        let query = decode(request.uri().query().unwrap_or_default());
        let of = |key: &str| {
            query
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value.clone())
                .unwrap_or_default()
        };

        let is_open = matches!(path.as_str(), "/ready" | "/metrics" | "/version");
        if !is_open && let Err(refused) = self.admit(&request, door).await {
            return refused;
        }
        let is_objects = path.starts_with("/apis/");
        if is_objects && !matches!(door, Door::Socket) {
            return error(
                StatusCode::FORBIDDEN,
                "objects are served on the Unix socket only",
            );
        }

        let which = || ObjectSelector {
            kind: of("kind"),
            ns: of("ns"),
            name: of("name"),
        };
        let options = ChangeOptions {
            dry_run: is_true(&of("dry_run")),
            write: is_true(&of("write")),
        };

        let world = self.worlds.borrow().clone();
        match (request.method(), path.as_str()) {
            (&Method::POST, "/apis/apply") => {
                let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
                    Ok(body) => body.to_bytes(),
                    Err(_) => {
                        return error(
                            StatusCode::PAYLOAD_TOO_LARGE,
                            "the text is larger than 16 MiB, or broke off",
                        );
                    }
                };

                let Ok(text) = std::str::from_utf8(&body) else {
                    return error(StatusCode::BAD_REQUEST, "the text is not UTF-8");
                };
                let response = self.objects.apply(text, &of("ns"), options).await;
                json(
                    if response.ok {
                        StatusCode::OK
                    } else {
                        StatusCode::UNPROCESSABLE_ENTITY
                    },
                    &response,
                )
            }
            (&Method::GET, "/apis/objects") => match self.objects.get(&which()) {
                Ok(list) => json(StatusCode::OK, &list),
                Err(reason) => error(StatusCode::BAD_REQUEST, &reason),
            },
            (&Method::DELETE, "/apis/objects") => {
                deleted(self.objects.delete(&which(), options).await)
            }
            (&Method::DELETE, "/apis/applied") => {
                deleted(self.objects.delete_applied(&which(), options).await)
            }
            (&Method::GET | &Method::HEAD, "/ready") => match world.is_ready() {
                true => text("ready\n".to_owned()),
                false => error(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the configuration has not been read yet",
                ),
            },
            (&Method::GET, "/metrics") => text(self.metrics.encode(&self.gauges(&world))),
            (&Method::GET, "/version") => json(StatusCode::OK, &version()),
            (&Method::GET, "/status") => json(
                StatusCode::OK,
                &self.status(&world, is_true(&of("versions"))),
            ),
            (&Method::GET, "/debug/syncz") => json(
                StatusCode::OK,
                &status::syncz(&self.connections, &world.snapshot),
            ),
            (&Method::GET, "/debug/proxies") => json(
                StatusCode::OK,
                &status::proxies(&self.connections, &world.snapshot, true),
            ),
            (&Method::GET, "/debug/config_dump") => match self.config_dump(&of("proxyID")) {
                Ok(dump) => json(StatusCode::OK, &dump),
                Err(reason) => error(StatusCode::NOT_FOUND, &reason),
            },
            (&Method::GET, "/debug/registryz") => json(StatusCode::OK, &registry(&world.snapshot)),
            (&Method::GET, "/debug/endpointz" | "/debug/endpointShardz") => {
                json(StatusCode::OK, &endpoints(&world.snapshot))
            }
            (
                _,
                "/apis/apply" | "/apis/applied" | "/apis/objects" | "/ready" | "/metrics"
                | "/version" | "/status",
            ) => error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this endpoint has other methods",
            ),
            _ => error(
                StatusCode::NOT_FOUND,
                "no such endpoint; there are /ready /metrics /version /status /debug/{syncz,proxies,config_dump,registryz,endpointz} and, on the Unix socket, /apis/{apply,applied,objects}",
            ),
        }
    }

    /// Lets callers of protected endpoints in.
    async fn admit(&self, request: &Request<Incoming>, door: Door) -> Result<(), Reply> {
        let Door::Tcp(address) = door else {
            return Ok(());
        };
        if address.to_canonical().is_loopback() {
            // A page in a browser can reach the loopback address under its own name (DNS
            // rebinding).
            let host = request
                .headers()
                .get(http::header::HOST)
                .and_then(|host| host.to_str().ok())
                .unwrap_or_default();

            return match is_local_host(host) {
                true => Ok(()),
                false => Err(error(
                    StatusCode::FORBIDDEN,
                    "call this endpoint as localhost or by its address",
                )),
            };
        }

        let Some(header) = request.headers().get(http::header::AUTHORIZATION) else {
            return Err(error(
                StatusCode::UNAUTHORIZED,
                "from elsewhere than this host this endpoint needs a bearer token",
            ));
        };

        let identity = self
            .authenticator
            .review(header.to_str().unwrap_or_default())
            .await
            .map_err(|status| error(StatusCode::UNAUTHORIZED, status.message()))?;

        let world = self.worlds.borrow().clone();
        let root = world.snapshot.root_namespace();

        match identity.namespace() == root {
            true => Ok(()),
            false => Err(error(
                StatusCode::FORBIDDEN,
                &format!("this endpoint is for namespace {root}"),
            )),
        }
    }

    fn status(&self, world: &World, with_versions: bool) -> Status {
        let mut objects = std::collections::BTreeMap::new();
        for object in world.tables.iter() {
            *objects.entry(object.kind.to_string()).or_insert(0) += 1;
        }
        Status {
            version: version(),
            started_at_ms: self.started_at_ms,
            ready: world.is_ready(),
            objects,
            proxies: status::proxies(&self.connections, &world.snapshot, with_versions),
            certificates: self.issued.valid(),
            diagnostics: world.diagnostics.to_vec(),
        }
    }

    fn gauges(&self, world: &World) -> Gauges {
        let cache = self.memo.stats();
        let expiry = self.authority.info().not_after.duration_since(UNIX_EPOCH);
        Gauges {
            connected: self.connections.all().len(),
            services: world.snapshot.services().count(),
            virtual_services: world.snapshot.virtual_services().count(),
            objects: world.tables.len(),
            rejecting: status::rejecting(&self.connections),
            cache_entries: cache.entries,
            cache_hits: cache.hits,
            cache_misses: cache.misses,
            root_expiry_seconds: expiry.map(|since| since.as_secs()).unwrap_or_default(),
        }
    }

    /// `proxyID` is a node id, `pod.namespace` or `pod`.
    fn config_dump(&self, proxy_id: &str) -> Result<ConfigDump, String> {
        let all = self.connections.all();
        let fits = |connection: &&Arc<crate::push::Connection>| {
            let proxy = &connection.proxy;
            !proxy_id.is_empty()
                && (proxy.id == proxy_id
                    || proxy.name == proxy_id
                    || format!("{}.{}", proxy.name, proxy.namespace) == proxy_id)
        };

        let Some(connection) = all.iter().find(fits) else {
            return Err(format!(
                "no connected proxy {proxy_id:?}; say ?proxyID=POD.NAMESPACE"
            ));
        };

        let set = connection.session.resources();
        let mut types: Vec<DumpedType> = Vec::new();
        for (url, resources) in set.iter().flat_map(|set| set.types()) {
            let resources = resources.iter().map(|(name, resource)| DumpedResource {
                name: name.clone(),
                version: resource.version.to_string(),
                value: if url == type_url::SECRET {
                    String::new()
                } else {
                    BASE64.encode(&resource.content.any().value)
                },
            });

            types.push(DumpedType {
                type_url: url.to_owned(),
                resources: resources.collect(),
            });
        }

        let rank = |url: &str| {
            type_url::PUSH_ORDER
                .iter()
                .position(|known| *known == url)
                .unwrap_or(usize::MAX)
        };

        types.sort_by_key(|dumped| rank(&dumped.type_url));

        Ok(ConfigDump {
            proxy: connection.proxy.id.clone(),
            types,
        })
    }
}

fn registry(snapshot: &Snapshot) -> Vec<RegistryService> {
    let services = snapshot.services().map(|service| RegistryService {
        hostname: service.host().to_string(),
        namespace: service.namespace().to_owned(),
        addresses: service.addresses.iter().map(ToString::to_string).collect(),
        ports: service
            .ports
            .iter()
            .map(|port| format!("{}:{}/{:?}", port.name, port.number, port.protocol))
            .collect(),
        resolution: format!("{:?}", service.resolution),
    });

    services.collect()
}

fn endpoints(snapshot: &Snapshot) -> Vec<EndpointView> {
    let mut all = Vec::new();
    for service in snapshot.services() {
        for port in &service.ports {
            all.extend(
                snapshot
                    .port_endpoints(&service.key, port)
                    .iter()
                    .map(|endpoint| EndpointView {
                        hostname: service.host().to_string(),
                        port: u32::from(port.number),
                        address: format!("{}:{}", endpoint.address, endpoint.port),
                        healthy: endpoint.health == Health::Healthy,
                        identity: endpoint
                            .identity
                            .as_ref()
                            .map(ToString::to_string)
                            .unwrap_or_default(),
                        labels: endpoint.labels.0.clone(),
                    }),
            );
        }
    }

    all
}

fn version() -> VersionInfo {
    VersionInfo {
        name: "meltemi".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The answer to a deletion.
fn deleted(outcome: Result<ApplyResponse, Refusal>) -> Reply {
    match outcome {
        Ok(response) if response.ok => json(StatusCode::OK, &response),
        Ok(response) => json(StatusCode::UNPROCESSABLE_ENTITY, &response),
        Err(Refusal::Unclear(reason)) => error(StatusCode::BAD_REQUEST, &reason),
        Err(Refusal::NotFound(reason)) => error(StatusCode::NOT_FOUND, &reason),
    }
}

fn is_true(value: &str) -> bool {
    matches!(value, "true" | "1" | "All")
}

fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => reply(status, "application/json", body),
        Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
    }
}

fn text(body: String) -> Reply {
    reply(
        StatusCode::OK,
        "text/plain; version=0.0.4; charset=utf-8",
        body.into_bytes(),
    )
}

fn error(status: StatusCode, message: &str) -> Reply {
    json(
        status,
        &ErrorBody {
            error: message.to_owned(),
        },
    )
}

fn reply(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );

    headers.insert(
        http::header::X_CONTENT_TYPE_OPTIONS,
        http::HeaderValue::from_static("nosniff"),
    );

    reply
}
