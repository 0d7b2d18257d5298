//! Security objects that Istio refuses since they could never do what they say.

use meltemi_types::Severity;

use crate::findings::findings;

fn errors(text: &str) -> Vec<String> {
    findings(text)
        .into_iter()
        .filter(|one| one.severity == Severity::Error)
        .map(|one| {
            assert!(one.position.line > 0 && !one.remedy.is_empty(), "{one}");
            format!("{} {}", one.field, one.message)
        })
        .collect()
}

fn policy(kind: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: a, annotations: {{{annotations}}}}}\nspec: {spec}\n"
    )
}

#[track_caller]
fn refused(text: &str, wanted: &str) {
    let errors = errors(text);
    assert!(
        errors.len() == 1 && errors[0].contains(wanted),
        "{text}\nwants {wanted:?}, has {errors:?}"
    );
}

#[test]
fn a_dry_run_is_a_boolean_as_go_reads_it() {
    let trial = |value: &str, spec: &str| {
        policy(
            "AuthorizationPolicy",
            &format!("istio.io/dry-run: '{value}'"),
            spec,
        )
    };

    for value in ["True", "t", "1", "false", "0"] {
        assert_eq!(
            errors(&trial(value, "{action: DENY, rules: [{}]}")),
            [""; 0]
        );
    }
    refused(&trial("yes", "{rules: [{}]}"), "\"yes\" is not a boolean");

    let other = "istio.io/dry-run";
    refused(&trial("true", "{action: AUDIT, rules: [{}]}"), other);
    refused(
        &policy(
            "RequestAuthentication",
            "istio.io/dry-run: 'true'",
            "{jwtRules: [{issuer: a}]}",
        ),
        other,
    );
}

#[test]
fn a_policy_that_can_never_hold_is_refused() {
    let authorization = |spec: &str| policy("AuthorizationPolicy", "", spec);
    refused(
        &authorization("{action: DENY}"),
        "DENY action without `rules` is meaningless",
    );
    refused(
        &authorization("{action: CUSTOM, provider: {name: x}}"),
        "CUSTOM action without `rules` is meaningless",
    );
    refused(
        &authorization("{targetRefs: [{group: apps, kind: Deployment, name: a}], rules: [{}]}"),
        "but was apps/Deployment",
    );
    refused(
        &authorization(
            "{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {namespaces: [b]}}]}]}",
        ),
        "namespaces is currently not supported with CUSTOM action",
    );
    refused(
        &authorization(
            "{action: CUSTOM, provider: {name: x}, rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}",
        ),
        "request.auth.claims[a] is currently not supported with CUSTOM action",
    );
    refused(
        &policy("RequestAuthentication", "", "{jwtRules: [{}]}"),
        "issuer or jwksUri must be non-empty string",
    );

    // ALLOW without rules denies everything, and is written for that.
    assert_eq!(errors(&authorization("{}")), [""; 0]);
    assert_eq!(
        errors(&authorization(
            "{targetRefs: [{kind: Service, name: a}], rules: [{}]}"
        )),
        [""; 0]
    );
}

#[test]
fn a_sidecar_terminates_tls_from_files_alone() {
    let with = |protocol: &str, tls: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: a}}\nspec: {{ingress: [{{port: {{number: 9443, name: p, protocol: {protocol}}}, defaultEndpoint: '127.0.0.1:80', tls: {{{tls}}}}}], egress: [{{hosts: ['*/*']}}]}}\n"
        )
    };
    let files = "mode: SIMPLE, serverCertificate: /c, privateKey: /k";

    assert_eq!(errors(&with("HTTPS", files)), [""; 0]);
    refused(&with("HTTP", files), "non HTTPS/TLS ports");
    refused(
        &with("HTTPS", "mode: ISTIO_MUTUAL"),
        "cannot set mode to ISTIO_MUTUAL",
    );
    refused(
        &with("TLS", "mode: AUTO_PASSTHROUGH"),
        "cannot set mode to AUTO_PASSTHROUGH",
    );
    refused(
        &with("HTTPS", "mode: SIMPLE, credentialName: c"),
        "credentialName is not supported in ingress tls",
    );
}
