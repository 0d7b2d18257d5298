use std::time::{Duration, Instant, SystemTime};

use super::*;
use proptest::prelude::*;

/// Istio's default text format (one line with its line feed).
const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Request headers, and facts of one request.
struct Example(&'static [(&'static str, &'static str)]);

const REQUEST: Example = Example(&[
    (":method", "GET"),
    (":path", "/very/long/path?x=1"),
    (":authority", "details:9080"),
    ("user-agent", "curl/8.0"),
]);

impl Facts for Example {
    fn header(&self, head: Head, name: &str) -> Option<Cow<'_, [u8]>> {
        let found = self
            .0
            .iter()
            .find(|(n, _)| *n == name)
            .filter(|_| head == Head::Request)?;
        Some(Cow::Borrowed(found.1.as_bytes()))
    }
    fn fact(&self, fact: Fact, out: &mut Vec<u8>) -> bool {
        let text = match fact {
            Fact::Protocol => "HTTP/1.1",
            Fact::ResponseCode => "200",
            Fact::ResponseCodeDetails => "via_upstream",
            Fact::BytesReceived => "0",
            Fact::BytesSent => "51",
            Fact::Duration => "12",
            Fact::UpstreamHost => "10.44.0.7:9080",
            Fact::UpstreamClusterRaw => "outbound|9080||details.default.svc.cluster.local",
            Fact::RouteName => "default",
            Fact::RequestedServerName => "a\"b\\c",
            Fact::Cause => "policy p",
            _ => return false,
        };

        out.extend_from_slice(text.as_bytes());
        !matches!(fact, Fact::RequestedServerName) || self.0.is_empty()
    }
    fn time(&self, moment: Moment) -> Option<SystemTime> {
        (moment == Moment::Start)
            .then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123))
    }
    fn point(&self, point: Point) -> Option<Instant> {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let micros = match point {
            Point::RequestStart => 0,
            Point::RequestEnd => 1_500,
            Point::End => 5_000,
            Point::ResponseStart | Point::Other => return None,
        };
        Some(*START + Duration::from_micros(micros))
    }
}

fn line_of(format: &str, facts: &Example) -> String {
    let mut out = Vec::new();
    Template::parse(format)
        .expect(format)
        .render_line(facts, &mut out);
    String::from_utf8(out).expect("ASCII")
}

fn render(format: &str) -> String {
    line_of(format, &REQUEST)
}

fn typed(format: &str, facts: &Example) -> (Shape, String) {
    let mut out = Vec::new();
    let shape = Template::parse(format)
        .expect(format)
        .render_typed(facts, &mut out);
    (shape, String::from_utf8(out).expect("text"))
}

#[test]
fn operators_are_rendered() {
    assert_eq!(
        render("100%% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
        "100% /very/long/path?x=1"
    );

    assert_eq!(
        render("%REQ(User-Agent):4% %RESPONSE_CODE% %RESP(X)%"),
        "curl 200 -"
    );

    assert_eq!(render("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):5%"), "/very");
    assert_eq!(render("%CAUSE%"), "policy p");
    assert_eq!(
        render("%START_TIME(%Y/%m/%d %H:%M:%S.%3f)% x"),
        "2023/11/14 22:13:20.123 x"
    );
}

#[test]
fn queries_are_left_out_where_that_is_asked_for() {
    assert_eq!(render("%REQ_WITHOUT_QUERY(:PATH)%"), "/very/long/path");
    assert_eq!(
        render("%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH):5%"),
        "/very"
    );

    assert_eq!(
        render("%PATH(NQ)% %PATH% %PATH(WQ:ORIG)%"),
        "/very/long/path /very/long/path?x=1 -"
    );

    let rewritten = Example(&[(":path", "/new?y"), ("x-envoy-original-path", "/old?x")]);
    assert_eq!(
        line_of(
            "%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)% %PATH(NQ:PATH)%",
            &rewritten
        ),
        "/old /new"
    );
}

#[test]
fn istios_default_line() {
    assert_eq!(
        render(ISTIO),
        "[2023-11-14T22:13:20.123Z] \"GET /very/long/path?x=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 51 12 - \"-\" \"curl/8.0\" \"-\" \
         \"details:9080\" \"10.44.0.7:9080\" outbound|9080||details.default.svc.cluster.local - - - - default\n"
    );
}

#[test]
fn bytes_from_the_wire_cannot_forge_a_line() {
    let hostile = Example(&[("user-agent", "a\"\r\n[x]\u{1b}[31m\0\u{7f}\\\u{9b}")]);
    assert_eq!(
        line_of("\"%REQ(USER-AGENT)%\"\n", &hostile),
        "\"a\\x22\\x0d\\x0a[x]\\x1b[31m\\x00\\x7f\\x5c\\xc2\\x9b\"\n"
    );

    assert_eq!(
        line_of("%REQ(USER-AGENT):3%", &hostile),
        "a\\x22\\x0d",
        "a cut does not go through an escape"
    );

    // Not headers alone: a server name, a subject and a cause are the peer's words as well.
    assert_eq!(
        line_of("%REQUESTED_SERVER_NAME%", &Example(&[])),
        "a\\x22b\\x5cc"
    );

    assert_eq!(
        typed("%REQ(USER-AGENT)%", &hostile).1.as_bytes(),
        hostile.0[0].1.as_bytes(),
        "JSON escapes by itself"
    );
}

#[test]
fn types_are_kept_where_there_are_types() {
    assert_eq!(
        typed("%RESPONSE_CODE%", &REQUEST),
        (Shape::Json, "200".to_owned())
    );

    assert_eq!(typed("%REQ(X)%", &REQUEST), (Shape::Nothing, String::new()));
    assert_eq!(
        typed("%REQ(USER-AGENT):4%", &REQUEST),
        (Shape::Text, "curl".to_owned())
    );

    assert_eq!(
        typed("%PROTOCOL% %BYTES_SENT% %REQ(X)%", &REQUEST),
        (Shape::Text, "HTTP/1.1 51 -".to_owned())
    );
}

#[test]
fn what_is_unknown_stays_as_it_is_written() {
    let read = |format: &str| {
        let (template, reasons) = Template::parse_what_is_known(format);
        let mut out = Vec::new();
        template.render_line(&REQUEST, &mut out);
        (String::from_utf8(out).expect("text"), reasons.len())
    };

    assert_eq!(
        read("%NOPE% %START_TIME(%F)% %RESPONSE_CODE%"),
        ("%NOPE% 2023-11-14 200".to_owned(), 1)
    );

    assert_eq!(
        read("%NOPE%%PROTOCOL% 100% %NOPE(%F)%"),
        ("%NOPE%HTTP/1.1 100% %NOPE(%F)%".to_owned(), 5)
    );

    assert_eq!(read("%PROTOCOL%%"), ("HTTP/1.1%".to_owned(), 1));
}

#[test]
fn broken_formats_are_refused() {
    for format in [
        "%",
        "%REQ%",
        "%REQ(x%",
        "%NOPE%",
        "%REQ(x):a%",
        "%METADATA(X:y)%",
        "%DURATION",
        "%METADATA(Y)%",
    ] {
        assert!(Template::parse(format).is_err(), "{format}");
    }

    assert!(
        Template::parse("%NOPE%")
            .expect_err("unknown")
            .contains("%NOPE%")
    );

    for format in [
        "%GRPC_STATUS(WORDS)%",
        "%COMMON_DURATION(DS_RX_BEG)%",
        "%COMMON_DURATION(a:b:s)%",
        "%START_TIME(%n)%",
    ] {
        assert!(Template::parse(format).is_err(), "{format}");
    }

    assert!(Template::parse("%PATH(XQ)%").is_err() && Template::parse("%PATH(NQ:X)%").is_err());
}

#[test]
fn time_between_two_points_is_a_number() {
    assert_eq!(
        render("%COMMON_DURATION(DS_RX_BEG:DS_RX_END)% %COMMON_DURATION(DS_RX_END:DS_TX_END:us)%"),
        "1 3500"
    );

    assert_eq!(
        render("%COMMON_DURATION(DS_TX_END:DS_RX_END)% %COMMON_DURATION(DS_RX_BEG:US_RX_BEG)%"),
        "- -"
    );

    assert_eq!(
        typed("%COMMON_DURATION(DS_RX_BEG:DS_RX_END:ns)%", &REQUEST),
        (Shape::Json, "1500000".to_owned())
    );
}

#[test]
fn what_cannot_be_answered_is_told() {
    let gaps = |format: &str, place| Template::parse(format).expect(format).gaps(place);
    assert_eq!(gaps(ISTIO, Place::Log), Vec::<String>::new());
    assert_eq!(
        gaps(
            "%TRACE_ID% %START_TIME(%q)% %GRPC_STATUS(SNAKE_STRING)%",
            Place::Log
        ),
        [
            "%TRACE_ID% is not known to this proxy; it prints as \"-\"",
            "%q in a time format is unknown and printed as it is"
        ]
    );

    let headers = "%START_TIME% %UPSTREAM_HOST% %RESP(x)%";
    assert_eq!(gaps(headers, Place::RouteResponse), Vec::<String>::new());
    let wanted = ["UPSTREAM_HOST", "RESP"]
        .map(|word| format!("%{word}% is not known to this proxy; it has no value here"));
    assert_eq!(gaps(headers, Place::RouteRequest), wanted);
    assert_eq!(
        gaps("%COMMON_DURATION(US_TX_BEG:US_TX_END)%", Place::Log).len(),
        1
    );
}

proptest! {
    #[test]
    fn no_format_is_a_panic(format in "[%A-Z(:)?a-z0-9é_]{0,60}") {
        if let Ok(template) = Template::parse(&format) {
            template.render(&NoFacts, "-", &mut Vec::new());
            assert_eq!(Template::parse_what_is_known(&format), (template, Vec::new()));
        } else {
            assert!(!Template::parse_what_is_known(&format).1.is_empty());
        }
    }
}

#[test]
fn fields_of_filter_state_are_asked_for_by_name() {
    struct Peer;
    impl Facts for Peer {
        fn filter_state(&self, key: &str, field: Option<&str>) -> Option<Cow<'_, str>> {
            Some(format!("{key}/{}", field.unwrap_or("whole")).into())
        }
    }

    for (text, shown) in [
        (
            "%FILTER_STATE(upstream_peer:FIELD:workload)%",
            "upstream_peer/workload",
        ),
        ("%FILTER_STATE(some.key:PLAIN)%", "some.key/whole"),
        ("%FILTER_STATE(some.key)%", "some.key/whole"),
    ] {
        let mut out = Vec::new();
        Template::parse(text)
            .expect("known")
            .render_line(&Peer, &mut out);
        assert_eq!(String::from_utf8(out).expect("text"), shown);
    }
}
