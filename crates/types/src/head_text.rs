//! Texts that configuration writes into the heads of messages: what Envoy and our proxy take.
//!
//! Each function returns the fault of a text, or `None` if it has none. Both planes must agree on
//! them: a text that a proxy refuses takes the whole route table, or listener, with it.

/// The longest header name or value in bytes that Envoy takes (`HeaderValue`).
const MAX_HEADER: usize = 16_384;

/// Whether a text would end, or damage, the line that it is written on. Source: RFC 9110 §5.5.
pub fn breaks_line(text: &str) -> bool {
    text.bytes()
        .any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f)
}

/// The fault of a text that becomes a header's value as it stands.
pub fn plain_value_fault(text: &str) -> Option<String> {
    if breaks_line(text) {
        return Some("a header's value must be one line without control characters".to_owned());
    }
    (text.len() > MAX_HEADER).then(|| format!("longer than {MAX_HEADER} bytes"))
}

/// The fault of a text that becomes the authority or the path of a request: as of a header's
/// value, and a blank would end it in HTTP/1.1.
pub fn target_fault(text: &str) -> Option<String> {
    plain_value_fault(text).or_else(|| {
        text.contains([' ', '\t'])
            .then(|| "a request's target must not hold blanks".to_owned())
    })
}

/// The fault of a header's value with Envoy's `%OPERATOR%`; `%%` is a percent sign.
pub fn header_value_fault(text: &str) -> Option<String> {
    if let Some(fault) = plain_value_fault(text) {
        return Some(fault);
    }

    operators_fault(text, known)
}

/// The fault of an access log's format, which may have lines and knows more operators.
pub fn log_format_fault(text: &str) -> Option<String> {
    operators_fault(text, |name| {
        // What these operators take is checked by the proxy that formats.
        let any = LOGGED
            .contains(&name)
            .then_some((Parameter::Optional, true));
        known(name).or(any)
    })
}

/// What an operator of a name takes, and whether a length may follow; `None` for an unknown one.
type Grammar = fn(&str) -> Option<(Parameter, bool)>;

fn operators_fault(text: &str, known: Grammar) -> Option<String> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix('%') {
            rest = behind;
            continue;
        }
        match operator(rest, known) {
            Ok(behind) => rest = behind,
            Err(fault) => return Some(format!("{fault}; a percent sign is written %%")),
        }
    }

    None
}

/// Whether the value of a header may be formatted so, and what the parentheses hold.
#[derive(Clone, Copy, PartialEq)]
enum Parameter {
    None,
    /// A header's name, and perhaps another after `?`.
    Header,
    /// Anything that is not empty.
    Required,
    Optional,
    /// One of these words, or nothing.
    Words(&'static [&'static str]),
}

/// Reads `NAME(parameter):length%`, and returns the text behind it.
fn operator(text: &str, known: Grammar) -> Result<&str, String> {
    let end = text
        .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .unwrap_or(text.len());
    let (name, mut rest) = text.split_at(end);
    if name.is_empty() {
        return Err("a percent sign begins an operator".to_owned());
    }
    let unclosed = || format!("the operator %{name} is not closed");

    let mut parameter = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let (held, behind) = inner.split_once(')').ok_or_else(unclosed)?;
        parameter = Some(held);
        rest = behind;
    }

    let mut has_length = false;
    if let Some(inner) = rest.strip_prefix(':') {
        let (digits, _) = inner.split_once('%').ok_or_else(unclosed)?;
        if digits.is_empty() || digits.len() > 6 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("%{name}:{digits}% has no length"));
        }
        has_length = true;
        rest = &inner[digits.len()..];
    }
    let behind = rest.strip_prefix('%').ok_or_else(unclosed)?;

    let (wanted, may_have_length) =
        known(name).ok_or_else(|| format!("unknown operator %{name}%"))?;
    if has_length && !may_have_length {
        return Err(format!("%{name}% takes no length"));
    }

    let fits = match (wanted, parameter) {
        (Parameter::None, None) | (Parameter::Optional, _) => true,
        (Parameter::Words(_), None | Some("")) => true,
        (Parameter::Words(words), Some(word)) => words.contains(&word),
        (Parameter::Required, Some(held)) => !held.is_empty(),
        (Parameter::Header, Some(held)) => {
            held.matches('?').count() <= 1 && held.split('?').all(is_header_name)
        }
        _ => false,
    };
    match fits {
        true => Ok(behind),
        false => Err(format!("%{name}% has not the parameter that it takes")),
    }
}

fn is_header_name(name: &str) -> bool {
    let bare = name.strip_prefix(':').unwrap_or(name);
    !bare.is_empty()
        && bare
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b))
}

/// The parameter of an operator that Envoy and our proxy know, and whether a length may follow.
fn known(name: &str) -> Option<(Parameter, bool)> {
    Some(match name {
        "REQ" | "RESP" | "TRAILER" | "REQ_WITHOUT_QUERY" => (Parameter::Header, true),
        "DYNAMIC_METADATA" | "CLUSTER_METADATA" | "UPSTREAM_METADATA" => {
            (Parameter::Required, true)
        }
        "ENVIRONMENT" => (Parameter::Required, true),
        "START_TIME" => (Parameter::Optional, false),
        "GRPC_STATUS" => (
            Parameter::Words(&["CAMEL_STRING", "SNAKE_STRING", "NUMBER"]),
            false,
        ),
        plain if PLAIN.contains(&plain) => (Parameter::None, false),
        _ => return None,
    })
}

/// Further operators of access logs. `CAUSE` is our proxy's own.
const LOGGED: &[&str] = &[
    "CAUSE",
    "CEL",
    "COMMON_DURATION",
    "CUSTOM_FLAGS",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_DIRECT_LOCAL_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_PORT",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "EMIT_TIME",
    "EMIT_TIME_LOCAL",
    "FILTER_STATE",
    "GRPC_STATUS_NUMBER",
    "LOCAL_REPLY_BODY",
    "METADATA",
    "PATH",
    "QUERY_PARAM",
    "QUERY_PARAMS",
    "REQUEST_TX_DURATION",
    "RESPONSE_TX_DURATION",
    "ROUNDTRIP_DURATION",
    "SPAN_ID",
    "START_TIME_LOCAL",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "TRACE_ID",
    "UNIQUE_ID",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    "UPSTREAM_LOCAL_DNS_SAN",
    "UPSTREAM_LOCAL_SUBJECT",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_PEER_CERT_V_END",
    "UPSTREAM_PEER_CERT_V_START",
    "UPSTREAM_PEER_DNS_SAN",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
];

/// Operators without a parameter.
const PLAIN: &[&str] = &[
    "ACCESS_LOG_TYPE",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "CONNECTION_ID",
    "CONNECTION_TERMINATION_DETAILS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_VERSION",
    "DURATION",
    "FILTER_CHAIN_NAME",
    "HOSTNAME",
    "PROTOCOL",
    "REQUESTED_SERVER_NAME",
    "REQUEST_DURATION",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_DURATION",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "ROUTE_NAME",
    "STREAM_ID",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_HOST",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_PROTOCOL",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "VIRTUAL_CLUSTER_NAME",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_checked_as_envoy_reads_them() {
        for good in [
            "",
            "plain",
            "5%% off",
            "%PROTOCOL%",
            "a%REQ(x-a?:authority):10%b",
            "%START_TIME(%Y-%m-%d)%",
            "%START_TIME%",
            "%GRPC_STATUS(NUMBER)%",
            "%DYNAMIC_METADATA(a:b):3%%%",
            "tab\there",
        ] {
            assert_eq!(header_value_fault(good), None, "{good}");
        }

        for bad in [
            "100%",
            "5% off",
            "%NOPE%",
            "%PROTOCOL(x)%",
            "%PROTOCOL:3%",
            "%REQ%",
            "%REQ()%",
            "%REQ(a?b?c)%",
            "%REQ(a b)%",
            "%REQ(a",
            "%REQ(a):x%",
            "%ENVIRONMENT()%",
            "%GRPC_STATUS(X)%",
            "%protocol%",
            "a\r\nx: y",
            "a\0",
            "\x1b[31m",
        ] {
            assert!(header_value_fault(bad).is_some(), "{bad:?}");
        }
        assert!(header_value_fault(&"a".repeat(MAX_HEADER + 1)).is_some());
    }

    #[test]
    fn logs_have_lines_and_more_operators() {
        for good in [
            "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%\"\n",
            "%CAUSE% %METADATA(CLUSTER:istio:a)% %UPSTREAM_WIRE_BYTES_SENT%",
        ] {
            assert_eq!(log_format_fault(good), None, "{good}");
        }
        for bad in ["%NOPE%", "took 5%", "%REQ(a"] {
            assert!(log_format_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_target_is_one_word() {
        assert_eq!(target_fault("/a?b=c"), None);
        for bad in ["/b HTTP/1.1", "a\n", "a\tb"] {
            assert!(target_fault(bad).is_some(), "{bad:?}");
        }
    }
}
