//! One scrape for the proxy, the application and the agent.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;

/// More text than this from one part is refused: it would be held in memory whole.
const MAX_BODY: usize = 32 << 20;

/// Where the application's own metrics are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppMetrics {
    /// `prometheus.io/port`, default 80.
    pub port: u16,
    /// `prometheus.io/path`, default `/metrics`.
    pub path: String,
}

impl AppMetrics {
    /// From the pod's annotations; `None` unless `prometheus.io/scrape` is `true`, or if merging is
    /// switched off by `prometheus.istio.io/merge-metrics`. A path that points back to us is `None`
    /// too.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let value = |key: &str| annotations.get(key).map(|text| text.trim());
        if value("prometheus.io/scrape") != Some("true")
            || value("prometheus.istio.io/merge-metrics") == Some("false")
        {
            return None;
        }

        // An agent cannot speak TLS to the application on its behalf.
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

/// Appends a part; the end mark of OpenMetrics may stand only at the very end, and this text is not
/// OpenMetrics.
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
    fn annotations_say_where_the_application_is() {
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
    fn end_marks_do_not_survive_in_the_middle() {
        let mut out = String::new();
        append(&mut out, "a 1\n# EOF\n");
        append(&mut out, "b 2");
        assert_eq!(out, "a 1\nb 2\n");
    }
}
