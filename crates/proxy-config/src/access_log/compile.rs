//! Compiling access logs. A sink that is unknown is left out with a warning: a missing log lets
//! nobody in.

use std::sync::Arc;

use meltemi_filters::format::{Place, Template};
use meltemi_filters::matcher::{Fraction, HeaderMatch, MetadataMatch};
use meltemi_filters::metadata::Value;
use meltemi_filters::{Rejection, ResponseFlag, Scope};
use meltemi_proto::envoy::config::accesslog::v3 as proto;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::extensions::access_loggers::file::v3 as file;
use meltemi_proto::envoy::extensions::access_loggers::stream::v3 as stream;
use meltemi_proto::google::protobuf::Struct;
use proto::access_log_filter::FilterSpecifier;

use super::*;
use crate::any::type_name;
use crate::convert::not_honoured;

/// The depth to which filters and JSON may nest.
const MAX_DEPTH: usize = 16;

/// Compiles a list of access logs, without those whose sink is unknown.
pub(crate) fn compile_all(
    messages: &[proto::AccessLog],
    scope: &mut Scope,
) -> Result<Vec<Arc<AccessLog>>, Rejection> {
    let logs = scope.each("access_log", messages, |scope, message| {
        AccessLog::compile(message, scope)
    })?;
    Ok(logs.into_iter().flatten().map(Arc::new).collect())
}

impl AccessLog {
    /// `None`, with a warning, for a sink that is unknown.
    fn compile(message: &proto::AccessLog, scope: &mut Scope) -> Result<Option<Self>, Rejection> {
        let proto::AccessLog {
            filter,
            config_type,
            // The type of `typed_config` says which sink it is.
            name: _,
        } = message;

        let Some(proto::access_log::ConfigType::TypedConfig(any)) = config_type else {
            return scope.refuse("an access log without typed_config");
        };
        let (sink, format) = match type_name(any) {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                let file::FileAccessLog {
                    path,
                    access_log_format,
                } = scope.unpack(any)?;
                let sink = match path.as_str() {
                    "" => return scope.refuse("a file access log without path"),
                    "/dev/stdout" => LogSink::Stdout,
                    "/dev/stderr" => LogSink::Stderr,
                    path => LogSink::File(path.into()),
                };
                (sink, file_format(access_log_format.as_ref(), scope)?)
            }
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                let config: stream::StdoutAccessLog = scope.unpack(any)?;
                let format = config.access_log_format.as_ref().map(|format| {
                    let stream::stdout_access_log::AccessLogFormat::LogFormat(format) = format;
                    format
                });
                (LogSink::Stdout, substitution(format, scope)?)
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                let config: stream::StderrAccessLog = scope.unpack(any)?;
                let format = config.access_log_format.as_ref().map(|format| {
                    let stream::stderr_access_log::AccessLogFormat::LogFormat(format) = format;
                    format
                });
                (LogSink::Stderr, substitution(format, scope)?)
            }
            other => {
                scope.warn("", format!("access log {other:?} is unknown and left out"));
                return Ok(None);
            }
        };

        let filter = match filter {
            None => None,
            Some(filter) => scope.within("filter", |scope| LogFilter::compile(filter, scope, 0))?,
        };

        Ok(Some(Self {
            sink,
            format,
            filter,
        }))
    }
}

#[expect(deprecated, reason = "the older forms of formats are still sent")]
fn file_format(
    format: Option<&file::file_access_log::AccessLogFormat>,
    scope: &mut Scope,
) -> Result<LogFormat, Rejection> {
    use file::file_access_log::AccessLogFormat;

    match format {
        None => Ok(LogFormat::Text(template(DEFAULT_FORMAT, scope))),
        Some(AccessLogFormat::Format(text)) if text.is_empty() => {
            Ok(LogFormat::Text(template(DEFAULT_FORMAT, scope)))
        }
        Some(AccessLogFormat::Format(text)) => Ok(LogFormat::Text(template(text, scope))),
        Some(AccessLogFormat::JsonFormat(fields) | AccessLogFormat::TypedJsonFormat(fields)) => {
            Ok(LogFormat::Json(json(fields, scope)))
        }
        Some(AccessLogFormat::LogFormat(format)) => substitution(Some(format), scope),
    }
}

#[expect(deprecated, reason = "text_format and sort_properties are still sent")]
fn substitution(
    format: Option<&core::SubstitutionFormatString>,
    scope: &mut Scope,
) -> Result<LogFormat, Rejection> {
    use core::data_source::Specifier;
    use core::substitution_format_string::Format;

    let Some(message) = format else {
        return Ok(LogFormat::Text(template(DEFAULT_FORMAT, scope)));
    };
    let core::SubstitutionFormatString {
        omit_empty_values,
        formatters,
        format,
        // The fields of a JSON object are sorted by name in any case.
        json_format_options: _,
        // Concerns local replies.
        content_type: _,
    } = message;
    scope.within("log_format", |scope| {
        not_honoured!(scope, omit_empty_values, formatters);
    });

    match format {
        None => Ok(LogFormat::Text(template(DEFAULT_FORMAT, scope))),
        Some(Format::TextFormat(text)) => Ok(LogFormat::Text(template(text, scope))),
        Some(Format::JsonFormat(fields)) => Ok(LogFormat::Json(json(fields, scope))),
        Some(Format::TextFormatSource(source)) => match &source.specifier {
            Some(Specifier::InlineString(text)) => Ok(LogFormat::Text(template(text, scope))),
            Some(Specifier::InlineBytes(bytes)) => Ok(LogFormat::Text(template(
                &String::from_utf8_lossy(bytes),
                scope,
            ))),
            _ => scope.refuse("a log format must stand in the configuration"),
        },
    }
}

/// Compiles a format. An unknown operator is printed as it is written, and one whose value this
/// proxy does not know as `-`; both with a warning.
fn template(text: &str, scope: &mut Scope) -> Template {
    let (template, reasons) = Template::parse_what_is_known(text);

    // After a first unknown operator the parser may be out of step, so that only further unknown
    // operators are worth a warning.
    let told = |(at, reason): &(usize, String)| *at == 0 || reason.starts_with("unknown operator");
    for (_, reason) in reasons.into_iter().enumerate().filter(told) {
        scope.warn("log_format", format!("{reason}; it is printed as it is"));
    }
    for gap in template.gaps(Place::Log) {
        scope.warn("log_format", gap);
    }

    template
}

fn json(fields: &Struct, scope: &mut Scope) -> JsonFormat {
    json_value(&Value::from_struct(fields), scope, 0)
}

fn json_value(value: &Value, scope: &mut Scope, depth: usize) -> JsonFormat {
    match value {
        _ if depth > MAX_DEPTH => JsonFormat::Constant(serde_json::Value::Null),
        Value::String(text) => JsonFormat::Text(template(text, scope)),
        Value::Struct(fields) => JsonFormat::Object(
            fields
                .iter()
                .map(|(name, value)| ((&**name).into(), json_value(value, scope, depth + 1)))
                .collect(),
        ),
        Value::List(list) => JsonFormat::Array(
            list.iter()
                .map(|value| json_value(value, scope, depth + 1))
                .collect(),
        ),
        constant => JsonFormat::Constant(meltemi_filters::format::json_of(constant)),
    }
}

impl LogFilter {
    /// `None`, with a warning, for a filter that is unknown: then everything is logged.
    fn compile(
        message: &proto::AccessLogFilter,
        scope: &mut Scope,
        depth: usize,
    ) -> Result<Option<Self>, Rejection> {
        if depth > MAX_DEPTH {
            return scope.refuse("access log filters are nested too deeply");
        }
        let compare = |comparison: &Option<proto::ComparisonFilter>, scope: &mut Scope| {
            let comparison = scope.required("comparison", comparison.as_ref())?;
            let op = match proto::comparison_filter::Op::try_from(comparison.op) {
                Ok(proto::comparison_filter::Op::Eq) => ComparisonOp::Eq,
                Ok(proto::comparison_filter::Op::Ge) => ComparisonOp::Ge,
                Ok(proto::comparison_filter::Op::Le) => ComparisonOp::Le,
                Ok(proto::comparison_filter::Op::Ne) => ComparisonOp::Ne,
                Err(_) => return scope.refuse(format!("unknown op {}", comparison.op)),
            };

            Ok(Comparison {
                op,
                value: comparison
                    .value
                    .as_ref()
                    .map_or(0, |value| value.default_value),
            })
        };

        let list = |filters: &[proto::AccessLogFilter], scope: &mut Scope| {
            scope.each("filters", filters, |scope, filter| {
                Self::compile(filter, scope, depth + 1)
            })
        };

        Ok(
            match scope.required("filter_specifier", message.filter_specifier.as_ref())? {
                FilterSpecifier::StatusCodeFilter(filter) => {
                    Some(Self::Status(compare(&filter.comparison, scope)?))
                }
                FilterSpecifier::DurationFilter(filter) => {
                    Some(Self::Duration(compare(&filter.comparison, scope)?))
                }
                FilterSpecifier::NotHealthCheckFilter(_) => Some(Self::NotHealthCheck),
                FilterSpecifier::RuntimeFilter(filter) => Some(Self::Share(Fraction::from_option(
                    filter.percent_sampled.as_ref(),
                    Fraction::NONE,
                ))),
                // An unknown part logs everything: within AND it is left out, and OR with such a
                // part logs everything as well.
                FilterSpecifier::AndFilter(and) => Some(Self::All(
                    list(&and.filters, scope)?.into_iter().flatten().collect(),
                )),
                FilterSpecifier::OrFilter(or) => list(&or.filters, scope)?
                    .into_iter()
                    .collect::<Option<Vec<_>>>()
                    .map(Self::Any),
                FilterSpecifier::HeaderFilter(filter) => {
                    let header = scope.required("header", filter.header.as_ref())?;
                    Some(Self::Header(HeaderMatch::compile(header, scope)?))
                }
                FilterSpecifier::ResponseFlagFilter(filter) => {
                    let mut flags = ResponseFlags::default();
                    for name in &filter.flags {
                        match ResponseFlag::from_short(name) {
                            Some(flag) => flags.insert(flag),
                            None => scope.warn("flags", format!("unknown flag {name:?}")),
                        }
                    }
                    Some(Self::Flags(flags))
                }
                FilterSpecifier::GrpcStatusFilter(filter) => Some(Self::Grpc {
                    statuses: filter
                        .statuses
                        .iter()
                        .filter_map(|status| u32::try_from(*status).ok())
                        .collect(),
                    exclude: filter.exclude,
                }),
                FilterSpecifier::MetadataFilter(filter) => {
                    let or_missing =
                        crate::convert::boolean(filter.match_if_key_not_found.as_ref(), true);
                    match &filter.matcher {
                        Some(matcher) => {
                            let matcher = Box::new(MetadataMatch::compile(matcher, scope)?);
                            Some(Self::Metadata {
                                matcher,
                                or_missing,
                            })
                        }
                        None => None,
                    }
                }
                FilterSpecifier::TraceableFilter(_)
                | FilterSpecifier::LogTypeFilter(_)
                | FilterSpecifier::ExtensionFilter(_) => {
                    scope.warn("", "this access log filter is unknown; all is logged");
                    None
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(format: &str) -> Vec<String> {
        let mut scope = Scope::new();
        let config = file::FileAccessLog {
            path: "/dev/stdout".into(),
            access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(
                core::SubstitutionFormatString {
                    format: Some(core::substitution_format_string::Format::JsonFormat(
                        Struct {
                            fields: [(
                                "a".to_owned(),
                                meltemi_proto::google::protobuf::Value {
                                    kind: Some(
                                        meltemi_proto::google::protobuf::value::Kind::StringValue(
                                            format.into(),
                                        ),
                                    ),
                                },
                            )]
                            .into(),
                        },
                    )),
                    ..Default::default()
                },
            )),
        };

        let message = proto::AccessLog {
            config_type: Some(proto::access_log::ConfigType::TypedConfig(
                meltemi_proto::pack(&config),
            )),
            ..Default::default()
        };

        AccessLog::compile(&message, &mut scope).expect("compiles");

        scope
            .into_warnings()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_a_log_cannot_tell_is_warned_of() {
        assert_eq!(warnings(DEFAULT_FORMAT), Vec::<String>::new());
        assert_eq!(warnings("%NOPE(%F)% %START_TIME(%F)% %NADA%").len(), 2);
        let told = warnings("%UPSTREAM_TLS_VERSION% %START_TIME(%q)% %UPSTREAM_PROTOCOL% %NOPE%");
        let wanted = [
            "log_format: unknown operator %NOPE%; it is printed as it is",
            "log_format: %UPSTREAM_TLS_VERSION% is not known to this proxy; it prints as \"-\"",
            "log_format: %q in a time format is unknown and printed as it is",
        ];
        assert_eq!(told, wanted);
    }
}
