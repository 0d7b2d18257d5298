//! PeerAuthentication and RequestAuthentication.

use super::rules::*;
use crate::schema::{Report, shorten};
use crate::security::{JwtHeader, JwtRule, PeerAuthentication, RequestAuthentication};

pub(super) fn check_peer_authentication(spec: &PeerAuthentication, at: &mut Report) {
    let PeerAuthentication {
        selector,
        mtls: _,
        port_level_mtls,
    } = spec;

    check_selector("selector", selector, at);
    let selects = selector
        .as_ref()
        .is_some_and(|selector| !selector.match_labels.is_empty());

    if !port_level_mtls.is_empty() && !selects {
        at.error(
            MISSING,
            "portLevelMtls requires selector",
            "add selector.matchLabels: ports belong to workloads",
        );
    }
}

pub(super) fn check_request_authentication(spec: &RequestAuthentication, at: &mut Report) {
    let RequestAuthentication {
        selector,
        target_ref,
        target_refs,
        jwt_rules,
    } = spec;
    check_targets(selector, target_ref, target_refs, at);
    at.each("jwtRules", jwt_rules, check_rule);
}

fn check_rule(rule: &JwtRule, at: &mut Report) {
    let JwtRule {
        issuer: _,
        audiences: _,
        jwks_uri: _,
        jwks: _,
        from_headers,
        from_params: _,
        from_cookies: _,
        output_payload_to_header,
        output_claim_to_headers,
        forward_original_token: _,
        timeout,
        space_delimited_claims,
        presence: _,
    } = rule;

    check_keys(rule, at);
    at.each("fromHeaders", from_headers, check_token_header);

    if !output_payload_to_header.is_empty() && !is_header_name(output_payload_to_header) {
        at.field("outputPayloadToHeader", |at| {
            at.error(INVALID, "not a header name", "letters, digits, - _ and .")
        });
    }

    at.each(
        "outputClaimToHeaders",
        output_claim_to_headers,
        |output, at| {
            let plain = output
                .header
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));

            if !plain {
                at.field("header", |at| {
                    let message = format!("{} in body should match '^[-_A-Za-z0-9]+$'", at.path());
                    at.error(INVALID, message, "letters, digits, - and _");
                });
            }
        },
    );

    check_duration("timeout", *timeout, at);

    if space_delimited_claims.len() > 64 {
        at.field("spaceDelimitedClaims", |at| {
            at.error(INVALID, "must have at most 64 items", "name fewer claims")
        });
    }
}

/// The issuer, and where its keys come from.
fn check_keys(rule: &JwtRule, at: &mut Report) {
    let JwtRule {
        issuer,
        jwks_uri,
        jwks,
        ..
    } = rule;

    if issuer.is_empty() && jwks_uri.is_empty() {
        at.error(
            MISSING,
            "issuer or jwksUri must be non-empty string",
            "add the issuer of the tokens",
        );
    } else if issuer.is_empty() {
        at.field("issuer", |at| {
            at.warn(
                DOUBTFUL,
                "without issuer, tokens of every issuer with these keys are accepted",
                "add the issuer",
            )
        });
    }

    if !jwks_uri.is_empty() && !jwks.is_empty() {
        at.error(
            CONFLICT,
            "only one of jwks or jwksUri can be set",
            "keep one of them",
        );
    }

    let has_scheme = ["http://", "https://"]
        .iter()
        .any(|scheme| jwks_uri.starts_with(scheme));
    if !jwks_uri.is_empty() && !has_scheme {
        at.field("jwksUri", |at| {
            at.error(
                INVALID,
                "url must have scheme http:// or https://",
                "write an https URL",
            )
        });
    }

    if jwks_uri.len() > 2048 {
        at.field("jwksUri", |at| {
            at.error(
                INVALID,
                "may not be more than 2048 bytes",
                "write a shorter URL",
            )
        });
    }

    if !jwks.is_empty() {
        at.field("jwks", |at| {
            let keys = serde_json::from_str::<serde_json::Value>(jwks);
            let is_set = keys
                .as_ref()
                .is_ok_and(|keys| keys.get("keys").is_some_and(serde_json::Value::is_array));
            if !is_set {
                at.error(
                    INVALID,
                    "not a JSON Web Key Set: an object with a list named keys is wanted",
                    "paste the issuer's JWKS document",
                );
            }
        });
    }
}

/// A header that carries tokens.
fn check_token_header(header: &JwtHeader, at: &mut Report) {
    if header.prefix.chars().any(char::is_control) {
        at.field("prefix", |at| {
            at.error(
                INVALID,
                "a control character, which no header can hold",
                "write the text before the token, such as \"Bearer \"",
            )
        });
    }

    if !header.name.is_empty() && !is_header_name(&header.name) {
        at.field("name", |at| {
            at.error(
                INVALID,
                format!("{:?} is not a header name", shorten(&header.name)),
                "letters, digits, - _ and .",
            )
        });
    }
}
