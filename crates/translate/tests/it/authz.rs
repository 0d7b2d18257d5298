//! Istio's own cases of authorization, read in place: the filters must be equivalent.
//!
//! The folder comes from `MELTEMI_SHARED`, else `../shared` beside the repository; without it the
//! test says that it was skipped.

use meltemi_proto::envoy::config::core::v3::CidrRange;
use meltemi_proto::envoy::config::rbac::v3::{Permission, Principal, Rbac, permission, principal};
use meltemi_proto::envoy::config::route::v3::{
    HeaderMatcher, header_matcher::HeaderMatchSpecifier,
};
use meltemi_proto::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use meltemi_proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use meltemi_proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use meltemi_proto::envoy::r#type::matcher::v3::{
    MetadataMatcher, StringMatcher, ValueMatcher, list_matcher,
    metadata_matcher::path_segment::Segment, path_matcher, string_matcher::MatchPattern,
    value_matcher,
};
use meltemi_proto::unpack;
use meltemi_translate::{Memo, translate};
use serde_json::{Value, json};

#[test]
fn istios_cases_give_equivalent_filters() {
    let Some(folder) = meltemi_testkit::shared("golden/authz") else {
        super::skip(
            "istios_cases_give_equivalent_filters",
            "Istio's cases are not here (MELTEMI_SHARED)",
        );
        return;
    };

    let mut cases = 0;
    let mut wrong = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();

    files.sort();
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();

        let Some(case) = name.strip_suffix("-in.yaml") else {
            continue;
        };

        // Module `ext_authz` has the cases of CUSTOM; `before-111` is what old proxies were sent.
        if case.contains("custom") || case.contains("before-111") {
            continue;
        }
        let expected: Vec<Value> = ["-out.yaml", "-out1.yaml", "-out2.yaml"]
            .iter()
            .filter_map(|ending| {
                std::fs::read_to_string(folder.join(format!("{case}{ending}"))).ok()
            })
            .map(|text| serde_saphyr::from_str(&text).expect("YAML"))
            .map(|filter: Value| normal(filter["typedConfig"].clone()))
            .collect();

        let found = translated(&std::fs::read_to_string(&file).expect("a file"), case);
        if expected != found {
            wrong.push(format!(
                "{case}: {}",
                difference(&json!(expected), &json!(found), String::new())
            ));
        }

        cases += 1;
    }

    assert!(cases > 10, "only {cases} cases were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_bare_service_account_is_of_the_policys_namespace() {
    let policy = |rule: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: foo}}\nspec: {{action: DENY, rules: [{rule}]}}\n"
        )
    };

    let of = |rule: &str| translated(&policy(rule), "http-service-account");
    let from = of("{from: [{source: {serviceAccounts: [sleep]}}]}");
    assert_eq!(
        of("{when: [{key: source.serviceAccount, values: [sleep]}]}"),
        from
    );

    assert_eq!(
        of("{when: [{key: source.serviceAccount, values: [foo/sleep]}]}"),
        from
    );

    let not_from = of("{from: [{source: {notServiceAccounts: [sleep]}}]}");
    assert_eq!(
        of("{when: [{key: source.serviceAccount, notValues: [sleep]}]}"),
        not_from
    );

    assert_ne!(from, not_from);
}

/// Where two values part first.
fn difference(expected: &Value, found: &Value, at: String) -> String {
    match (expected, found) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find(|(_, (a, b))| a != b)
            .map(|(index, (a, b))| difference(a, b, format!("{at}[{index}]")))
            .unwrap_or_default(),
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => a
            .iter()
            .find(|(key, value)| b[*key] != **value)
            .map(|(key, value)| difference(value, &b[key], format!("{at}.{key}")))
            .unwrap_or_default(),
        _ => format!("at {at}\n  expected {expected}\n  found {found}"),
    }
}

fn translated(policies: &str, case: &str) -> Vec<Value> {
    // The trust domains of Istio's own test of each case.
    let mesh = match case {
        "http-simple-policy-td-aliases" => {
            "trustDomain: td1\n    trustDomainAliases: [cluster.local]"
        }
        "http-simple-policy-principal-with-wildcard" => {
            "trustDomain: td1\n    trustDomainAliases: [foobar]"
        }
        _ => "trustDomain: cluster.local",
    };

    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {mesh}\n---\n{policies}"
    );
    let snapshot = super::snapshot_of(&text);
    let proxy = super::proxy(
        "sidecar~10.0.0.1~httpbin.foo~foo.svc.cluster.local",
        "httpbin",
        &[("app", "httpbin"), ("version", "v1")],
    );

    let translated = translate(&snapshot, &proxy, &Memo::new());

    if case.starts_with("tcp") {
        super::summary::inbound_filters(&translated, &["envoy.filters.network.rbac"])
            .iter()
            .map(|(_, any)| unpack::<NetworkRbac>(any).expect("a filter"))
            .map(|filter| parts(filter.rules, filter.shadow_rules))
            .collect()
    } else {
        super::summary::inbound_filters(&translated, &["envoy.filters.http.rbac"])
            .iter()
            .map(|(_, any)| unpack::<HttpRbac>(any).expect("a filter"))
            .map(|filter| parts(filter.rules, filter.shadow_rules))
            .collect()
    }
}

pub(super) fn parts(rules: Option<Rbac>, shadow: Option<Rbac>) -> Value {
    normal(
        json!({ "rules": rules.map(|rules| rbac(&rules)), "shadowRules": shadow.map(|rules| rbac(&rules)) }),
    )
}

/// Only what decides, and lists whose order does not matter in one order.
pub(super) fn normal(filter: Value) -> Value {
    fn sorted(value: Value) -> Value {
        match value {
            Value::Array(items) => {
                let mut items: Vec<_> = items.into_iter().map(sorted).collect();
                items.sort_by_key(ToString::to_string);
                Value::Array(items)
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields
                    .into_iter()
                    .map(|(key, value)| (key, sorted(value)))
                    .collect();
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                Value::Object(fields.into_iter().collect())
            }
            other => other,
        }
    }

    let one = |key: &str| match &filter[key] {
        Value::Null => Value::Null,
        rules => json!({
            "action": rules.get("action").cloned().unwrap_or(json!("ALLOW")),
            "policies": rules.get("policies").cloned().unwrap_or(json!({})),
        }),
    };

    sorted(json!({ "rules": one("rules"), "shadowRules": one("shadowRules") }))
}

fn rbac(rules: &Rbac) -> Value {
    let policies: serde_json::Map<String, Value> = rules
        .policies
        .iter()
        .map(|(name, policy)| {
            let permissions: Vec<_> = policy.permissions.iter().map(permission_json).collect();
            let principals: Vec<_> = policy.principals.iter().map(principal_json).collect();
            (
                name.clone(),
                json!({ "permissions": permissions, "principals": principals }),
            )
        })
        .collect();

    let action = ["ALLOW", "DENY", "LOG"][usize::try_from(rules.action).expect("an action")];
    json!({ "action": action, "policies": policies })
}

#[expect(deprecated, reason = "the older field is on the wire")]
fn permission_json(input: &Permission) -> Value {
    use permission::Rule;

    let all = |set: &permission::Set| set.rules.iter().map(permission_json).collect::<Vec<_>>();
    match input.rule.as_ref().expect("a rule") {
        Rule::AndRules(set) => json!({ "andRules": { "rules": all(set) } }),
        Rule::OrRules(set) => json!({ "orRules": { "rules": all(set) } }),
        Rule::NotRule(rule) => json!({ "notRule": permission_json(rule) }),
        Rule::Any(any) => json!({ "any": any }),
        Rule::Header(matcher) => json!({ "header": header(matcher) }),
        Rule::UrlPath(matcher) => {
            let path_matcher::Rule::Path(path) = matcher.rule.as_ref().expect("a path");
            json!({ "urlPath": { "path": string(path) } })
        }
        Rule::DestinationIp(range) => json!({ "destinationIp": cidr(range) }),
        Rule::DestinationPort(port) => json!({ "destinationPort": port }),
        Rule::RequestedServerName(name) => json!({ "requestedServerName": string(name) }),
        Rule::Metadata(matcher) => json!({ "metadata": metadata(matcher) }),
        Rule::UriTemplate(template) => {
            let config: UriTemplateMatchConfig =
                unpack(template.typed_config.as_ref().expect("a config")).expect("a template");
            json!({ "uriTemplate": { "name": template.name, "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                "pathTemplate": config.path_template,
            } } })
        }
        other => panic!("{other:?}"),
    }
}

#[expect(deprecated, reason = "the older field is on the wire")]
fn principal_json(input: &Principal) -> Value {
    use principal::Identifier;

    let all = |set: &principal::Set| set.ids.iter().map(principal_json).collect::<Vec<_>>();
    match input.identifier.as_ref().expect("an identifier") {
        Identifier::AndIds(set) => json!({ "andIds": { "ids": all(set) } }),
        Identifier::OrIds(set) => json!({ "orIds": { "ids": all(set) } }),
        Identifier::NotId(id) => json!({ "notId": principal_json(id) }),
        Identifier::Any(any) => json!({ "any": any }),
        Identifier::Authenticated(name) => {
            json!({ "authenticated": { "principalName": string(name.principal_name.as_ref().expect("a name")) } })
        }
        Identifier::DirectRemoteIp(range) => json!({ "directRemoteIp": cidr(range) }),
        Identifier::RemoteIp(range) => json!({ "remoteIp": cidr(range) }),
        Identifier::Header(matcher) => json!({ "header": header(matcher) }),
        Identifier::Metadata(matcher) => json!({ "metadata": metadata(matcher) }),
        other => panic!("{other:?}"),
    }
}

fn cidr(range: &CidrRange) -> Value {
    json!({ "addressPrefix": range.address_prefix, "prefixLen": range.prefix_len.as_ref().map(|length| length.value) })
}

fn string(input: &StringMatcher) -> Value {
    let mut value = match input.match_pattern.as_ref().expect("a pattern") {
        MatchPattern::Exact(text) => json!({ "exact": text }),
        MatchPattern::Prefix(text) => json!({ "prefix": text }),
        MatchPattern::Suffix(text) => json!({ "suffix": text }),
        MatchPattern::SafeRegex(regex) => json!({ "safeRegex": { "regex": regex.regex } }),
        other => panic!("{other:?}"),
    };

    if input.ignore_case {
        value["ignoreCase"] = json!(true);
    }
    value
}

fn header(input: &HeaderMatcher) -> Value {
    match input.header_match_specifier.as_ref().expect("a matcher") {
        HeaderMatchSpecifier::StringMatch(text) => {
            json!({ "name": input.name, "stringMatch": string(text) })
        }
        HeaderMatchSpecifier::PresentMatch(present) => {
            json!({ "name": input.name, "presentMatch": present })
        }
        other => panic!("{other:?}"),
    }
}

fn metadata(input: &MetadataMatcher) -> Value {
    let path: Vec<_> = input
        .path
        .iter()
        .map(|segment| {
            let Some(Segment::Key(key)) = &segment.segment else {
                panic!("no key")
            };
            json!({ "key": key })
        })
        .collect();

    json!({ "filter": input.filter, "path": path, "value": value(input.value.as_ref().expect("a value")) })
}

fn value(input: &ValueMatcher) -> Value {
    match input.match_pattern.as_ref().expect("a pattern") {
        value_matcher::MatchPattern::StringMatch(text) => json!({ "stringMatch": string(text) }),
        value_matcher::MatchPattern::OrMatch(or) => {
            json!({ "orMatch": { "valueMatchers": or.value_matchers.iter().map(value).collect::<Vec<_>>() } })
        }
        value_matcher::MatchPattern::ListMatch(list) => {
            let Some(list_matcher::MatchPattern::OneOf(one)) = &list.match_pattern else {
                panic!("no element")
            };
            json!({ "listMatch": { "oneOf": value(one) } })
        }
        other => panic!("{other:?}"),
    }
}
