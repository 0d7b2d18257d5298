//! Services that authorize requests, one over gRPC and one over HTTP. Both do as the request's
//! header `x-ask` says, and repeat what they were told.

use std::net::SocketAddr;
use std::time::Duration;

use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::service::auth::v3 as auth;
use meltemi_proto::envoy::r#type::v3::HttpStatus;
use meltemi_proto::google::protobuf::{BoolValue, Struct, Value, value::Kind};
use meltemi_proto::google::rpc;
use tokio::net::TcpListener;

use crate::peers;

type Answer = auth::check_response::HttpResponse;

/// A header as answers carry it.
pub fn header(
    key: &str,
    value: &str,
    action: core::header_value_option::HeaderAppendAction,
) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action: action as i32,
        ..Default::default()
    }
}

/// The four actions, the old way of saying two of them, and none said.
fn headers() -> Vec<core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction as Action;

    #[expect(deprecated, reason = "services still send it")]
    let old = |key: &str, append| core::HeaderValueOption {
        append: Some(BoolValue { value: append }),
        ..header(key, "new", Action::AppendIfExistsOrAdd)
    };

    vec![
        header("x-append", "new", Action::AppendIfExistsOrAdd),
        header("x-absent", "new", Action::AddIfAbsent),
        header("x-over", "new", Action::OverwriteIfExistsOrAdd),
        header("x-if-there", "new", Action::OverwriteIfExists),
        header("x-append-none", "new", Action::AppendIfExistsOrAdd),
        header("x-absent-none", "new", Action::AddIfAbsent),
        header("x-over-none", "new", Action::OverwriteIfExistsOrAdd),
        header("x-if-there-none", "new", Action::OverwriteIfExists),
        old("x-old-append", true),
        old("x-old-append-none", true),
        old("x-old-set", false),
    ]
}

/// What a service was told, in one line.
fn told(context: &auth::AttributeContext) -> String {
    let request = context.request.as_ref().expect("a request");
    let http = request.http.as_ref().expect("HTTP");
    // What differs from one proxy or request to the next.
    let volatile = ["x-request-id", "x-forwarded-for", "x-case"];
    let mut headers: Vec<String> = http
        .headers
        .iter()
        .filter(|(name, _)| !volatile.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    headers.sort();
    let source = context.source.as_ref().expect("a source");
    let has_time = request.time.is_some();
    let mut extensions: Vec<_> = context.context_extensions.iter().collect();
    extensions.sort();

    format!(
        "{} {} {} {} {} body={:?} raw={:?} principal={:?} time={has_time} {extensions:?} {}",
        http.method,
        http.path,
        http.host,
        http.scheme,
        http.protocol,
        http.body,
        String::from_utf8_lossy(&http.raw_body),
        source.principal,
        headers.join("&"),
    )
}

fn answer(ask: &str, told: String) -> Option<(i32, Option<Answer>)> {
    use core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd;

    let parameter = |key: &str, value: &str| core::QueryParameter {
        key: key.into(),
        value: value.into(),
    };
    let ok = auth::OkHttpResponse {
        headers: vec![header("x-told", &told, OverwriteIfExistsOrAdd)],
        ..Default::default()
    };
    let denied = |status, headers| auth::DeniedHttpResponse {
        status: Some(HttpStatus { code: status }),
        headers,
        body: "no entry".into(),
    };

    Some(match ask {
        "deny" => (7, None),
        "deny-more" => {
            let headers = vec![
                header("x-why", "because", OverwriteIfExistsOrAdd),
                header("content-type", "text/html", OverwriteIfExistsOrAdd),
                header("set-cookie", "a=1", Default::default()),
                header("set-cookie", "b=2", Default::default()),
            ];
            (16, Some(Answer::DeniedResponse(denied(401, headers))))
        }
        "error" => (13, Some(Answer::ErrorResponse(denied(0, vec![])))),
        "headers" => {
            let all = auth::OkHttpResponse {
                headers: headers(),
                headers_to_remove: vec!["x-gone".into(), "host".into(), ":path".into()],
                response_headers_to_add: vec![
                    header("x-added", "yes", Default::default()),
                    header("server", "authz", OverwriteIfExistsOrAdd),
                ],
                ..Default::default()
            };
            (0, Some(Answer::OkResponse(all)))
        }
        "query" => {
            let all = auth::OkHttpResponse {
                query_parameters_to_set: vec![parameter("a", "9"), parameter("new", "1")],
                query_parameters_to_remove: vec!["b".into()],
                ..Default::default()
            };
            (0, Some(Answer::OkResponse(all)))
        }
        "route" => {
            let path = header(":path", "/other", OverwriteIfExistsOrAdd);
            let all = auth::OkHttpResponse {
                headers: vec![path],
                ..Default::default()
            };
            (0, Some(Answer::OkResponse(all)))
        }
        "status-204" | "status-304" | "method-head" | "method-get" | "pseudo" | "long" => {
            (0, Some(Answer::OkResponse(odd(ask))))
        }
        "plain" => (0, None),
        "fail" => return None,
        _ => (0, Some(Answer::OkResponse(ok))),
    })
}

/// Answers that would break a message if they were taken at their word.
fn odd(ask: &str) -> auth::OkHttpResponse {
    use core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd;

    let set = |key: &str, value: &str| header(key, value, OverwriteIfExistsOrAdd);
    let request = |headers| auth::OkHttpResponse {
        headers,
        ..Default::default()
    };
    match ask {
        "method-head" => request(vec![set(":method", "HEAD")]),
        "method-get" => request(vec![set(":method", "GET")]),
        "pseudo" => request(vec![
            set(":status", "200"),
            set(":method", ""),
            set(":method", "get"),
            set(":path", ""),
            set(":path", "relative"),
            set(":authority", ""),
        ]),
        "long" => request(vec![set("x-long", &"x".repeat(70_000))]),
        status => auth::OkHttpResponse {
            response_headers_to_add: vec![set(":status", &status["status-".len()..])],
            ..Default::default()
        },
    }
}

struct Grpc;

#[tonic::async_trait]
impl auth::authorization_server::Authorization for Grpc {
    async fn check(
        &self,
        request: tonic::Request<auth::CheckRequest>,
    ) -> Result<tonic::Response<auth::CheckResponse>, tonic::Status> {
        let context = request.into_inner().attributes.expect("attributes");
        let http = context.request.as_ref().and_then(|all| all.http.as_ref());
        let ask = http.and_then(|http| http.headers.get("x-ask")).cloned();
        let ask = ask.unwrap_or_default();
        if ask == "hang" {
            tokio::time::sleep(Duration::from_secs(600)).await;
        }

        let Some((code, http_response)) = answer(&ask, told(&context)) else {
            return Err(tonic::Status::unavailable("not today"));
        };
        let user = Value {
            kind: Some(Kind::StringValue("bob".into())),
        };

        Ok(tonic::Response::new(auth::CheckResponse {
            status: Some(rpc::Status {
                code,
                ..Default::default()
            }),
            http_response,
            dynamic_metadata: Some(Struct {
                fields: [("user".to_owned(), user)].into(),
            }),
        }))
    }
}

/// An authorization service over gRPC.
pub async fn grpc() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let at = listener.local_addr().expect("bound");
    let service = auth::authorization_server::AuthorizationServer::new(Grpc);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );

    at
}

/// An authorization service over HTTP.
pub async fn http() -> SocketAddr {
    peers::http_server(|head, body| {
        let mut lines = head.trim_end().split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let lower: Vec<String> = lines.map(str::to_lowercase).collect();
        let ask = lower.iter().find_map(|line| line.strip_prefix("x-ask: "));
        // Envoy says to whom it speaks for, which is its own affair.
        let own = ["x-envoy-", "x-forwarded-", "x-request-id", "x-case"];
        let partial = "x-envoy-auth-partial-body";
        let mut told: Vec<&str> = lower
            .iter()
            .map(String::as_str)
            .filter(|line| {
                // That there is no body need not be said.
                *line != "content-length: 0"
                    && (line.starts_with(partial) || !own.iter().any(|own| line.starts_with(own)))
            })
            .collect();
        told.sort_unstable();
        let body = String::from_utf8_lossy(body);
        let told = format!("{first} {} {body}", told.join("&").replace(": ", "="));

        let (status, headers, text) = match ask.unwrap_or_default() {
            "deny" => ("403 Forbidden", String::new(), "no entry"),
            "deny-more" => (
                "302 Found",
                "location: /login\r\nx-why: because\r\nx-other: o\r\nset-cookie: a=1\r\n\
                 set-cookie: b=2\r\ncontent-type: text/html\r\n"
                    .to_owned(),
                "go there",
            ),
            "switch" => ("101 Switching Protocols", String::new(), ""),
            "odd-status" => ("999 Odd", String::new(), "odd"),
            "error" => ("500 Internal Server Error", String::new(), "oh no"),
            "headers" => (
                "200 OK",
                "x-over: new\r\nx-append: new\r\nx-over-none: new\r\nx-append-none: new\r\n\
                 x-other: new\r\nx-added: yes\r\nx-envoy-auth-headers-to-remove: x-gone, host\r\n"
                    .to_owned(),
                "",
            ),
            _ => ("200 OK", format!("x-told: {told}\r\n"), "ignored"),
        };

        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{text}",
            text.len()
        )
        .into_bytes()
    })
    .await
}
