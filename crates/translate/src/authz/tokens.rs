//! jwt_authn filters: a request with a token is denied until tokens are checked.
//!
//! The filter is Istio's but for its keys. Its one key has signed no token, so that Envoy denies what
//! Meltemi's own proxy denies. Keys that a RequestAuthentication holds are left out: Envoy would
//! refuse the listener for keys that it cannot read.

use meltemi_model::TokenRule;

use crate::envoy::core::{DataSource, data_source::Specifier};
use crate::envoy::extensions::filters::http::jwt_authn::v3 as jwt;
use crate::envoy::route::{RouteMatch, route_match::PathSpecifier};
use jwt::jwt_provider::JwksSourceSpecifier;
use jwt::jwt_requirement::RequiresType;
use jwt::requirement_rule::RequirementType;

pub(super) const FILTER: &str = "envoy.filters.http.jwt_authn";

/// A key on P-256 whose private half nobody has: its point comes from the SHA-256 of
/// `meltemi: nobody's key N`, with the first N from 0 that gives one.
const NOBODYS_KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"nobody","x":"XPr-NOkulwy3xyYh_XitJvMsT8V5r7OwZ49hTSOF58k","y":"TUG4b7xjZT-A8RRTcHJW1nijFauHUd81YvptkkNPPF0"}]}"#;

/// The filter; `None` without rules. Source: Istio `convertToEnvoyJwtConfig`.
pub(super) fn filter(rules: &[TokenRule]) -> Option<jwt::JwtAuthentication> {
    let names = (0..rules.len()).map(|index| format!("origins-{index}"));
    let providers = names
        .clone()
        .zip(rules)
        .map(|(name, rule)| (name, provider(rule)))
        .collect();

    // For each issuer: its token, or none if it need not be there.
    let mut each: Vec<_> = names
        .clone()
        .zip(rules)
        .map(|(name, rule)| match rule.is_required {
            true => of_provider(name),
            false => any(vec![of_provider(name), allow_missing()]),
        })
        .collect();

    let requirement = match each.len() {
        0 => return None,
        1 => each.remove(0),
        // A good token of one issuer is enough, since issuers may share a place in the request.
        _ => {
            let all = RequiresType::RequiresAll(jwt::JwtRequirementAndList { requirements: each });
            any(names.map(of_provider).chain([requires(all)]).collect())
        }
    };

    Some(jwt::JwtAuthentication {
        providers,
        rules: vec![jwt::RequirementRule {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..Default::default()
            }),
            requirement_type: Some(RequirementType::Requires(requirement)),
        }],
        bypass_cors_preflight: true,
        ..Default::default()
    })
}

fn provider(rule: &TokenRule) -> jwt::JwtProvider {
    let TokenRule {
        issuer,
        headers,
        parameters,
        cookies,
        is_required: _,
        payload_header,
        claim_headers,
    } = rule;

    jwt::JwtProvider {
        issuer: issuer.clone(),
        from_headers: headers
            .iter()
            .map(|(name, prefix)| jwt::JwtHeader {
                name: name.clone(),
                value_prefix: prefix.clone(),
            })
            .collect(),
        from_params: parameters.clone(),
        from_cookies: cookies.clone(),
        forward_payload_header: payload_header.clone(),
        claim_to_headers: claim_headers
            .iter()
            .map(|(header, claim)| jwt::JwtClaimToHeader {
                header_name: header.clone(),
                claim_name: claim.clone(),
                ..Default::default()
            })
            .collect(),
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(Specifier::InlineString(NOBODYS_KEYS.to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn requires(requires_type: RequiresType) -> jwt::JwtRequirement {
    jwt::JwtRequirement {
        requires_type: Some(requires_type),
    }
}

fn of_provider(name: String) -> jwt::JwtRequirement {
    requires(RequiresType::ProviderName(name))
}

fn allow_missing() -> jwt::JwtRequirement {
    requires(RequiresType::AllowMissing(Default::default()))
}

fn any(requirements: Vec<jwt::JwtRequirement>) -> jwt::JwtRequirement {
    requires(RequiresType::RequiresAny(jwt::JwtRequirementOrList {
        requirements,
    }))
}
