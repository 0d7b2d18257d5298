//! Builds the check: the parts of a request that the service gets.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;

use auth::attribute_context as attributes;
use bytes::Bytes;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::service::auth::v3 as auth;
use meltemi_proto::google::protobuf::Timestamp;

use super::{BodySettings, GrpcService, HttpService, PathRule, Question};
use crate::conn::ConnInfo;
use crate::head::RequestHead;
use crate::header_ops::{HeaderOps, is_framing};
use crate::http::context::RequestContext;
use crate::http::grpc_call;
use crate::http::phase::Fetch;
use crate::metadata::{Metadata, Value};

/// Tells the service whether it sees the whole body. A client's own is never passed on.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
/// The longest answer of an HTTP service that is read.
const MAX_RESPONSE: usize = 1024 * 1024;
/// The method that a gRPC service answers.
pub(super) const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The part of a body that the check carries.
pub(super) struct Held<'a> {
    body: &'a [u8],
    is_partial: bool,
    as_bytes: bool,
}

impl<'a> Held<'a> {
    /// Cuts a held body; `ended`: nothing follows it.
    pub(super) fn of(body: &'a [u8], ended: bool, settings: BodySettings) -> Self {
        let told = &body[..body.len().min(settings.max_bytes)];
        Self {
            body: told,
            is_partial: !ended || told.len() < body.len(),
            as_bytes: settings.as_bytes,
        }
    }

    fn partial_header(&self) -> &'static str {
        if self.is_partial { "true" } else { "false" }
    }
}

impl Question {
    /// The message for a gRPC service.
    pub(super) fn grpc(
        &self,
        context_extensions: &[(String, String)],
        body: Option<Held<'_>>,
        cx: &RequestContext<'_>,
    ) -> auth::CheckRequest {
        let head = &*cx.head;
        let mut http = attributes::HttpRequest {
            id: head.get_str("x-request-id").unwrap_or_default().to_owned(),
            method: head.method().to_owned(),
            path: head.path().to_owned(),
            host: head.authority().to_owned(),
            scheme: head.scheme().to_owned(),
            protocol: head.version.as_str().to_owned(),
            size: -1,
            ..Default::default()
        };

        if self.raw_headers {
            http.header_map = Some(self.raw_headers(head, body.as_ref()));
        } else {
            http.headers = self.merged_headers(head, body.as_ref());
        }
        if let Some(body) = body {
            if !body.is_partial {
                http.size = i64::try_from(body.body.len()).unwrap_or(i64::MAX);
            }
            match body.as_bytes {
                true => http.raw_body = body.body.to_vec(),
                false => http.body = sanitized(body.body).into_owned(),
            }
        }

        let service = head.get_str("x-envoy-downstream-service-cluster");
        let source = attributes::Peer {
            service: service.unwrap_or_default().to_owned(),
            ..source(cx.conn, self.peer_certificate)
        };

        auth::CheckRequest {
            attributes: Some(auth::AttributeContext {
                source: Some(source),
                destination: Some(destination(cx.conn)),
                request: Some(attributes::Request {
                    time: timestamp(cx.stream.start),
                    http: Some(http),
                }),
                context_extensions: context_extensions.iter().cloned().collect(),
                metadata_context: Some(excerpt(&self.metadata, Some(&cx.state.metadata))),
                route_metadata_context: Some(excerpt(&self.route_metadata, cx.route_metadata)),
                tls_session: self.tls_session.then(|| tls_session(cx.conn)),
            }),
        }
    }

    /// The head and body for an HTTP service, before its own settings.
    pub(super) fn http(
        &self,
        body: Option<Held<'_>>,
        cx: &RequestContext<'_>,
    ) -> (RequestHead, Bytes) {
        let from = &*cx.head;
        let mut head = RequestHead::of(from.method(), from.authority(), from.path());
        let tells = |name: &str| {
            let allowed = name == "authorization"
                || self
                    .allowed_headers
                    .as_ref()
                    .is_some_and(|names| names.has(name));
            allowed && !self.disallowed_headers.has(name) && !is_hop_by_hop(name)
        };

        if self.raw_headers {
            for (name, value) in from
                .iter()
                .filter(|(name, _)| *name != PARTIAL_BODY && tells(name))
            {
                head.append(name, value);
            }
        } else {
            for (name, value) in merged(from).filter(|(name, _)| tells(name)) {
                head.append(name, sanitized(&value).as_bytes());
            }
        }

        let Some(body) = body else {
            return (head, Bytes::new());
        };
        head.append(PARTIAL_BODY, body.partial_header().as_bytes());

        (head, Bytes::copy_from_slice(body.body))
    }

    /// Whether a gRPC check carries a header or a field of the request line.
    fn tells_grpc(&self, name: &str) -> bool {
        let allowed = self.allowed_headers.as_ref();
        allowed.is_none_or(|names| names.has(name)) && !self.disallowed_headers.has(name)
    }

    fn merged_headers(
        &self,
        head: &RequestHead,
        body: Option<&Held<'_>>,
    ) -> HashMap<String, String> {
        let lines = merged(head).map(|(name, value)| (name, sanitized(&value).into_owned()));
        let mut headers: HashMap<String, String> = request_line(head)
            .map(|(name, value)| (name, value.to_owned()))
            .into_iter()
            .chain(lines)
            .filter(|(name, _)| self.tells_grpc(name))
            .map(|(name, value)| (name.to_owned(), value))
            .collect();

        if let Some(body) = body {
            headers.insert(PARTIAL_BODY.to_owned(), body.partial_header().to_owned());
        }

        headers
    }

    fn raw_headers(&self, head: &RequestHead, body: Option<&Held<'_>>) -> core::HeaderMap {
        let lines = head.iter().filter(|(name, _)| *name != PARTIAL_BODY);
        let partial = body.map(|body| (PARTIAL_BODY, body.partial_header().as_bytes()));
        let headers = request_line(head)
            .map(|(name, value)| (name, value.as_bytes()))
            .into_iter()
            .chain(lines)
            .filter(|(name, _)| self.tells_grpc(name))
            .chain(partial)
            .map(|(name, value)| core::HeaderValue {
                key: name.to_owned(),
                raw_value: value.to_vec(),
                ..Default::default()
            });

        core::HeaderMap {
            headers: headers.collect(),
        }
    }
}

impl GrpcService {
    pub(super) fn fetch(&self, message: &auth::CheckRequest, cx: &RequestContext<'_>) -> Fetch {
        let (cluster, authority) = (&self.cluster, &self.authority);
        let mut fetch = grpc_call::call(cluster, authority, CHECK, message, self.timeout);
        add(&self.initial_metadata, &mut fetch.head, cx);

        fetch
    }
}

impl HttpService {
    pub(super) fn fetch(
        &self,
        (mut head, body): (RequestHead, Bytes),
        cx: &RequestContext<'_>,
    ) -> Fetch {
        let path = match &self.path {
            PathRule::Prefix(prefix) => format!("{prefix}{}", head.path()),
            PathRule::Override(path) => path.to_string(),
        };
        head.set_path(&path);
        add(&self.headers_to_add, &mut head, cx);

        Fetch {
            cluster: self.cluster.clone(),
            head,
            body,
            timeout: self.timeout,
            max_response: MAX_RESPONSE,
        }
    }
}

/// Headers that configuration adds to the question; templates ask about the client's request.
fn add(ops: &HeaderOps, head: &mut RequestHead, cx: &RequestContext<'_>) {
    if !ops.is_empty() {
        ops.apply(head, &cx.facts());
    }
}

/// The request line as the fields that Envoy lists among the headers.
fn request_line(head: &RequestHead) -> [(&'static str, &str); 4] {
    [
        (":authority", head.authority()),
        (":method", head.method()),
        (":path", head.path()),
        (":scheme", head.scheme()),
    ]
}

/// Headers whose lines are joined by commas, each name once.
fn merged(head: &RequestHead) -> impl Iterator<Item = (&str, Vec<u8>)> {
    let mut merged: Vec<(&str, Vec<u8>)> = Vec::with_capacity(head.fields().len());
    for (name, value) in head.iter().filter(|(name, _)| *name != PARTIAL_BODY) {
        match merged.iter_mut().find(|(own, _)| *own == name) {
            Some((_, own)) => {
                own.push(b',');
                own.extend_from_slice(value);
            }
            None => merged.push((name, value.to_vec())),
        }
    }

    merged.into_iter()
}

/// Headers that belong to the client's connection or to the length of its body.
fn is_hop_by_hop(name: &str) -> bool {
    is_framing(name)
        || matches!(
            name,
            "te" | "expect" | "trailer" | "keep-alive" | "proxy-connection"
        )
}

/// As text: each byte that is none becomes `!`, as Envoy writes it.
fn sanitized(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '!'));
    }

    Cow::Owned(out)
}

/// The client of a connection.
pub(super) fn source(conn: &ConnInfo, with_certificate: bool) -> attributes::Peer {
    let tls = conn.tls.as_deref();
    let principal = tls.map(|tls| {
        let name = tls.uri_sans.first().or_else(|| tls.dns_sans.first());
        name.unwrap_or(&tls.subject).clone()
    });
    let certificate = tls.filter(|tls| with_certificate && tls.presented);

    attributes::Peer {
        address: Some(address(conn.remote)),
        principal: principal.unwrap_or_default(),
        certificate: certificate
            .map(|tls| url_encoded_pem(&tls.certificate))
            .unwrap_or_default(),
        ..Default::default()
    }
}

/// This side of a connection.
pub(super) fn destination(conn: &ConnInfo) -> attributes::Peer {
    let own = conn.tls.as_ref().and_then(|tls| tls.local_uri_sans.first());
    attributes::Peer {
        address: Some(address(conn.local)),
        principal: own.cloned().unwrap_or_default(),
        ..Default::default()
    }
}

pub(super) fn tls_session(conn: &ConnInfo) -> attributes::TlsSession {
    attributes::TlsSession {
        sni: conn.server_name.as_deref().unwrap_or_default().to_owned(),
    }
}

fn address(address: SocketAddr) -> core::Address {
    use core::address::Address::SocketAddress;
    use core::socket_address::PortSpecifier;

    core::Address {
        address: Some(SocketAddress(core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
            ..Default::default()
        })),
    }
}

fn timestamp(at: std::time::SystemTime) -> Option<Timestamp> {
    let since = at.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
    Some(Timestamp {
        seconds: i64::try_from(since.as_secs()).ok()?,
        // Below 10^9.
        nanos: since.subsec_nanos() as i32,
    })
}

/// The namespaces of metadata that configuration names, as far as they are there.
fn excerpt(namespaces: &[Box<str>], metadata: Option<&Metadata>) -> core::Metadata {
    let found = namespaces.iter().filter_map(|namespace| {
        let value = metadata?.filter(namespace)?;
        Some((namespace.to_string(), Value::to_struct(value)?))
    });

    core::Metadata {
        filter_metadata: found.collect(),
        ..Default::default()
    }
}

/// A certificate as Envoy writes it: PEM, with what has a meaning in URLs escaped.
fn url_encoded_pem(der: &[u8]) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for (at, char) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            out.push_str("%0A");
        }
        match char {
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            char => out.push(char),
        }
    }
    out.push_str("%0A-----END%20CERTIFICATE-----%0A");

    out
}
