//! Access logs: Istio's default line and keys, and what users write instead.

use meltemi_model::{AccessLog, LogFormat};
use meltemi_proto::{pack, value_of};
use serde_json::Value;
use wkt::value::Kind;

use crate::envoy::extensions::access_loggers::file::v3::{
    FileAccessLog, file_access_log::AccessLogFormat,
};
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
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
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
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
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

    let AccessLog {
        provider: _,
        path,
        format,
        filter,
        sources: _,
    } = input;

    let expression = filter.as_ref().map(|expression| {
        let config = ExpressionFilter {
            expression: expression.clone(),
            ..Default::default()
        };

        FilterSpecifier::ExtensionFilter(accesslog::ExtensionFilter {
            name: "envoy.access_loggers.extension_filters.cel".to_owned(),
            config_type: Some(accesslog::extension_filter::ConfigType::TypedConfig(pack(
                &config,
            ))),
        })
    });

    let no_route = (place == Place::Listener).then(|| {
        FilterSpecifier::ResponseFlagFilter(accesslog::ResponseFlagFilter {
            flags: vec!["NR".to_owned()],
        })
    });

    let wrap = |specifier| accesslog::AccessLogFilter {
        filter_specifier: Some(specifier),
    };
    let filter = match (no_route, expression) {
        (Some(first), Some(second)) => {
            Some(wrap(FilterSpecifier::AndFilter(accesslog::AndFilter {
                filters: vec![wrap(first), wrap(second)],
            })))
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
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(pack(
            &config,
        ))),
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

    let defaults = || {
        DEFAULT_JSON
            .iter()
            .map(|(key, format)| ((*key).to_owned(), value_of(*format)))
            .collect()
    };

    let (format, formatters) = match input {
        LogFormat::DefaultText => (text(DEFAULT_TEXT), Vec::new()),
        LogFormat::DefaultJson => (
            Format::JsonFormat(wkt::Struct { fields: defaults() }),
            Vec::new(),
        ),
        LogFormat::Text(line) => (text(line), formatters(std::iter::once(line.as_str()))),
        LogFormat::Json(fields) => {
            let mut formats = Vec::new();
            fields
                .values()
                .for_each(|value| strings(value, &mut formats));
            (
                Format::JsonFormat(object(fields)),
                formatters(formats.into_iter()),
            )
        }
    };

    core::SubstitutionFormatString {
        format: Some(format),
        formatters,
        ..Default::default()
    }
}

fn object(fields: &serde_json::Map<String, Value>) -> wkt::Struct {
    wkt::Struct {
        fields: fields
            .iter()
            .map(|(key, value)| (key.clone(), wire(value)))
            .collect(),
    }
}

/// A value as the wire has it. A whole number may be too large for it, and is then the nearest.
fn wire(value: &Value) -> wkt::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(wkt::ListValue {
            values: items.iter().map(wire).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(object(fields)),
    };

    wkt::Value { kind: Some(kind) }
}

/// Every string in a value.
fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.values().for_each(|value| strings(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
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
        needed.push(extension(
            "envoy.formatter.metadata",
            &formatter::metadata::v3::Metadata {},
        ));
    }

    if cel {
        needed.push(extension(
            "envoy.formatter.cel",
            &formatter::cel::v3::Cel::default(),
        ));
    }

    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatters_are_added_when_used() {
        let format =
            serde_json::json!({"n": {"p": "%REQ_WITHOUT_QUERY(:PATH)%", "list": [1, null]}});
        let json = LogFormat::Json(format.as_object().cloned().expect("an object"));
        let nested = wkt::Struct {
            fields: [
                ("list".to_owned(), wire(&serde_json::json!([1.0, null]))),
                ("p".to_owned(), value_of("%REQ_WITHOUT_QUERY(:PATH)%")),
            ]
            .into(),
        };

        let fields = [(
            "n".to_owned(),
            wkt::Value {
                kind: Some(Kind::StructValue(nested)),
            },
        )]
        .into();

        let wanted = core::substitution_format_string::Format::JsonFormat(wkt::Struct { fields });
        assert_eq!(format_message(&json).format, Some(wanted));
        let names: Vec<_> = format_message(&json)
            .formatters
            .into_iter()
            .map(|f| f.name)
            .collect();

        assert_eq!(names, ["envoy.formatter.req_without_query"]);
        assert!(
            format_message(&LogFormat::DefaultText)
                .formatters
                .is_empty()
        );
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

        let of = |place| {
            message(&log, place)
                .filter
                .unwrap()
                .filter_specifier
                .unwrap()
        };

        use accesslog::access_log_filter::FilterSpecifier;

        assert!(matches!(of(Place::Listener), FilterSpecifier::AndFilter(_)));
        assert!(matches!(
            of(Place::Chain),
            FilterSpecifier::ExtensionFilter(_)
        ));
    }
}
