use bytes::Bytes;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::filters::http::ext_authz::v3 as proto;
use meltemi_proto::envoy::service::auth::v3 as auth;
use meltemi_proto::envoy::r#type::matcher::v3::{
    ListStringMatcher, StringMatcher, string_matcher::MatchPattern,
};
use meltemi_proto::envoy::r#type::v3::HttpStatus;
use meltemi_proto::google::protobuf::{BoolValue, Duration as ProtoDuration, Struct, Value};
use meltemi_proto::google::rpc;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::counter;
use crate::finding::{Rejection, Scope};
use crate::head::{RequestHead, ResponseHead};
use crate::http::HttpFilter;
use crate::http::phase::{Fetch, FetchError, Fetched};
use crate::http::settings::{FilterSettings, Override};
use crate::http::tests::Stream;

fn grpc() -> proto::ExtAuthz {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};

    proto::ExtAuthz {
        transport_api_version: core::ApiVersion::V3 as i32,
        services: Some(proto::ext_authz::Services::GrpcService(core::GrpcService {
            timeout: Some(ProtoDuration {
                seconds: 2,
                nanos: 0,
            }),
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: "authz".into(),
                ..Default::default()
            })),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn list(names: &[&str]) -> Option<ListStringMatcher> {
    let pattern = |name: &&str| StringMatcher {
        match_pattern: Some(MatchPattern::Exact((*name).to_owned())),
        ignore_case: true,
    };
    Some(ListStringMatcher {
        patterns: names.iter().map(pattern).collect(),
    })
}

fn http() -> proto::ExtAuthz {
    let service = proto::HttpService {
        server_uri: Some(core::HttpUri {
            uri: "http://authz".into(),
            timeout: Some(ProtoDuration {
                seconds: 1,
                nanos: 0,
            }),
            http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster("authz".into())),
        }),
        path_prefix: "/check".into(),
        authorization_request: Some(proto::AuthorizationRequest {
            headers_to_add: vec![core::HeaderValue {
                key: "x-from".into(),
                value: "mesh".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        authorization_response: Some(proto::AuthorizationResponse {
            allowed_upstream_headers: list(&["x-user"]),
            allowed_upstream_headers_to_append: list(&["x-role"]),
            allowed_client_headers: list(&["x-why"]),
            allowed_client_headers_on_success: list(&["set-cookie"]),
            dynamic_metadata_from_headers: list(&["x-user"]),
        }),
        ..Default::default()
    };

    proto::ExtAuthz {
        services: Some(proto::ext_authz::Services::HttpService(service)),
        allowed_headers: list(&["x-token"]),
        ..grpc()
    }
}

fn try_compile(message: &proto::ExtAuthz) -> Result<HttpFilter, Rejection> {
    let counters = counter::Counters::default();
    ExtAuthz::compile(message, &counters, &mut Scope::new())
        .map(|authz| HttpFilter::ExtAuthz(Box::new(authz)))
}

fn compile(message: &proto::ExtAuthz) -> HttpFilter {
    try_compile(message).expect("compiles")
}

fn stream() -> Stream {
    let mut head = RequestHead::of("GET", "shop", "/a?b=c&d=e");
    head.append("x-token", b"t1");
    head.append("x-token", b"t2");
    head.append("cookie", b"a=\xff");
    Stream::new(head)
}

fn step(stream: &mut Stream, filter: &HttpFilter, event: Event<'_>) -> Step {
    stream.step(filter, FilterSettings::default(), event)
}

fn asked(step: Step) -> Box<Fetch> {
    match step {
        Step::Call(Call::Fetch(fetch)) => fetch,
        other => panic!("not asked: {other:?}"),
    }
}

fn question(fetch: &Fetch) -> auth::AttributeContext {
    let message = auth::CheckRequest::decode(&fetch.body[5..]).expect("a message");
    message.attributes.expect("attributes")
}

fn answered(response: &auth::CheckResponse) -> CallResult {
    let message = response.encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&(message.len() as u32).to_be_bytes());
    body.extend_from_slice(&message);
    let mut fetched = Fetched {
        head: ResponseHead::of(200),
        body: body.into(),
        ..Fetched::default()
    };
    fetched.trailers.append("grpc-status", b"0");

    CallResult::Fetched(Ok(Box::new(fetched)))
}

fn response(code: i32, http: auth::check_response::HttpResponse) -> auth::CheckResponse {
    auth::CheckResponse {
        status: Some(rpc::Status {
            code,
            ..Default::default()
        }),
        http_response: Some(http),
        ..Default::default()
    }
}

fn header(key: &str, value: &str) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    }
}

/// The whole way of a request: asked, then answered.
fn run(stream: &mut Stream, filter: &HttpFilter, result: CallResult) -> Step {
    asked(step(stream, filter, Event::Head));
    step(stream, filter, Event::Called(result))
}

fn refused(step: Step) -> Box<LocalReply> {
    match step {
        Step::Reply(reply) => reply,
        other => panic!("not refused: {other:?}"),
    }
}

fn counted(stream: &Stream) -> Vec<String> {
    let values = stream.tally.values(&[]).into_iter();
    values
        .filter(|(_, n)| *n > 0)
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn a_grpc_service_is_told_of_the_request() {
    let mut stream = stream();
    let mut message = grpc();
    message.metadata_context_namespaces = vec!["jwt".into(), "absent".into()];
    message.disallowed_headers = list(&["x-secret"]);
    stream.head.append("x-secret", b"s");
    stream.head.append("x-envoy-auth-partial-body", b"forged");
    let name = crate::metadata::Value::string("bob");
    stream.state.metadata.set("jwt", "sub", name);

    let fetch = asked(step(&mut stream, &compile(&message), Event::Head));
    assert_eq!(&*fetch.cluster, "authz");
    assert_eq!(
        fetch.head.path(),
        "/envoy.service.auth.v3.Authorization/Check"
    );
    assert_eq!(fetch.timeout, Some(Duration::from_secs(2)));

    let context = question(&fetch);
    let http = context
        .request
        .and_then(|request| request.http)
        .expect("HTTP");
    assert_eq!(
        (http.method.as_str(), http.path.as_str(), http.host.as_str()),
        ("GET", "/a?b=c&d=e", "shop")
    );
    assert_eq!(http.headers["x-token"], "t1,t2");
    assert_eq!(http.headers["cookie"], "a=!");
    assert_eq!(http.headers[":path"], "/a?b=c&d=e");
    assert!(!http.headers.contains_key("x-secret"));
    assert!(!http.headers.contains_key("x-envoy-auth-partial-body"));
    let metadata = context.metadata_context.expect("metadata").filter_metadata;
    assert!(metadata.contains_key("jwt") && metadata.len() == 1);
}

#[test]
fn leave_to_pass_may_change_request_and_response() {
    let filter = compile(&proto::ExtAuthz {
        clear_route_cache: true,
        ..grpc()
    });
    let joined = core::HeaderValueOption {
        #[expect(deprecated, reason = "services still send it")]
        append: Some(BoolValue { value: true }),
        ..header("x-token", "t3")
    };
    let ok = auth::OkHttpResponse {
        headers: vec![
            header("X-User", "bob"),
            joined,
            header("content-length", "7"),
            header(":nonsense", "evil"),
        ],
        headers_to_remove: vec!["cookie".into(), "host".into(), ":path".into()],
        response_headers_to_add: vec![header("x-checked", "yes")],
        query_parameters_to_set: vec![core::QueryParameter {
            key: "who".into(),
            value: "bob".into(),
        }],
        query_parameters_to_remove: vec!["b".into()],
        ..Default::default()
    };
    let metadata = Struct {
        fields: [("user".to_owned(), Value::default())].into(),
    };
    let mut response = response(0, auth::check_response::HttpResponse::OkResponse(ok));
    response.dynamic_metadata = Some(metadata);

    let mut stream = stream();
    asked(step(&mut stream, &filter, Event::Head));
    stream.now = Duration::from_millis(30);
    let step = step(&mut stream, &filter, Event::Called(answered(&response)));
    assert!(matches!(step, Step::Continue));

    assert_eq!(stream.head.get_str("x-user"), Some("bob"));
    assert_eq!(stream.head.get_str("x-token"), Some("t1,t3"));
    assert_eq!(stream.head.get("cookie"), None);
    assert_eq!(stream.head.get("content-length"), None);
    assert_eq!(stream.head.authority(), "shop");
    assert_eq!(stream.head.path(), "/a?d=e&who=bob");
    assert!(stream.reroute);
    let took = stream
        .state
        .metadata
        .at(METADATA_NAMESPACE, &["ext_authz_duration"]);
    assert_eq!(took, Some(&crate::metadata::Value::Number(30.0)));
    assert_eq!(counted(&stream), ["ext_authz.ok"]);

    stream.respond(&filter, None);
    assert_eq!(stream.response.get_str("x-checked"), Some("yes"));
}

#[test]
fn a_refusal_is_passed_on() {
    let denied = auth::DeniedHttpResponse {
        status: Some(HttpStatus { code: 401 }),
        headers: vec![
            header("www-authenticate", "x"),
            header("content-length", "1"),
        ],
        body: "who are you?".into(),
    };
    let filter = compile(&proto::ExtAuthz {
        max_denied_response_body_bytes: 3,
        stat_prefix: "waf".into(),
        ..grpc()
    });
    let response = response(
        7,
        auth::check_response::HttpResponse::DeniedResponse(denied),
    );
    let mut stream = stream();
    let reply = refused(run(&mut stream, &filter, answered(&response)));

    assert_eq!((reply.status, &*reply.details), (401, "ext_authz_denied"));
    assert_eq!(reply.body, Bytes::from_static(b"who"));
    assert_eq!(reply.headers.len(), 1, "the length is the reply's own");
    assert_eq!(reply.flag, Some(ResponseFlag::UnauthorizedExternalService));
    assert_eq!(
        reply.cause.to_string(),
        "external authorization by authz: denied"
    );
    assert_eq!(counted(&stream), ["ext_authz.waf.denied"]);
}

#[test]
fn a_failure_closes_or_opens_as_configured() {
    let timeout = || {
        CallResult::Fetched(Err(FetchError {
            reason: "timeout".into(),
            is_unsendable: false,
        }))
    };
    let mut message = proto::ExtAuthz {
        status_on_error: Some(HttpStatus { code: 503 }),
        ..grpc()
    };
    let mut first = stream();
    let reply = refused(run(&mut first, &compile(&message), timeout()));
    assert_eq!((reply.status, &*reply.details), (503, "ext_authz_error"));
    assert_eq!(
        reply.cause.to_string(),
        "external authorization by authz: timeout"
    );
    assert_eq!(counted(&first), ["ext_authz.error"]);

    message.failure_mode_allow = true;
    message.failure_mode_allow_header_add = true;
    let mut second = stream();
    let step = run(&mut second, &compile(&message), timeout());
    assert!(matches!(step, Step::Continue));
    assert_eq!(second.head.get_str(FAILURE_MODE_ALLOWED), Some("true"));
    assert_eq!(
        counted(&second),
        ["ext_authz.error", "ext_authz.failure_mode_allowed"]
    );
}

#[test]
fn an_http_service_is_asked_and_answers() {
    let filter = compile(&http());
    let mut stream = stream();
    let fetch = asked(step(&mut stream, &filter, Event::Head));
    let head = &fetch.head;
    assert_eq!(
        (head.method(), head.authority(), head.path()),
        ("GET", "shop", "/check/a?b=c&d=e")
    );
    assert_eq!(head.get_str("x-token"), Some("t1,t2"));
    assert_eq!(head.get_str("x-from"), Some("mesh"));
    assert_eq!(head.get("cookie"), None, "not allowed");

    let answer = |status: u16, fields: &[(&str, &str)]| {
        let mut fetched = Fetched {
            head: ResponseHead::of(status),
            body: Bytes::from_static(b"because"),
            ..Fetched::default()
        };
        for (name, value) in fields {
            fetched.head.append(name, value.as_bytes());
        }
        Event::Called(CallResult::Fetched(Ok(Box::new(fetched))))
    };

    let ok = answer(
        200,
        &[
            ("x-user", "bob"),
            ("x-role", "admin"),
            ("set-cookie", "s=1"),
            ("x-envoy-auth-headers-to-remove", "cookie, x-token"),
        ],
    );
    assert!(matches!(step(&mut stream, &filter, ok), Step::Continue));
    assert_eq!(stream.head.get_str("x-user"), Some("bob"));
    assert_eq!(stream.head.get_str("x-role"), Some("admin"));
    assert!(stream.head.get("cookie").is_none() && stream.head.get("x-token").is_none());
    let told = stream.state.metadata.at(METADATA_NAMESPACE, &["x-user"]);
    assert_eq!(told.and_then(|told| told.as_str()), Some("bob"));
    stream.respond(&filter, None);
    assert_eq!(stream.response.get_str("set-cookie"), Some("s=1"));

    let denied = answer(
        302,
        &[("location", "/login"), ("x-why", "w"), ("x-other", "o")],
    );
    let reply = refused(step(&mut stream, &filter, denied));
    let names: Vec<&str> = reply.headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!((reply.status, names), (302, vec!["location", "x-why"]));
    assert_eq!(reply.body, Bytes::from_static(b"because"));

    let failed = refused(step(&mut stream, &filter, answer(500, &[])));
    assert_eq!((failed.status, &*failed.details), (403, "ext_authz_error"));
}

#[test]
fn a_body_is_told_whole_or_in_part() {
    let mut message = proto::ExtAuthz {
        with_request_body: Some(proto::BufferSettings {
            max_request_bytes: 4,
            allow_partial_message: true,
            pack_as_bytes: true,
        }),
        ..grpc()
    };
    let filter = compile(&message);
    let mut stream = stream();
    stream.has_body = true;
    let Step::Hold(hold) = step(&mut stream, &filter, Event::Head) else {
        panic!("held")
    };
    assert_eq!((hold.limit, hold.beyond), (4, Beyond::Deliver));

    for (body, ended, told, partial) in [
        (b"abcd".as_slice(), true, "abcd", "false"),
        (b"abcd", false, "abcd", "true"),
        (b"abcdef", true, "abcd", "true"),
    ] {
        let held = Event::Held { body, ended };
        let fetch = asked(step(&mut stream, &filter, held));
        let request = question(&fetch).request.and_then(|request| request.http);
        let request = request.expect("HTTP");
        assert_eq!(request.raw_body, told.as_bytes());
        assert_eq!(request.headers["x-envoy-auth-partial-body"], partial);
    }

    message.with_request_body = message
        .with_request_body
        .map(|settings| proto::BufferSettings {
            allow_partial_message: false,
            ..settings
        });
    let Step::Hold(hold) = step(&mut stream, &compile(&message), Event::Head) else {
        panic!("held")
    };
    assert_eq!(hold.beyond, Beyond::Refuse);
}

#[test]
fn istio_enables_it_by_the_shadow_rules_before_it() {
    use meltemi_proto::envoy::r#type::matcher::v3 as matcher;

    let key = "istio-ext-authz-shadow_effective_policy_id";
    let message = proto::ExtAuthz {
        filter_enabled_metadata: Some(matcher::MetadataMatcher {
            filter: "envoy.filters.http.rbac".into(),
            path: vec![matcher::metadata_matcher::PathSegment {
                segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(
                    key.into(),
                )),
            }],
            value: Some(matcher::ValueMatcher {
                match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(
                    StringMatcher {
                        match_pattern: Some(MatchPattern::Prefix("istio-ext-authz".into())),
                        ignore_case: false,
                    },
                )),
            }),
            invert: false,
        }),
        ..grpc()
    };
    let filter = compile(&message);
    let mut stream = stream();
    assert!(matches!(
        step(&mut stream, &filter, Event::Head),
        Step::Continue
    ));
    assert_eq!(counted(&stream), ["ext_authz.disabled"]);

    let policy = crate::metadata::Value::string("istio-ext-authz-ns[a]-policy[p]-rule[0]");
    stream
        .state
        .metadata
        .set("envoy.filters.http.rbac", key, policy);
    asked(step(&mut stream, &filter, Event::Head));

    let denies = proto::ExtAuthz {
        deny_at_disable: Some(core::RuntimeFeatureFlag {
            default_value: Some(BoolValue { value: true }),
            ..Default::default()
        }),
        ..message
    };
    let mut other = self::stream();
    let reply = refused(step(&mut other, &compile(&denies), Event::Head));
    assert_eq!((reply.status, &*reply.details), (403, "ext_authz_error"));
}

#[test]
fn routes_merge_their_extensions_and_choose_their_body() {
    let settings = |pairs: &[(&str, &str)], off| {
        let message = proto::ExtAuthzPerRoute {
            r#override: Some(proto::ext_authz_per_route::Override::CheckSettings(
                proto::CheckSettings {
                    context_extensions: pairs
                        .iter()
                        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                        .collect(),
                    disable_request_body_buffering: off,
                    ..Default::default()
                },
            )),
        };
        match CheckSettings::compile_route(&message, &mut Scope::new()) {
            Ok(PerRoute::Settings(settings)) => Override::ExtAuthz(Box::new(settings)),
            other => panic!("no settings: {other:?}"),
        }
    };
    let (own, host) = (
        settings(&[("route", "r"), ("host", "overridden")], false),
        settings(&[("host", "h"), ("table", "t")], true),
    );
    let route = FilterSettings([None, Some(&own), Some(&host), None]);

    let filter = compile(&proto::ExtAuthz {
        with_request_body: Some(proto::BufferSettings {
            max_request_bytes: 4,
            ..Default::default()
        }),
        ..grpc()
    });
    let mut stream = stream();
    stream.has_body = true;
    let fetch = asked(stream.step(&filter, route, Event::Head));
    let mut told: Vec<_> = question(&fetch).context_extensions.into_iter().collect();
    told.sort();
    let wanted = [("host", "overridden"), ("route", "r"), ("table", "t")];
    assert_eq!(told, wanted.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[test]
fn what_would_weaken_it_is_refused() {
    for message in [
        proto::ExtAuthz {
            services: None,
            ..grpc()
        },
        proto::ExtAuthz {
            transport_api_version: 0,
            ..grpc()
        },
        proto::ExtAuthz {
            shadow_mode: true,
            ..grpc()
        },
        proto::ExtAuthz {
            decoder_header_mutation_rules: Some(Default::default()),
            ..grpc()
        },
    ] {
        assert!(try_compile(&message).is_err(), "{message:?}");
    }
}

#[test]
fn invalid_changes_are_left_out_or_answered() {
    let ok = auth::OkHttpResponse {
        headers: vec![header("x y", "1"), header("x-z", "a\r\nb: c")],
        ..Default::default()
    };
    let response = response(0, auth::check_response::HttpResponse::OkResponse(ok));
    let mut first = stream();
    let lines = first.head.fields().len();
    let step = run(&mut first, &compile(&grpc()), answered(&response));
    assert!(matches!(step, Step::Continue));
    assert_eq!(first.head.fields().len(), lines);

    let strict = proto::ExtAuthz {
        validate_mutations: true,
        ..grpc()
    };
    let mut second = stream();
    let reply = refused(run(&mut second, &compile(&strict), answered(&response)));
    assert_eq!((reply.status, &*reply.details), (500, "ext_authz_invalid"));
    assert_eq!(counted(&second), ["ext_authz.invalid"]);
}

proptest! {
    /// Nothing that a service can send is a panic, and no answer lets it cut a request's framing.
    #[test]
    fn any_bytes_are_an_answer_or_an_error(
        body in prop::collection::vec(any::<u8>(), 0..400), framed in any::<bool>(), status in 0_u16..1000,
    ) {
        let mut bytes = Vec::new();
        if framed {
            bytes.push(0);
            bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
        }
        bytes.extend_from_slice(&body);
        let answer = || {
            let mut fetched = Fetched {
                head: ResponseHead::of(if framed { 200 } else { status }),
                body: bytes.clone().into(),
                ..Fetched::default()
            };
            fetched.trailers.append("grpc-status", b"0");
            CallResult::Fetched(Ok(Box::new(fetched)))
        };
        for message in [grpc(), http()] {
            let mut stream = stream();
            run(&mut stream, &compile(&message), answer());
            prop_assert!(stream.head.get("content-length").is_none());
        }
    }

    /// Answers with arbitrary contents, which arbitrary bytes hardly ever are.
    #[test]
    fn any_answer_keeps_the_head_well_formed(
        names in prop::collection::vec("[ -~]{0,12}", 0..4), value in "\\PC{0,20}", action in -1_i32..6,
    ) {
        let headers: Vec<_> = names.iter().map(|name| core::HeaderValueOption {
            append_action: action,
            ..header(name, &value)
        }).collect();
        let ok = auth::OkHttpResponse {
            headers: headers.clone(),
            headers_to_remove: names.clone(),
            query_parameters_to_remove: names.clone(),
            query_parameters_to_set: names.iter().map(|name| core::QueryParameter {
                key: name.clone(),
                value: value.clone(),
            }).collect(),
            ..Default::default()
        };
        let response = response(0, auth::check_response::HttpResponse::OkResponse(ok));
        let mut stream = stream();
        run(&mut stream, &compile(&grpc()), answered(&response));

        let mut out = Vec::new();
        stream.head.write_h1(&mut out);
        let lines = out.split(|byte| *byte == b'\n').count();
        prop_assert_eq!(lines, stream.head.fields().len() + 3);
        prop_assert!(!stream.head.path().contains(' '));
    }
}
