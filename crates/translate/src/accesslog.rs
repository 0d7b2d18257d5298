//! Access logs: Istio's default line and keys, and what users write instead.

use meltemi_model::{AccessLog, LogFormat};
use meltemi_proto::{pack, value_of};

use crate::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use crate::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use crate::envoy::extensions::formatter;
use crate::envoy::value::extension;
use crate::envoy::{accesslog, core, wkt};

/// Istio's default line.
const DEFAULT_TEXT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
);

/// Istio's default JSON keys.
const DEFAULT_JSON: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// Where in a proxy a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Requests of a connection manager, connections of a TCP proxy.
    Chain,
    /// Connections that found no filter chain (flag NR).
    Listener,
}

/// The logs of one place.
pub(crate) fn messages(logs: &[AccessLog], place: Place) -> Vec<accesslog::AccessLog> {
    logs.iter().map(|log| message(log, place)).collect()
}

fn message(input: &AccessLog, place: Place) -> accesslog::AccessLog {
    use accesslog::access_log_filter::FilterSpecifier;
    let AccessLog { provider: _, path, format, filter, sources: _ } = input;
    let expression = filter.as_ref().map(|expression| {
        let config = ExpressionFilter { expression: expression.clone(), ..Default::default() };
        FilterSpecifier::ExtensionFilter(accesslog::ExtensionFilter {
            name: "envoy.access_loggers.extension_filters.cel".to_owned(),
            config_type: Some(accesslog::extension_filter::ConfigType::TypedConfig(pack(&config))),
        })
    });
    let no_route = (place == Place::Listener)
        .then(|| FilterSpecifier::ResponseFlagFilter(accesslog::ResponseFlagFilter { flags: vec!["NR".to_owned()] }));
    let wrap = |specifier| accesslog::AccessLogFilter { filter_specifier: Some(specifier) };
    let filter = match (no_route, expression) {
        (Some(first), Some(second)) => {
            Some(wrap(FilterSpecifier::AndFilter(accesslog::AndFilter { filters: vec![wrap(first), wrap(second)] })))
        }
        (one, other) => one.or(other).map(wrap),
    };
    let config = FileAccessLog {
        path: path.clone(),
        access_log_format: Some(AccessLogFormat::LogFormat(format_message(format))),
    };
    accesslog::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter,
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(pack(&config))),
    }
}

fn format_message(input: &LogFormat) -> core::SubstitutionFormatString {
    use core::substitution_format_string::Format;
    let text = |line: &str| {
        Format::TextFormatSource(core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString(line.to_owned())),
            ..Default::default()
        })
    };
    let json = |pairs: &mut dyn Iterator<Item = (&str, &str)>| {
        Format::JsonFormat(wkt::Struct {
            fields: pairs.map(|(key, format)| (key.to_owned(), value_of(format))).collect(),
        })
    };
    let (format, formatters) = match input {
        LogFormat::DefaultText => (text(DEFAULT_TEXT), Vec::new()),
        LogFormat::DefaultJson => (json(&mut DEFAULT_JSON.iter().copied()), Vec::new()),
        LogFormat::Text(line) => (text(line), formatters(std::iter::once(line.as_str()))),
        LogFormat::Json(fields) => (
            json(&mut fields.iter().map(|(key, format)| (key.as_str(), format.as_str()))),
            formatters(fields.values().map(String::as_str)),
        ),
    };
    core::SubstitutionFormatString { format: Some(format), formatters, ..Default::default() }
}

/// The extensions that a format needs beyond the built-in commands.
fn formatters<'a>(formats: impl Iterator<Item = &'a str>) -> Vec<core::TypedExtensionConfig> {
    let (mut without_query, mut metadata, mut cel) = (false, false, false);
    for format in formats {
        without_query |= format.contains("%REQ_WITHOUT_QUERY");
        metadata |= format.contains("%METADATA(");
        cel |= format.contains("%CEL(");
    }
    let mut needed = Vec::new();
    if without_query {
        let config = formatter::req_without_query::v3::ReqWithoutQuery {};
        needed.push(extension("envoy.formatter.req_without_query", &config));
    }
    if metadata {
        needed.push(extension("envoy.formatter.metadata", &formatter::metadata::v3::Metadata {}));
    }
    if cel {
        needed.push(extension("envoy.formatter.cel", &formatter::cel::v3::Cel::default()));
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn formatters_are_added_when_used() {
        let json = LogFormat::Json(BTreeMap::from([("p".to_owned(), "%REQ_WITHOUT_QUERY(:PATH)%".to_owned())]));
        let names: Vec<_> = format_message(&json).formatters.into_iter().map(|f| f.name).collect();
        assert_eq!(names, ["envoy.formatter.req_without_query"]);
        assert!(format_message(&LogFormat::DefaultText).formatters.is_empty());
    }

    #[test]
    fn listeners_log_what_found_no_chain_only() {
        let log = AccessLog {
            provider: "envoy".into(),
            path: "/dev/stdout".into(),
            format: LogFormat::DefaultText,
            filter: Some("response.code >= 400".into()),
            sources: Vec::new(),
        };
        let of = |place| message(&log, place).filter.unwrap().filter_specifier.unwrap();
        use accesslog::access_log_filter::FilterSpecifier;
        assert!(matches!(of(Place::Listener), FilterSpecifier::AndFilter(_)));
        assert!(matches!(of(Place::Chain), FilterSpecifier::ExtensionFilter(_)));
    }
}
