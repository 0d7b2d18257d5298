//! Merged metrics: finds the application's metrics by its annotations, fetches them, and joins the
//! texts of proxy, application and agent.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;

/// Maximum size in bytes of one part, since it is held in memory whole.
const MAX_BODY: usize = 32 << 20;

/// Where the application serves its metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppMetrics {
    /// `prometheus.io/port`, default 80.
    pub port: u16,
    /// `prometheus.io/path`, default `/metrics`.
    pub path: String,
}

impl AppMetrics {
    /// Reads the pod's annotations. `None` unless `prometheus.io/scrape` is `true`; also `None` if
    /// `prometheus.istio.io/merge-metrics` is `false`, the scheme is not `http`, or the port is
    /// invalid or the agent's own.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let value = |key: &str| annotations.get(key).map(|text| text.trim());
        if value("prometheus.io/scrape") != Some("true")
            || value("prometheus.istio.io/merge-metrics") == Some("false")
        {
            return None;
        }

        // The agent has no roots to verify the application's own TLS certificate.
        if value("prometheus.io/scheme").is_some_and(|scheme| scheme != "http") {
            return None;
        }
        let port = value("prometheus.io/port")
            .unwrap_or("80")
            .parse()
            .ok()
            .filter(|port| !matches!(port, 0 | 15020))?;

        let path = value("prometheus.io/path")
            .filter(|path| !path.is_empty())
            .unwrap_or("/metrics");
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };

        Some(Self { port, path })
    }
}

/// GET over plain HTTP/1.1; status 200 or an error.
pub async fn fetch(address: SocketAddr, path: &str, within: Duration) -> io::Result<Bytes> {
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::ACCEPT, "text/plain;version=0.0.4;q=1,*/*;q=0.1")
        .header(header::CONNECTION, "close")
        .body(Full::default())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;

    let answer = meltemi_web::call_at(address, request, MAX_BODY, within).await?;
    match answer.status() {
        StatusCode::OK => Ok(answer.into_body()),
        status => Err(io::Error::other(format!("status {status}"))),
    }
}

/// Appends one part without OpenMetrics' end mark `# EOF`, which would end the whole text early.
pub(super) fn append(out: &mut String, part: &str) {
    for line in part.lines().filter(|line| line.trim_end() != "# EOF") {
        out.push_str(line);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn annotations_name_the_applications_port_and_path() {
        let app = |pairs: &[(&str, &str)]| AppMetrics::from_annotations(&annotations(pairs));
        assert_eq!(app(&[]), None);
        assert_eq!(
            app(&[("prometheus.io/scrape", "true")]),
            Some(AppMetrics {
                port: 80,
                path: "/metrics".into()
            })
        );

        let full = app(&[
            ("prometheus.io/scrape", "true"),
            ("prometheus.io/port", "9080"),
            ("prometheus.io/path", "stats"),
        ]);

        assert_eq!(
            full,
            Some(AppMetrics {
                port: 9080,
                path: "/stats".into()
            })
        );

        assert_eq!(
            app(&[
                ("prometheus.io/scrape", "true"),
                ("prometheus.istio.io/merge-metrics", "false")
            ]),
            None
        );

        assert_eq!(
            app(&[
                ("prometheus.io/scrape", "true"),
                ("prometheus.io/port", "15020")
            ]),
            None,
            "a loop"
        );

        assert_eq!(
            app(&[
                ("prometheus.io/scrape", "true"),
                ("prometheus.io/port", "http")
            ]),
            None
        );
    }

    #[test]
    fn end_marks_of_parts_are_removed() {
        let mut out = String::new();
        append(&mut out, "a 1\n# EOF\n");
        append(&mut out, "b 2");
        assert_eq!(out, "a 1\nb 2\n");
    }
}
