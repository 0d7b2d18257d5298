use std::collections::HashMap;

use meltemi_proto::envoy::config::rbac::v3 as proto;
use meltemi_proto::envoy::config::route::v3::{
    HeaderMatcher, header_matcher::HeaderMatchSpecifier,
};
use meltemi_proto::envoy::extensions::filters::http::rbac::v3 as http;
use meltemi_proto::envoy::r#type::matcher::v3::{
    PathMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
};
use proptest::prelude::*;
use prost::Message;
use proto::permission::Rule;
use proto::principal::{Authenticated, Identifier};

use super::*;
use crate::conn::TlsPeer;
use crate::counter::Counters;
use crate::finding::Scope;

fn string(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        ignore_case: false,
        match_pattern: Some(pattern),
    }
}

fn path(prefix: &str) -> proto::Permission {
    let rule = path_matcher::Rule::Path(string(MatchPattern::Prefix(prefix.into())));
    proto::Permission {
        rule: Some(Rule::UrlPath(PathMatcher { rule: Some(rule) })),
    }
}

fn header(name: &str, value: &str) -> proto::Permission {
    let specifier = HeaderMatchSpecifier::StringMatch(string(MatchPattern::Exact(value.into())));
    let matcher = HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    };
    proto::Permission {
        rule: Some(Rule::Header(matcher)),
    }
}

fn not(permission: proto::Permission) -> proto::Permission {
    proto::Permission {
        rule: Some(Rule::NotRule(Box::new(permission))),
    }
}

fn identity(name: &str) -> proto::Principal {
    let principal_name = Some(string(MatchPattern::Exact(name.into())));
    proto::Principal {
        identifier: Some(Identifier::Authenticated(Authenticated { principal_name })),
    }
}

fn anyone() -> proto::Principal {
    proto::Principal {
        identifier: Some(Identifier::Any(true)),
    }
}

fn rules(
    action: proto::rbac::Action,
    policies: Vec<(&str, proto::Permission, proto::Principal)>,
) -> Rules {
    let policies: HashMap<String, proto::Policy> = policies
        .into_iter()
        .map(|(id, permission, principal)| {
            let policy = proto::Policy {
                permissions: vec![permission],
                principals: vec![principal],
                ..Default::default()
            };
            (id.to_owned(), policy)
        })
        .collect();

    let message = proto::Rbac {
        action: action as i32,
        policies,
        audit_logging_options: None,
    };

    Rules::compile(&message, &mut Scope::new()).expect("compiles")
}

fn conn(identity: Option<&str>) -> ConnInfo {
    let address = |text: &str| text.parse().expect("address");
    let mut conn = ConnInfo::plain(address("10.0.0.2:9080"), address("10.0.0.1:40000"));
    conn.tls = identity.map(|identity| {
        Arc::new(TlsPeer {
            presented: true,
            validated: true,
            uri_sans: vec![identity.to_owned()],
            ..TlsPeer::default()
        })
    });

    conn
}

fn judge(rules: &Rules, conn: &ConnInfo, head: Option<&RequestHead>) -> Verdict {
    let metadata = Metadata::default();
    rules.judge(&Facts {
        conn,
        remote: conn.remote,
        head,
        metadata: &metadata,
        route_metadata: None,
    })
}

const BOB: &str = "spiffe://cluster.local/ns/a/sa/bob";

#[test]
fn allow_needs_a_match_and_names_it() {
    let rules = rules(
        proto::rbac::Action::Allow,
        vec![("ns[a]-policy[p]-rule[0]", path("/api"), identity(BOB))],
    );

    let head = RequestHead::of("GET", "h", "/api/x?y");
    let verdict = judge(&rules, &conn(Some(BOB)), Some(&head));
    assert_eq!(
        (verdict.allowed, verdict.policy.as_deref()),
        (true, Some("ns[a]-policy[p]-rule[0]"))
    );

    for (conn, path) in [
        (conn(None), "/api"),
        (conn(Some(BOB)), "/ap"),
        (conn(Some("spiffe://x/ns/a/sa/bob")), "/api"),
    ] {
        let verdict = judge(&rules, &conn, Some(&RequestHead::of("GET", "h", path)));
        assert!(!verdict.allowed);
        assert_eq!(verdict.details(), "rbac_access_denied_matched_policy[none]");
    }
}

#[test]
fn deny_names_the_policy_in_the_reply() {
    let rules = rules(
        proto::rbac::Action::Deny,
        vec![("ns[a] p", path("/admin"), anyone())],
    );

    let rbac = Rbac {
        rules: Some(rules),
        ..Rbac::default()
    };

    let (conn, metadata) = (conn(None), Metadata::default());
    let head = RequestHead::of("GET", "h", "/admin");
    let facts = Facts {
        conn: &conn,
        remote: conn.remote,
        head: Some(&head),
        metadata: &metadata,
        route_metadata: None,
    };

    let reply = rbac.enforce(&facts).into_reply();
    assert_eq!(
        (reply.status, &reply.body[..]),
        (403, b"RBAC: access denied".as_slice())
    );

    assert_eq!(reply.details, "rbac_access_denied_matched_policy[ns[a]_p]");
    assert_eq!(reply.cause, Cause::Policy(Some("ns[a] p".into())));
}

#[test]
fn no_policies_allow_nothing_and_deny_nothing() {
    let allow = rules(proto::rbac::Action::Allow, vec![]);
    let deny = rules(proto::rbac::Action::Deny, vec![]);
    assert!(!judge(&allow, &conn(Some(BOB)), None).allowed);
    assert!(judge(&deny, &conn(None), None).allowed);
    assert!(Rbac::default().rules.is_none());
}

#[test]
fn repeating_a_header_is_no_way_around() {
    let mut head = RequestHead::of("GET", "h", "/");
    head.append("x-role", b"guest");
    head.append("x-role", b"banned");
    let conn = conn(None);
    let deny = rules(
        proto::rbac::Action::Deny,
        vec![("d", header("x-role", "banned"), anyone())],
    );

    assert!(
        !judge(&deny, &conn, Some(&head)).allowed,
        "any line that is denied denies"
    );

    let allow = rules(
        proto::rbac::Action::Allow,
        vec![("a", header("x-role", "guest"), anyone())],
    );

    assert!(
        !judge(&allow, &conn, Some(&head)).allowed,
        "every line must be allowed"
    );

    let allow_not = rules(
        proto::rbac::Action::Allow,
        vec![("a", not(header("x-role", "banned")), anyone())],
    );

    assert!(
        !judge(&allow_not, &conn, Some(&head)).allowed,
        "also from within a negation"
    );

    let deny_not = rules(
        proto::rbac::Action::Deny,
        vec![("d", not(header("x-role", "guest")), anyone())],
    );

    assert!(!judge(&deny_not, &conn, Some(&head)).allowed);
}

#[test]
fn conditions_on_requests_match_no_connection() {
    let deny = rules(proto::rbac::Action::Deny, vec![("d", path("/"), anyone())]);
    assert!(judge(&deny, &conn(None), None).allowed);
}

#[test]
fn mapped_addresses_are_canonical() {
    let range = meltemi_proto::envoy::config::core::v3::CidrRange {
        address_prefix: "10.0.0.0".into(),
        prefix_len: Some(meltemi_proto::google::protobuf::UInt32Value { value: 8 }),
    };

    let principal = proto::Principal {
        identifier: Some(Identifier::DirectRemoteIp(range)),
    };
    let any = proto::Permission {
        rule: Some(Rule::Any(true)),
    };
    let deny = rules(proto::rbac::Action::Deny, vec![("d", any, principal)]);
    let conn = ConnInfo::plain(
        "[::1]:1".parse().expect("address"),
        "[::ffff:10.1.2.3]:5".parse().expect("address"),
    );

    assert!(!judge(&deny, &conn, None).allowed);
}

#[test]
fn unknown_conditions_are_refused() {
    let empty = proto::Policy::default();
    let unknown = proto::Policy {
        permissions: vec![proto::Permission { rule: None }],
        principals: vec![anyone()],
        ..Default::default()
    };

    for policy in [empty, unknown] {
        let message = proto::Rbac {
            policies: [("p".to_owned(), policy)].into(),
            ..Default::default()
        };
        assert!(Rules::compile(&message, &mut Scope::new()).is_err());
    }
}

proptest! {
    #[test]
    fn no_message_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = http::Rbac::decode(bytes.as_slice())
            && let Ok(rbac) = Rbac::compile_http(&message, &Counters::default(), &mut Scope::new())
        {
            let (conn, metadata) = (conn(Some(BOB)), Metadata::default());
            let head = RequestHead::of("GET", "h", "/");
            let facts = Facts { conn: &conn, remote: conn.remote, head: Some(&head), metadata: &metadata, route_metadata: None };
            rbac.enforce(&facts);
        }
    }

    #[test]
    fn policy_text_is_literal(text in "[.*+?()\\[\\]{}|^$a-z/]{1,12}", other in "[.*+a-z/]{1,12}") {
        let exact = path_matcher::Rule::Path(string(MatchPattern::Exact(format!("/{text}"))));
        let permission = proto::Permission { rule: Some(Rule::UrlPath(PathMatcher { rule: Some(exact) })) };
        let deny = rules(proto::rbac::Action::Deny, vec![("d", permission, anyone())]);
        let verdict = judge(&deny, &conn(None), Some(&RequestHead::of("GET", "h", &format!("/{other}"))));
        // A question mark begins the query, which is no part of the path.
        let path = other.split('?').next().unwrap_or_default();
        prop_assert_eq!(verdict.allowed, text != path);
    }
}
