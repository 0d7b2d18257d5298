use meltemi_proto::envoy::config::route::v3::route_match::PathSpecifier;
use meltemi_proto::envoy::config::route::v3::{HeaderMatcher, RouteMatch};
use meltemi_proto::envoy::extensions::filters::http::jwt_authn::v3 as proto;
use proptest::prelude::*;
use prost::Message;
use proto::jwt_requirement::RequiresType;
use proto::requirement_rule::RequirementType;

use super::*;
use crate::counter::Counters;
use crate::finding::Scope;
use crate::http::HttpFilter;
use crate::http::phase::Event;
use crate::http::settings::{FilterSettings, Override};
use crate::http::tests::Stream;

fn requires(requires: RequiresType) -> proto::JwtRequirement {
    proto::JwtRequirement {
        requires_type: Some(requires),
    }
}

fn provider(name: &str) -> proto::JwtRequirement {
    requires(RequiresType::ProviderName(name.to_owned()))
}

fn or_missing(name: &str) -> proto::JwtRequirement {
    requires(RequiresType::RequiresAny(proto::JwtRequirementOrList {
        requirements: vec![
            provider(name),
            requires(RequiresType::AllowMissing(Default::default())),
        ],
    }))
}

fn rule(prefix: &str, requirement: Option<proto::JwtRequirement>) -> proto::RequirementRule {
    proto::RequirementRule {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        requirement_type: requirement.map(RequirementType::Requires),
    }
}

/// Two issuers: one with Envoy's places, one with a header and a cookie of its own.
fn message() -> proto::JwtAuthentication {
    let b = proto::JwtProvider {
        from_headers: vec![proto::JwtHeader {
            name: "X-Tok".into(),
            value_prefix: "T ".into(),
        }],
        from_cookies: vec!["sess".into()],
        forward_payload_header: "X-Payload".into(),
        claim_to_headers: vec![proto::JwtClaimToHeader {
            header_name: "x-user".into(),
            claim_name: "sub".into(),
            ..Default::default()
        }],
        ..Default::default()
    };

    proto::JwtAuthentication {
        providers: [("a".to_owned(), Default::default()), ("b".to_owned(), b)].into(),
        rules: vec![
            rule("/req", Some(provider("a"))),
            rule(
                "/failed",
                Some(requires(RequiresType::AllowMissingOrFailed(
                    Default::default(),
                ))),
            ),
            rule("/free", None),
            rule(
                "/",
                Some(requires(RequiresType::RequiresAll(
                    proto::JwtRequirementAndList {
                        requirements: vec![or_missing("a"), or_missing("b")],
                    },
                ))),
            ),
        ],
        bypass_cors_preflight: true,
        ..Default::default()
    }
}

fn compile(message: &proto::JwtAuthentication) -> HttpFilter {
    let mut scope = Scope::new();
    let filter = JwtAuthn::compile(message, &Counters::default(), &mut scope).expect("compiles");
    assert_eq!(
        scope.into_warnings().len(),
        1,
        "that tokens are not checked is told"
    );

    HttpFilter::JwtAuthn(Box::new(filter))
}

fn answer(
    filter: &HttpFilter,
    stream: &mut Stream,
    route: Option<&Override>,
) -> Option<LocalReply> {
    match stream.step(
        filter,
        FilterSettings([None, route, None, None]),
        Event::Head,
    ) {
        Step::Continue => None,
        Step::Reply(reply) => Some(*reply),
        other => panic!("{other:?}"),
    }
}

/// The verdicts of Envoy 1.40 on the same filter, with tokens that do not verify.
#[test]
fn tokens_are_denied_where_envoy_looks_for_them() {
    const MISSING: &str = "Jwt is missing";
    const DENIED: &str = "Jwt verification fails";

    let filter = compile(&message());
    for (path, fields, wanted) in [
        ("/req", &[][..], Some(MISSING)),
        ("/req", &[("authorization", "Bearer x")], Some(DENIED)),
        ("/x", &[], None),
        ("/x", &[("authorization", "Bearer x")], Some(DENIED)),
        ("/x", &[("authorization", "Basic y")], None),
        ("/x", &[("authorization", "bearer x")], None),
        ("/x", &[("authorization", "Bearer")], None),
        (
            "/x",
            &[("authorization", "Basic"), ("authorization", "Bearer x")],
            Some(DENIED),
        ),
        ("/x?access_token=q", &[], Some(DENIED)),
        ("/x?a=b&access_token=", &[], Some(DENIED)),
        ("/x?access%5Ftoken=q", &[], Some(DENIED)),
        ("/x?my_access_token=q", &[], None),
        ("/x", &[("x-tok", "T")], None),
        ("/x", &[("x-tok", "bla T z")], Some(DENIED)),
        ("/x", &[("cookie", "a=b; sess=abc")], Some(DENIED)),
        ("/x", &[("cookie", "sess=")], None),
        ("/failed", &[("authorization", "Bearer x")], None),
        ("/free", &[("authorization", "Bearer x")], None),
    ] {
        let mut head = RequestHead::of("GET", "shop", path);
        for (name, value) in fields {
            head.append(name, value.as_bytes());
        }

        let reply = answer(&filter, &mut Stream::new(head), None);
        let said = reply.as_ref().map(|reply| (reply.status, &reply.body[..]));
        assert_eq!(
            said,
            wanted.map(|words| (401, words.as_bytes())),
            "{path} {fields:?}"
        );
    }
}

#[test]
fn a_denial_is_envoys_and_says_its_cause() {
    let filter = compile(&message());
    let mut head = RequestHead::of("GET", "shop", "/x?\"q\"");
    head.append("authorization", b"Bearer x");
    let mut stream = Stream::new(head);

    let reply = answer(&filter, &mut stream, None).expect("a denial");
    assert_eq!(
        reply.details,
        "jwt_authn_access_denied{Jwt_verification_fails}"
    );
    assert_eq!(reply.flag, None);
    assert_eq!(
        reply.headers[0].1,
        "Bearer realm=\"http://shop/x?q\", error=\"invalid_token\""
    );
    assert!(reply.cause.to_string().contains("not checked yet"));
    assert!(
        stream
            .tally
            .values(&[])
            .contains(&("jwt_authn.denied".to_owned(), 1))
    );
}

#[test]
fn preflights_pass_and_forged_claims_do_not() {
    let filter = compile(&message());
    let mut head = RequestHead::of("OPTIONS", "shop", "/req");
    head.append("origin", b"o");
    head.append("access-control-request-method", b"GET");
    assert_eq!(answer(&filter, &mut Stream::new(head), None), None);

    let mut head = RequestHead::of("GET", "shop", "/x");
    for name in ["x-payload", "x-user", "x-other"] {
        head.append(name, b"root");
    }
    let mut stream = Stream::new(head);
    assert_eq!(answer(&filter, &mut stream, None), None);
    let left: Vec<&str> = stream.head.iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["x-other"]);
}

#[test]
fn a_rule_with_unknown_conditions_may_match_all_requests() {
    let mut narrow = rule("/nowhere", Some(provider("a")));
    narrow.r#match.as_mut().expect("set").headers = vec![HeaderMatcher {
        name: "x".into(),
        ..Default::default()
    }];
    let filter = compile(&proto::JwtAuthentication {
        rules: vec![narrow, rule("/", None)],
        ..message()
    });

    let head = RequestHead::of("GET", "shop", "/");
    assert!(answer(&filter, &mut Stream::new(head), None).is_some());
}

#[test]
fn routes_name_requirements() {
    let mut message = message();
    message.requirement_map = [("none".to_owned(), or_missing("a"))].into();
    let filter = compile(&message);

    let head = || RequestHead::of("GET", "shop", "/req");
    let own = |name: &str| Override::TokenRequirement(name.into());
    assert_eq!(
        answer(&filter, &mut Stream::new(head()), Some(&own("none"))),
        None
    );
    assert!(answer(&filter, &mut Stream::new(head()), Some(&own("nope"))).is_some());
}

#[test]
fn what_envoy_refuses_is_refused() {
    let refused = |rules: Vec<proto::RequirementRule>| {
        let message = proto::JwtAuthentication { rules, ..message() };
        JwtAuthn::compile(&message, &Counters::default(), &mut Scope::new()).is_err()
    };
    let all = |requirements| {
        requires(RequiresType::RequiresAll(proto::JwtRequirementAndList {
            requirements,
        }))
    };

    assert!(refused(vec![rule("/", Some(provider("nobody")))]));
    assert!(refused(vec![rule("/", Some(all(vec![])))]));
    assert!(refused(vec![proto::RequirementRule::default()]));
    assert!(!refused(vec![rule(
        "/",
        Some(all(vec![provider("a"), provider("b")]))
    )]));
}

proptest! {
    #[test]
    fn no_message_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = proto::JwtAuthentication::decode(bytes.as_slice())
            && let Ok(filter) = JwtAuthn::compile(&message, &Counters::default(), &mut Scope::new())
        {
            let filter = HttpFilter::JwtAuthn(Box::new(filter));
            answer(&filter, &mut Stream::new(RequestHead::of("GET", "h", "/")), None);
        }
    }
}
