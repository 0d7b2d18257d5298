//! Retries as Envoy makes them: the same routes and the same requests through stock Envoy and
//! through us, beside the outcome that each must have.

mod asked;
mod bodies;

use std::path::Path;
use std::time::Duration;

use hcm::http_connection_manager::InternalAddressConfig;
use meltemi_proto::envoy::config::cluster::v3 as cluster;
use meltemi_proto::envoy::config::core::v3 as core;
use meltemi_proto::envoy::config::listener::v3 as proto;
use meltemi_proto::envoy::config::route::v3 as route;
use meltemi_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use meltemi_proto::google::protobuf::{BoolValue, UInt32Value};
use meltemi_proxy::ProxyOptions;

use crate::config::*;
use crate::differential::{ask, in_order};
use crate::envoy::{self, Envoy};
use crate::peers;

const LINE: &str = "case=%REQ(X-CASE)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
                    %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n";

/// One request and its outcome.
struct Case {
    name: &'static str,
    /// Method, path, and header lines.
    request: &'static str,
    /// The size of the request's body.
    body: usize,
    status: &'static str,
    attempts: u32,
}

const fn case(
    name: &'static str,
    request: &'static str,
    body: usize,
    status: &'static str,
    attempts: u32,
) -> Case {
    Case {
        name,
        request,
        body,
        status,
        attempts,
    }
}

/// Answers each attempt with the status that `x-plan` has for it, a list whose last status counts
/// for all further attempts, and with the header lines of `x-say`. The body says which of Envoy's
/// own headers arrived, and how long the body of the request was.
async fn planned() -> cluster::Cluster {
    let at = peers::http_server(|head, body| {
        let field = |name: &str| {
            let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
            lines.find(|(own, _)| *own == name).map(|(_, value)| value)
        };
        let attempt: usize = field("x-envoy-attempt-count").map_or(1, |n| n.parse().expect("n"));
        let plan: Vec<&str> = field("x-plan").unwrap_or("200").split(',').collect();
        let status = plan[attempt.min(plan.len()) - 1];
        let is_last = attempt >= plan.len();

        // The rest of a limit in time depends on how fast the proxy is.
        let shown = |line: &&str| {
            let name = line.split(": ").next().unwrap_or_default();
            name.starts_with("x-envoy-") && name != "x-envoy-expected-rq-timeout-ms"
        };
        let mut seen: Vec<&str> = head.split("\r\n").filter(shown).collect();
        seen.sort_unstable();
        let text = format!("{} bytes\n{}\n", body.len(), seen.join("\n"));
        let say = field("x-say").filter(|_| !is_last);
        let say = say.map(|say| format!("{}\r\n", say.replace('=', ": ")));
        let length = text.len();

        format!(
            "HTTP/1.1 {status} Planned\r\ncontent-length: {length}\r\n{}\r\n{text}",
            say.unwrap_or_default()
        )
        .into_bytes()
    });

    static_cluster("up", &[at.await])
}

/// A policy with a short pause between attempts.
fn policy(retry_on: &str, retries: u32) -> route::RetryPolicy {
    route::RetryPolicy {
        retry_on: retry_on.into(),
        num_retries: Some(UInt32Value { value: retries }),
        retry_back_off: Some(route::retry_policy::RetryBackOff {
            base_interval: Some(duration(Duration::from_millis(1))),
            max_interval: Some(duration(Duration::from_millis(2))),
        }),
        ..Default::default()
    }
}

/// The network that counts as the inside of the mesh: 256 addresses.
fn inside(network: &str) -> Option<InternalAddressConfig> {
    let range = core::CidrRange {
        address_prefix: network.into(),
        prefix_len: Some(UInt32Value { value: 24 }),
    };

    Some(InternalAddressConfig {
        cidr_ranges: vec![range],
        ..Default::default()
    })
}

/// A connection manager that believes its clients, and logs to a file.
fn trusting(log: &str, routes: Vec<route::Route>) -> hcm::HttpConnectionManager {
    let mut table = table("r", routes);
    table.virtual_hosts[0].include_request_attempt_count = true;

    hcm::HttpConnectionManager {
        use_remote_address: Some(BoolValue { value: true }),
        internal_address_config: inside("127.0.0.0"),
        access_log: vec![log_as(log, LINE)],
        ..manager(inline(table))
    }
}

/// Sends each request through both proxies; `listener` gets the path of the log.
async fn compare(
    test: &str,
    clusters: Vec<cluster::Cluster>,
    listener: impl Fn(&str) -> proto::Listener,
    cases: &[Case],
) {
    let ours = Running::start(ProxyOptions::default());
    ours.apply(clusters.clone(), vec![listener("/dev/stdout")])
        .await;
    let theirs = match envoy::program(test) {
        None => None,
        Some(program) => Some(
            Envoy::start(program, clusters, |folder: &Path| {
                vec![listener(&folder.join("log").display().to_string())]
            })
            .await,
        ),
    };

    let mut wrong = Vec::new();
    for case in cases {
        let body = "x".repeat(case.body);
        let start = format!("case={} ", case.name);
        let at = ours.at("in").await;
        let (status, _, text) = ask(at, "svc", case.name, case.request, &body).await;
        let line = in_order(&ours.log.line_with(&start).await);
        let we = (status, text, line);

        let attempts = we.2.rsplit(' ').next().and_then(|n| n.parse().ok());
        if we.0 != case.status || attempts != Some(case.attempts) {
            let (status, attempts) = (case.status, case.attempts);
            let name = case.name;
            wrong.push(format!("{name}: {we:?} is not {status} after {attempts}"));
        }
        let Some(theirs) = &theirs else { continue };
        let at = theirs.at("in").await;
        let (status, _, text) = ask(at, "svc", case.name, case.request, &body).await;
        let line = in_order(&theirs.line("log", &start).await);
        let envoy = (status, text, line);
        if envoy != we {
            wrong.push(format!("{}: Envoy {envoy:?}, we {we:?}", case.name));
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
