use bytes::Bytes;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::common::fault::v3 as common;
use meltemi_proto::envoy::extensions::filters::http as proto;
use meltemi_proto::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use meltemi_proto::envoy::r#type::v3::{FractionalPercent, TokenBucket as ProtoBucket};
use meltemi_proto::google::protobuf::{BoolValue, Duration as ProtoDuration, UInt32Value};
use proptest::prelude::*;

use std::time::SystemTime;

use std::time::Duration;

use super::chain::HttpFilterSlot;
use super::context::{Entropy, StreamFacts, StreamState};
use super::phase::{Call, CallResult};
use super::settings::Activation;
use super::*;
use crate::conn::{ConnInfo, TlsPeer};
use crate::counter::{Counters, Tally};
use crate::filter::cors::CorsPolicy;
use crate::filter::rate_limit::{BucketSpec, Buckets, TokenBucket};
use crate::finding::Scope;
use crate::flag::ResponseFlag;
use crate::head::{RequestHead, ResponseHead};
use crate::metadata::Metadata;
use crate::peer_metadata::{LocalPeer, PeerCache, PeerInfo, preamble};
use crate::reply::Cause;

/// What is known of every stream here.
const STREAM: StreamFacts<'_> = StreamFacts {
    start: SystemTime::UNIX_EPOCH,
    connection: 7,
    route: Some("a route"),
    upstream: None,
    details: "via_upstream",
};

/// Everything that a context borrows.
pub(crate) struct Stream {
    pub(crate) head: RequestHead,
    pub(crate) has_body: bool,
    pub(crate) response: ResponseHead,
    pub(crate) conn: ConnInfo,
    pub(crate) state: StreamState,
    pub(crate) tally: Tally,
    pub(crate) reroute: bool,
    pub(crate) now: Duration,
    entropy: Entropy,
    local: LocalPeer,
    peers: PeerCache,
    route_metadata: Metadata,
}

fn route_of(own: Option<&Override>) -> FilterSettings<'_> {
    FilterSettings([None, own, None, None])
}

impl Stream {
    pub(crate) fn new(head: RequestHead) -> Self {
        let address = |text: &str| text.parse().expect("address");
        Self {
            head,
            has_body: false,
            response: ResponseHead::of(200),
            conn: ConnInfo::plain(address("10.0.0.2:80"), address("10.0.0.1:4000")),
            state: StreamState::default(),
            tally: Tally::default(),
            reroute: false,
            entropy: Entropy::new(1),
            now: Duration::ZERO,
            local: LocalPeer {
                id: "sidecar~10.0.0.2".into(),
                encoded: "AA==".into(),
                info: PeerInfo::default(),
            },
            peers: PeerCache::default(),
            route_metadata: Metadata::default(),
        }
    }

    fn request(&mut self, filter: &HttpFilter, own: Option<&Override>) -> Step {
        self.step(filter, route_of(own), Event::Head)
    }

    fn slept(&mut self, filter: &HttpFilter) -> Step {
        self.step(
            filter,
            FilterSettings::default(),
            Event::Called(CallResult::Slept),
        )
    }

    pub(crate) fn step(
        &mut self,
        filter: &HttpFilter,
        route: FilterSettings<'_>,
        event: Event<'_>,
    ) -> Step {
        let mut cx = RequestContext {
            slot: 0,
            head: &mut self.head,
            has_body: self.has_body,
            conn: &self.conn,
            remote: self.conn.remote,
            state: &mut self.state,
            entropy: &mut self.entropy,
            now: self.now,
            route_metadata: Some(&self.route_metadata),
            cluster: Some("outbound|80||a"),
            upstream_in_mesh: false,
            local: &self.local,
            peers: &mut self.peers,
            tally: &self.tally,
            reroute: &mut self.reroute,
            stream: STREAM,
        };
        filter.on_request(route, event, &mut cx)
    }

    pub(crate) fn respond(&mut self, filter: &HttpFilter, own: Option<&Override>) {
        let mut cx = ResponseContext {
            slot: 0,
            head: &mut self.response,
            request: &self.head,
            conn: &self.conn,
            remote: self.conn.remote,
            state: &mut self.state,
            local: &self.local,
            peers: &mut self.peers,
            tally: &self.tally,
            route_metadata: None,
            cluster: Some("outbound|80||a"),
            stream: StreamFacts {
                upstream: Some("10.0.0.3:80".parse().expect("an address")),
                ..STREAM
            },
        };

        let step = filter.on_response(route_of(own), Event::Head, &mut cx);
        assert!(matches!(step, Step::Continue));
    }
}

fn all() -> Option<FractionalPercent> {
    Some(FractionalPercent {
        numerator: 100,
        denominator: 0,
    })
}

fn fault(message: proto::fault::v3::HttpFault) -> HttpFilter {
    HttpFilter::Fault(Box::new(
        Fault::compile(&message, &mut Scope::new()).expect("compiles"),
    ))
}

fn delay(seconds: i64) -> Option<common::FaultDelay> {
    let fixed = ProtoDuration { seconds, nanos: 0 };
    Some(common::FaultDelay {
        percentage: all(),
        fault_delay_secifier: Some(common::fault_delay::FaultDelaySecifier::FixedDelay(fixed)),
    })
}

fn abort(error: proto::fault::v3::fault_abort::ErrorType) -> Option<proto::fault::v3::FaultAbort> {
    Some(proto::fault::v3::FaultAbort {
        percentage: all(),
        error_type: Some(error),
        ..Default::default()
    })
}

fn user(name: &str) -> route::HeaderMatcher {
    let exact = StringMatcher {
        ignore_case: false,
        match_pattern: Some(MatchPattern::Exact(name.into())),
    };

    route::HeaderMatcher {
        name: "end-user".into(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            exact,
        )),
        ..Default::default()
    }
}

#[test]
fn a_delay_then_an_abort_and_both_flags() {
    use proto::fault::v3::fault_abort::ErrorType;

    let filter = fault(proto::fault::v3::HttpFault {
        delay: delay(7),
        abort: abort(ErrorType::HttpStatus(555)),
        headers: vec![user("jason")],
        ..Default::default()
    });

    let mut stream = Stream::new(RequestHead::of("GET", "ratings", "/"));
    assert!(
        matches!(stream.request(&filter, None), Step::Continue),
        "others are left alone"
    );

    stream.head.append("end-user", b"jason");
    assert!(
        matches!(stream.request(&filter, None), Step::Call(Call::Sleep(time)) if time == Duration::from_secs(7))
    );
    let Step::Reply(reply) = stream.slept(&filter) else {
        panic!("aborted")
    };
    assert_eq!((reply.status, &*reply.details), (555, "fault_filter_abort"));
    assert_eq!(reply.body, Bytes::from_static(b"fault filter abort"));
    assert_eq!(stream.state.flags.to_string(), "DI,FI");
    assert!(matches!(reply.cause, Cause::Fault(_)));
}

#[test]
fn active_faults_are_counted_until_the_stream_ends() {
    let filter = fault(proto::fault::v3::HttpFault {
        delay: delay(1),
        max_active_faults: Some(UInt32Value { value: 1 }),
        ..Default::default()
    });

    let head = || RequestHead::of("GET", "h", "/");
    let mut first = Stream::new(head());
    assert!(matches!(first.request(&filter, None), Step::Call(_)));
    assert!(
        matches!(Stream::new(head()).request(&filter, None), Step::Continue),
        "one at a time"
    );

    drop(first);
    assert!(matches!(
        Stream::new(head()).request(&filter, None),
        Step::Call(_)
    ));
}

#[test]
fn a_grpc_abort_keeps_its_status() {
    use proto::fault::v3::fault_abort::ErrorType;

    let filter = fault(proto::fault::v3::HttpFault {
        abort: abort(ErrorType::GrpcStatus(14)),
        ..Default::default()
    });

    let Step::Reply(reply) =
        Stream::new(RequestHead::of("POST", "h", "/s/m")).request(&filter, None)
    else {
        panic!("aborted")
    };

    assert_eq!((reply.status, reply.grpc_status), (200, Some(14)));
}

#[test]
fn a_route_can_turn_a_fault_off() {
    use proto::fault::v3::fault_abort::ErrorType;

    let abort = abort(ErrorType::HttpStatus(500));
    let filter = fault(proto::fault::v3::HttpFault {
        abort,
        ..Default::default()
    });

    let none = Fault::compile(&Default::default(), &mut Scope::new()).expect("compiles");
    let setting = Override::Fault(Box::new(none));
    assert!(matches!(
        Stream::new(RequestHead::of("GET", "h", "/")).request(&filter, Some(&setting)),
        Step::Continue
    ));

    let slot = HttpFilterSlot {
        name: "f".into(),
        filter,
        disabled: false,
    };

    let off = slot.activation(route_of(Some(&Override::Disabled)));
    assert!(matches!(off, Activation::Off));
    assert!(matches!(slot.activation(route_of(None)), Activation::On(_)));
}

fn cors() -> Override {
    let origin = StringMatcher {
        ignore_case: false,
        match_pattern: Some(MatchPattern::Exact("https://a.example".into())),
    };

    let message = proto::cors::v3::CorsPolicy {
        allow_origin_string_match: vec![origin],
        allow_methods: "GET,POST".into(),
        allow_headers: "x-a".into(),
        expose_headers: "x-b".into(),
        max_age: "86400".into(),
        allow_credentials: Some(BoolValue { value: true }),
        ..Default::default()
    };

    Override::Cors(Box::new(
        CorsPolicy::compile(&message, &mut Scope::new()).expect("compiles"),
    ))
}

#[test]
fn a_preflight_is_told_what_it_asked_for_where_all_is_allowed() {
    let message = proto::cors::v3::CorsPolicy {
        allow_origin_string_match: vec![StringMatcher {
            ignore_case: false,
            match_pattern: Some(MatchPattern::Prefix("https://".into())),
        }],
        allow_methods: "*".into(),
        allow_headers: "*".into(),
        ..Default::default()
    };
    let policy = CorsPolicy::compile(&message, &mut Scope::new()).expect("compiles");
    let mut head = RequestHead::of("OPTIONS", "h", "/");
    head.append("origin", b"https://a.example");
    head.append("access-control-request-method", b"PUT");
    head.append("access-control-request-headers", b"authorization, x-a");

    let setting = Override::Cors(Box::new(policy));
    let Step::Reply(reply) = Stream::new(head).request(&HttpFilter::Cors, Some(&setting)) else {
        panic!("answered")
    };
    let has = |name: &str, value: &[u8]| reply.headers.iter().any(|(n, v)| n == name && v == value);
    assert!(has("access-control-allow-methods", b"PUT"));
    assert!(has("access-control-allow-headers", b"authorization, x-a"));
}

#[test]
fn preflights_are_answered_and_others_are_marked() {
    let setting = cors();
    let request = |method: &str, origin: &str| {
        let mut head = RequestHead::of(method, "h", "/");
        head.append("origin", origin.as_bytes());
        head.append("access-control-request-method", b"POST");
        Stream::new(head)
    };

    let Step::Reply(reply) =
        request("OPTIONS", "https://a.example").request(&HttpFilter::Cors, Some(&setting))
    else {
        panic!("answered")
    };

    assert_eq!(reply.status, 200);
    let value = |name: &str| {
        reply
            .headers
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.clone())
    };

    assert_eq!(
        value("access-control-allow-origin").as_deref(),
        Some(b"https://a.example".as_slice())
    );

    assert_eq!(
        value("access-control-allow-methods").as_deref(),
        Some(b"GET,POST".as_slice())
    );

    assert_eq!(
        value("access-control-max-age").as_deref(),
        Some(b"86400".as_slice())
    );

    let mut stream = request("OPTIONS", "https://b.example");
    assert!(
        matches!(
            stream.request(&HttpFilter::Cors, Some(&setting)),
            Step::Continue
        ),
        "forwarded by default"
    );

    let mut stream = request("GET", "https://a.example");
    assert!(matches!(
        stream.request(&HttpFilter::Cors, Some(&setting)),
        Step::Continue
    ));

    stream.respond(&HttpFilter::Cors, Some(&setting));
    assert_eq!(
        stream.response.get_str("access-control-expose-headers"),
        Some("x-b")
    );

    assert_eq!(
        stream.response.get_str("access-control-allow-credentials"),
        Some("true")
    );

    let mut stream = request("GET", "https://b.example");
    stream.request(&HttpFilter::Cors, Some(&setting));
    stream.respond(&HttpFilter::Cors, Some(&setting));
    assert_eq!(stream.response.get_str("access-control-allow-origin"), None);
}

#[test]
fn a_bucket_refuses_when_empty_and_fills_with_time() {
    let runtime = core::RuntimeFractionalPercent {
        default_value: all(),
        runtime_key: String::new(),
    };

    let message = proto::local_ratelimit::v3::LocalRateLimit {
        stat_prefix: "http_local_rate_limiter".into(),
        token_bucket: Some(ProtoBucket {
            max_tokens: 2,
            tokens_per_fill: Some(UInt32Value { value: 1 }),
            fill_interval: Some(ProtoDuration {
                seconds: 60,
                nanos: 0,
            }),
        }),
        filter_enabled: Some(runtime.clone()),
        filter_enforced: Some(runtime),
        response_headers_to_add: vec![core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: "x-limited".into(),
                value: "yes".into(),
                raw_value: vec![],
            }),
            ..Default::default()
        }],
        ..Default::default()
    };

    let buckets = Buckets::default();
    let compile = || {
        let limit =
            LocalRateLimit::compile(&message, "listener/chain", &buckets, &mut Scope::new())
                .expect("compiles");
        HttpFilter::LocalRateLimit(Box::new(limit))
    };

    let filter = compile();
    let mut stream = Stream::new(RequestHead::of("GET", "h", "/"));
    assert!(matches!(stream.request(&filter, None), Step::Continue));
    assert!(matches!(stream.request(&filter, None), Step::Continue));
    let again = compile();
    let Step::Reply(reply) = stream.request(&again, None) else {
        panic!("a new version must not fill the bucket")
    };
    assert_eq!(
        (reply.status, reply.flag),
        (429, Some(ResponseFlag::RateLimited))
    );

    stream.respond(&again, None);
    assert_eq!(stream.response.get_str("x-limited"), Some("yes"));
    stream.now = Duration::from_secs(61);
    assert!(
        matches!(stream.request(&filter, None), Step::Continue),
        "one token came"
    );

    assert!(matches!(stream.request(&filter, None), Step::Reply(_)));
}

#[test]
fn peers_introduce_each_other() {
    let info = PeerInfo {
        name: "productpage-v1-abc".into(),
        namespace: "default".into(),
        workload: "productpage-v1".into(),
        app: "productpage".into(),
        version: "v1".into(),
        canonical_service: "productpage".into(),
        canonical_revision: "v1".into(),
        ..PeerInfo::default()
    };

    let inbound = HttpFilter::PeerMetadata(PeerMetadata {
        downstream_discovery: true,
        downstream_propagation: true,
        ..PeerMetadata::default()
    });

    let mut head = RequestHead::of("GET", "h", "/");
    head.append("x-envoy-peer-metadata", info.encode().as_bytes());
    head.append("x-envoy-peer-metadata-id", b"sidecar~10.0.0.1");

    // Over plaintext anybody may say so.
    let mut stream = Stream::new(head.clone());
    stream.request(&inbound, None);
    stream.respond(&inbound, None);
    assert_eq!(stream.state.downstream_peer, None);
    assert_eq!(stream.head.get("x-envoy-peer-metadata"), None);
    assert_eq!(stream.response.get_str("x-envoy-peer-metadata"), None);

    let mut stream = Stream::new(head);
    stream.conn.tls = Some(Arc::new(TlsPeer {
        validated: true,
        uri_sans: vec!["spiffe://cluster.local/ns/default/sa/productpage".into()],
        ..Default::default()
    }));
    stream.request(&inbound, None);
    assert_eq!(stream.state.downstream_peer.as_deref(), Some(&info));
    assert_eq!(
        stream.head.get("x-envoy-peer-metadata"),
        None,
        "the application does not see it"
    );

    stream.respond(&inbound, None);
    assert_eq!(
        stream.response.get_str("x-envoy-peer-metadata-id"),
        Some("sidecar~10.0.0.2")
    );

    let outbound = HttpFilter::PeerMetadata(PeerMetadata {
        upstream_discovery: true,
        upstream_propagation: true,
        skip_external: true,
        ..PeerMetadata::default()
    });

    let mut stream = Stream::new(RequestHead::of("GET", "h", "/"));
    stream.request(&outbound, None);
    assert_eq!(
        stream.head.get("x-envoy-peer-metadata"),
        None,
        "nothing leaves the mesh"
    );

    stream
        .response
        .append("x-envoy-peer-metadata", info.encode().as_bytes());
    stream.respond(&outbound, None);
    assert_eq!(stream.state.upstream_peer.as_deref(), Some(&info));
    assert_eq!(stream.response.get_str("x-envoy-peer-metadata"), None);
}

#[test]
fn the_preamble_is_read_in_any_pieces() {
    let info = PeerInfo {
        namespace: "a".into(),
        workload: "b".into(),
        canonical_service: "b".into(),
        canonical_revision: "latest".into(),
        ..PeerInfo::default()
    };

    let mut bytes = preamble::write("id", &info);
    let length = bytes.len();
    bytes.extend_from_slice(b"payload");
    for cut in 0..length {
        assert!(
            matches!(preamble::read(&bytes[..cut]), preamble::Read::More(_)),
            "{cut}"
        );
    }

    assert_eq!(
        preamble::read(&bytes),
        preamble::Read::Peer(length, Some(Arc::new(info)))
    );

    assert_eq!(preamble::read(b"GET / HTTP/1.1"), preamble::Read::Absent);
    assert_eq!(
        preamble::read(&[0x3d, 0x23, 0x04, 0x67, 0xff, 0xff, 0xff, 0xff]),
        preamble::Read::Absent
    );
}

#[test]
fn filter_state_sets_alpn() {
    use meltemi_proto::envoy::extensions::filters::common::set_filter_state::v3 as common;

    #[expect(deprecated, reason = "Istio sends the older field")]
    let format =
        core::substitution_format_string::Format::TextFormat("istio-%REQ(x-kind)%,istio".into());
    let value = common::FilterStateValue {
        key: Some(common::filter_state_value::Key::ObjectKey(
            "envoy.network.application_protocols".into(),
        )),
        value: Some(common::filter_state_value::Value::FormatString(
            core::SubstitutionFormatString {
                format: Some(format),
                ..Default::default()
            },
        )),
        ..Default::default()
    };

    let message = proto::set_filter_state::v3::Config {
        on_request_headers: vec![value],
        ..Default::default()
    };

    let set = SetFilterState::compile(&message, &mut Scope::new()).expect("compiles");
    let mut head = RequestHead::of("GET", "h", "/");
    head.append("x-kind", b"h2");
    let mut stream = Stream::new(head);
    stream.request(&HttpFilter::SetFilterState(Box::new(set)), None);
    let alpn: Vec<&str> = stream
        .state
        .filter_state
        .upstream_alpn()
        .expect("set")
        .collect();

    assert_eq!(alpn, ["istio-h2", "istio"]);
}

proptest! {
    #[test]
    fn no_metadata_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        PeerInfo::decode(&bytes);
        preamble::read(&bytes);
        let framed: Vec<u8> = preamble::MAGIC.to_be_bytes().into_iter()
            .chain((bytes.len() as u32).to_be_bytes()).chain(bytes).collect();
        preamble::read(&framed);
    }

    #[test]
    fn a_bucket_never_gives_more_than_it_gets(steps in prop::collection::vec(0u64..500, 1..60), max in 1u32..10, per_fill in 1u32..5) {
        let spec = BucketSpec { max, per_fill, interval: Duration::from_millis(100) };
        let bucket = TokenBucket::new(spec);
        let (mut now, mut taken) = (0, 0);
        for step in steps {
            now += step;
            taken += u64::from(bucket.take(Duration::from_millis(now)));
            prop_assert!(taken <= u64::from(max) + now / 100 * u64::from(per_fill));
        }
    }
}

#[test]
fn fields_without_an_effect_are_named() {
    let fields = |compile: &dyn Fn(&mut Scope)| -> Vec<String> {
        let mut scope = Scope::new();
        compile(&mut scope);
        let warnings = scope.into_warnings();
        warnings.into_iter().map(|warning| warning.path).collect()
    };

    let limit = proto::local_ratelimit::v3::LocalRateLimit {
        stage: 1,
        enable_retry_after_header: true,
        max_dynamic_descriptors: Some(UInt32Value { value: 3 }),
        always_consume_default_token_bucket: Some(BoolValue { value: false }),
        ..Default::default()
    };
    assert_eq!(
        fields(&|scope| {
            let _ = LocalRateLimit::compile(&limit, "chain", &Buckets::default(), scope);
        }),
        [
            "stage",
            "always_consume_default_token_bucket",
            "max_dynamic_descriptors",
            "enable_retry_after_header"
        ]
    );

    let fault = proto::fault::v3::HttpFault {
        filter_metadata: Some(Default::default()),
        ..Default::default()
    };
    assert_eq!(
        fields(&|scope| _ = Fault::compile(&fault, scope)),
        ["filter_metadata"]
    );

    let rbac = proto::rbac::v3::Rbac {
        track_per_rule_stats: true,
        ..Default::default()
    };
    assert_eq!(
        fields(&|scope| _ = Rbac::compile_http(&rbac, &Counters::default(), scope)),
        ["track_per_rule_stats"]
    );
}

#[test]
fn header_mutations_and_rate_limits_fill_in_templates() {
    use meltemi_proto::envoy::config::common::mutation_rules::v3 as rules;

    let append = |name: &str, value: &str| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.into(),
            value: value.into(),
            ..Default::default()
        }),
        ..Default::default()
    };

    let mutation = |name: &str, value: &str| rules::HeaderMutation {
        action: Some(rules::header_mutation::Action::Append(append(name, value))),
    };
    let message = proto::header_mutation::v3::HeaderMutation {
        mutations: Some(proto::header_mutation::v3::Mutations {
            request_mutations: vec![mutation(
                "x-start",
                "t=%START_TIME(%s.%3f)% %ROUTE_NAME% %UPSTREAM_HOST%",
            )],
            response_mutations: vec![mutation(
                "x-up",
                "%UPSTREAM_HOST% %RESPONSE_CODE_DETAILS% %TRACE_ID%",
            )],
            ..Default::default()
        }),
        ..Default::default()
    };

    let mut scope = Scope::new();
    let filter = HttpFilter::HeaderMutation(Box::new(
        HeaderMutation::compile(&message, &mut scope).expect("compiles"),
    ));
    let warnings: Vec<String> = scope
        .into_warnings()
        .iter()
        .map(ToString::to_string)
        .collect();

    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("%UPSTREAM_HOST%") && warnings[1].contains("%TRACE_ID%"),
        "{warnings:?}"
    );

    let mut stream = Stream::new(RequestHead::of("GET", "a", "/"));
    stream.request(&filter, None);
    stream.respond(&filter, None);
    assert_eq!(
        stream.head.get("x-start"),
        Some(b"t=0.000 a route ".as_slice())
    );

    assert_eq!(
        stream.response.get("x-up").as_deref(),
        Some(b"10.0.0.3:80 via_upstream ".as_slice())
    );

    let message = proto::local_ratelimit::v3::LocalRateLimit {
        token_bucket: Some(ProtoBucket {
            max_tokens: 1,
            fill_interval: Some(ProtoDuration {
                seconds: 3600,
                nanos: 0,
            }),
            ..Default::default()
        }),
        filter_enabled: Some(core::RuntimeFractionalPercent {
            default_value: all(),
            ..Default::default()
        }),
        filter_enforced: Some(core::RuntimeFractionalPercent {
            default_value: all(),
            ..Default::default()
        }),
        response_headers_to_add: vec![append("x-limited", "%REQ(:PATH)%")],
        ..Default::default()
    };

    let limit = LocalRateLimit::compile(&message, "t", &Buckets::default(), &mut Scope::new());
    let filter = HttpFilter::LocalRateLimit(Box::new(limit.expect("compiles")));
    stream.request(&filter, None);
    stream.request(&filter, None);
    stream.respond(&filter, None);
    assert_eq!(
        stream.response.get("x-limited").as_deref(),
        Some(b"/".as_slice())
    );
}

#[test]
fn a_request_is_held_until_its_body_is_whole() {
    let message = proto::buffer::v3::Buffer {
        max_request_bytes: Some(UInt32Value { value: 9 }),
    };
    let buffer = Buffer::compile(&message, &mut Scope::new()).expect("compiles");
    let filter = HttpFilter::Buffer(buffer);
    let mut stream = Stream::new(RequestHead::of("POST", "h", "/"));
    assert!(matches!(stream.request(&filter, None), Step::Continue));

    stream.has_body = true;
    let Step::Hold(hold) = stream.request(&filter, None) else {
        panic!("held")
    };
    assert_eq!((hold.limit, hold.beyond), (9, Beyond::Refuse));
    let held = Event::Held {
        body: b"four",
        ended: true,
    };
    let step = stream.step(&filter, FilterSettings::default(), held);
    assert!(matches!(step, Step::Continue));
    assert_eq!(stream.head.get_str("content-length"), Some("4"));
}

#[test]
fn authorization_counts_and_tells_later_filters_of_shadow_rules() {
    use meltemi_proto::envoy::config::rbac::v3 as rbac;

    let anyone = rbac::Policy {
        permissions: vec![rbac::Permission {
            rule: Some(rbac::permission::Rule::Any(true)),
        }],
        principals: vec![rbac::Principal {
            identifier: Some(rbac::principal::Identifier::Any(true)),
        }],
        ..Default::default()
    };
    let rules = |name: &str| rbac::Rbac {
        action: rbac::rbac::Action::Deny as i32,
        policies: [(name.to_owned(), anyone.clone())].into(),
        ..Default::default()
    };
    let mut message = proto::rbac::v3::Rbac {
        shadow_rules: Some(rules("istio-ext-authz-ns[a]-policy[p]-rule[0]")),
        shadow_rules_stat_prefix: "istio_ext_authz_".into(),
        ..Default::default()
    };
    let compile = |message: &proto::rbac::v3::Rbac| {
        let rbac =
            Rbac::compile_http(message, &Counters::default(), &mut Scope::new()).expect("compiles");
        HttpFilter::Rbac(Box::new(rbac))
    };

    let mut stream = Stream::new(RequestHead::of("GET", "h", "/"));
    let step = stream.request(&compile(&message), None);
    assert!(matches!(step, Step::Continue));
    let key = ["istio_ext_authz_shadow_effective_policy_id"];
    let told = stream.state.metadata.at("envoy.filters.http.rbac", &key);
    assert!(told.and_then(|told| told.as_str()).is_some());
    let denied = |name: &str| vec![(format!("rbac.{name}denied"), 1)];
    assert_eq!(
        stream.tally.values(&[]),
        denied("istio_ext_authz_.shadow_"),
        "shadow rules deny nothing"
    );

    message.rules = Some(rules("p"));
    let step = stream.request(&compile(&message), None);
    assert!(matches!(step, Step::Reply(_)));
    assert_eq!(stream.tally.values(&[])[0], denied("")[0]);
}

/// The open arm: a filter that another crate brings is stepped like those of this one.
#[test]
fn an_extension_is_stepped_in_the_phases_that_it_needs() {
    #[derive(Debug)]
    struct Shout;

    impl Extension for Shout {
        fn needs(&self) -> Needs {
            Needs {
                response_data: true,
                ..Needs::default()
            }
        }

        fn on_request(&self, _event: Event<'_>, cx: &mut RequestContext<'_>) -> Step {
            cx.keep(3_usize);
            Step::Continue
        }

        fn on_data(&self, _which: Direction, _event: DataEvent, cx: &mut DataContext<'_>) -> Step {
            let left = cx.take::<usize>().expect("kept");
            cx.data.make_ascii_uppercase();
            cx.keep(left - 1);
            Step::Continue
        }
    }

    let filter = || HttpFilter::Extension(Arc::new(Shout));
    let slot = HttpFilterSlot {
        name: "shout".into(),
        filter: filter(),
        disabled: false,
    };
    let chain = HttpChain::new(vec![slot], Router::default());
    assert!(chain.needs().data(Direction::Response) && !chain.needs().data(Direction::Request));

    let mut stream = Stream::new(RequestHead::of("GET", "h", "/"));
    stream.request(&filter(), None);
    let mut data = b"quiet".to_vec();
    let mut cx = DataContext {
        slot: 0,
        data: &mut data,
        ended: true,
        now: Duration::ZERO,
        tally: &stream.tally,
        own: &mut stream.state.own.share(),
    };
    let step = filter().on_data(Direction::Response, DataEvent::Piece, &mut cx);
    assert!(matches!(step, Step::Continue));
    assert_eq!(data, b"QUIET");
    assert_eq!(stream.state.own.take::<usize>(0), Some(2));
}
