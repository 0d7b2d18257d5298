//! Access logs: the default formats, letter for letter, and what users write instead.

use std::collections::BTreeMap;

use meltemi_proto::envoy::config::core::v3::{
    data_source::Specifier, substitution_format_string::Format,
};
use meltemi_proto::envoy::config::listener::v3::{Listener, filter};
use meltemi_proto::envoy::extensions::access_loggers::file::v3::{
    FileAccessLog, file_access_log::AccessLogFormat,
};
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use meltemi_proto::google::protobuf::value::Kind;
use meltemi_proto::{type_url, unpack};

use super::{caller, mesh_config, translated};

/// The one log of the HTTP chain at port 80: its path and format.
fn log(mesh: &str) -> (String, Format) {
    let translated = translated(&caller(), &mesh_config(mesh));
    let found = translated
        .of(type_url::LISTENER)
        .iter()
        .find(|one| one.name == "0.0.0.0_80")
        .expect("a listener");

    let listener: Listener = unpack(&found.any).expect("a listener");
    let chains = listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain);

    let managers =
        chains
            .flat_map(|chain| &chain.filters)
            .filter_map(|one| match &one.config_type {
                Some(filter::ConfigType::TypedConfig(config)) => {
                    unpack::<HttpConnectionManager>(config).ok()
                }
                _ => None,
            });

    let manager = managers.into_iter().next().expect("an HTTP chain");
    assert_eq!(manager.access_log.len(), 1);
    use meltemi_proto::envoy::config::accesslog::v3::access_log::ConfigType;

    let Some(ConfigType::TypedConfig(config)) = &manager.access_log[0].config_type else {
        panic!("no config")
    };
    let file: FileAccessLog = unpack(config).expect("a file");
    let Some(AccessLogFormat::LogFormat(format)) = file.access_log_format else {
        panic!("no format")
    };

    (file.path, format.format.expect("a format"))
}

fn text(mesh: &str) -> String {
    let (path, format) = log(mesh);
    assert_eq!(path, "/dev/stdout");
    match format {
        Format::TextFormatSource(source) => match source.specifier {
            Some(Specifier::InlineString(line)) => line,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn keys(mesh: &str) -> BTreeMap<String, String> {
    let (_, Format::JsonFormat(object)) = log(mesh) else {
        panic!("not JSON")
    };
    let text = |value: meltemi_proto::google::protobuf::Value| match value.kind {
        Some(Kind::StringValue(text)) => text,
        other => panic!("{other:?}"),
    };

    object
        .fields
        .into_iter()
        .map(|(key, value)| (key, text(value)))
        .collect()
}

#[test]
fn the_default_line() {
    // istio.io: "Envoy Access Logs", default access log format; `EnvoyTextLogFormat`.
    let wanted = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
    assert_eq!(text("accessLogFile: /dev/stdout"), wanted);
    assert_eq!(
        text("{accessLogFile: /dev/stdout, accessLogEncoding: TEXT}"),
        wanted
    );

    assert_eq!(
        text("{accessLogFile: /dev/stdout, accessLogFormat: 'hi %PROTOCOL%'}"),
        "hi %PROTOCOL%\n"
    );
}

#[test]
fn the_default_keys() {
    // `EnvoyJSONLogFormatIstio`.
    let wanted = [
        ("authority", "%REQ(:AUTHORITY)%"),
        ("bytes_received", "%BYTES_RECEIVED%"),
        ("bytes_sent", "%BYTES_SENT%"),
        (
            "connection_termination_details",
            "%CONNECTION_TERMINATION_DETAILS%",
        ),
        ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        ("duration", "%DURATION%"),
        ("method", "%REQ(:METHOD)%"),
        ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
        ("protocol", "%PROTOCOL%"),
        ("request_id", "%REQ(X-REQUEST-ID)%"),
        ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
        ("response_code", "%RESPONSE_CODE%"),
        ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("route_name", "%ROUTE_NAME%"),
        ("start_time", "%START_TIME%"),
        ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
        ("upstream_host", "%UPSTREAM_HOST%"),
        ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
        (
            "upstream_service_time",
            "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
        ),
        (
            "upstream_transport_failure_reason",
            "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        ),
        ("user_agent", "%REQ(USER-AGENT)%"),
        ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ];

    let wanted: BTreeMap<_, _> = wanted
        .map(|(key, format)| (key.to_owned(), format.to_owned()))
        .into();
    assert_eq!(
        keys("{accessLogFile: /dev/stdout, accessLogEncoding: JSON}"),
        wanted
    );

    let own = keys(
        "{accessLogFile: /dev/stdout, accessLogEncoding: JSON, accessLogFormat: '{\"code\": \"%RESPONSE_CODE%\"}'}",
    );
    assert_eq!(
        own,
        BTreeMap::from([("code".to_owned(), "%RESPONSE_CODE%".to_owned())])
    );
}
