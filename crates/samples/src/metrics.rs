//! The application's own metrics in Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Number of calls by service and status; status 0 means no answer.
static RESULTS: Mutex<BTreeMap<(String, u16), u64>> = Mutex::new(BTreeMap::new());

/// Counts one call. The metric's name and labels are those of Istio's productpage.
pub(crate) fn count(service: &str, status: u16) {
    let mut results = RESULTS.lock().unwrap_or_else(PoisonError::into_inner);
    *results.entry((service.to_owned(), status)).or_default() += 1;
}

/// All metrics in Prometheus text format 0.0.4.
pub(crate) fn text() -> String {
    let mut out = String::from(
        "# HELP request_result_total Results of requests\n# TYPE request_result_total counter\n",
    );
    for ((service, status), calls) in RESULTS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        let _ = writeln!(
            out,
            "request_result_total{{destination_app=\"{service}\",response_code=\"{status}\"}} {calls}"
        );
    }

    out
}
