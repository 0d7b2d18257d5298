//! Texts that proxies write into heads, and expressions that proxies compile.

use meltemi_types::Severity;

use crate::findings::findings;

const TO: &str = "route: [{destination: {host: a}}]";

fn rule(fields: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec:\n  hosts: [a]\n  http: [{{{fields}}}]\n"
    )
}

fn errors(text: &str) -> Vec<String> {
    findings(text)
        .into_iter()
        .filter(|one| one.severity == Severity::Error)
        .map(|one| {
            assert!(one.position.line > 0 && !one.remedy.is_empty(), "{one}");
            one.to_string()
        })
        .collect()
}

#[test]
fn no_configured_text_ends_a_head() {
    for fields in [
        r#"rewrite: {authority: "a.test\r\nx-injected: 1"}"#,
        r#"rewrite: {uri: "/b HTTP/1.1\r\nx-injected: 1"}"#,
        r#"rewrite: {uri: "/b HTTP/1.1"}"#,
        r#"rewrite: {uriRegexRewrite: {match: a, rewrite: "b\n"}}"#,
        r#"headers: {request: {set: {x: "a\r\nb: c"}}}"#,
        r#"headers: {request: {add: {x: "a\0"}}}"#,
        r#"headers: {response: {set: {x: "\e[31m"}}}"#,
    ] {
        assert_eq!(
            errors(&rule(&format!("{fields}, {TO}"))).len(),
            1,
            "{fields}"
        );
    }

    for fields in [
        r#"redirect: {uri: "/a\r\nx: y"}"#,
        r#"redirect: {prefixRewrite: "/a\n"}, match: [{uri: {prefix: /}}]"#,
        r#"redirect: {authority: "a\rb"}"#,
    ] {
        assert_eq!(errors(&rule(fields)).len(), 1, "{fields}");
    }

    let destination =
        r#"route: [{destination: {host: a}, headers: {response: {set: {x: "a\n"}}}}]"#;
    assert_eq!(errors(&rule(destination)).len(), 1);
}

#[test]
fn a_percent_sign_begins_an_operator() {
    let with = |value: &str| {
        errors(&rule(&format!(
            "headers: {{response: {{set: {{x: '{value}'}}}}}}, {TO}"
        )))
    };
    for value in ["5% off", "100%", "%NOPE%"] {
        let found = with(value);
        assert!(
            found.len() == 1 && found[0].contains("invalid header value"),
            "{value}: {found:?}"
        );
    }
    for value in ["100%%", "%PROTOCOL%", "%REQ(x-a?y):9%"] {
        assert_eq!(with(value), [""; 0], "{value}");
    }
}

#[test]
fn expressions_are_re2s() {
    let with = |pattern: &str| {
        errors(&rule(&format!(
            "match: [{{uri: {{regex: '{pattern}'}}}}], {TO}"
        )))
    };
    for pattern in ["/v1/{id}/.*", "/{", "/[[a]", r"/\Qa.b\E", r"/\07", "/[]a]"] {
        assert_eq!(with(pattern), [""; 0], "{pattern}");
    }
    for pattern in [
        "/a{1001}", "/a**", "/[a--b]", r"/\u0041", "/(?R)a", "/(?=a)",
    ] {
        assert_eq!(with(pattern).len(), 1, "{pattern}");
    }
    assert!(with(&"a".repeat(1025))[0].contains("max length allowed is 1024"));
}

#[test]
fn a_rewrite_names_groups_of_its_expression() {
    let with = |rewrite: &str| {
        errors(&rule(&format!(
            "rewrite: {{uriRegexRewrite: {{match: '/(a)', rewrite: '{rewrite}'}}}}, {TO}"
        )))
    };
    for rewrite in [r"/\1", r"/\0", r"/\\x"] {
        assert_eq!(with(rewrite), [""; 0], "{rewrite}");
    }
    for rewrite in [r"/\9", r"/\2", r"/\", r"/\x"] {
        assert_eq!(with(rewrite).len(), 1, "{rewrite}");
    }
}
