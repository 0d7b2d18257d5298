//! Performs what filters cannot do themselves.

use std::rc::Rc;
use std::time::Duration;

use meltemi_filters::head::Fields;
use meltemi_filters::http::{Call, CallResult, Fetch, FetchError, Fetched};

use crate::downstream::Downstream;
use crate::upstream::fetch::{Failed, FetchRequest, ResponseBody, fetch};
use crate::worker::Worker;

/// Performs a call. Dropping the future gives it up.
pub async fn perform(worker: &Rc<Worker>, conn: &Downstream, call: Call) -> CallResult {
    match call {
        Call::Sleep(time) => {
            tokio::time::sleep(time).await;
            CallResult::Slept
        }
        Call::Fetch(request) => CallResult::Fetched(fetched(worker, conn, *request).await),
    }
}

async fn fetched(
    worker: &Rc<Worker>,
    conn: &Downstream,
    request: Fetch,
) -> Result<Box<Fetched>, FetchError> {
    let Fetch {
        cluster,
        head,
        body,
        timeout,
        max_response,
    } = request;

    let request = FetchRequest {
        head,
        body,
        trailers: None,
        timeout: timeout.unwrap_or(Duration::MAX),
        response_body: ResponseBody::UpTo(max_response),
        downstream: Some(conn),
    };
    let response = fetch(worker, &cluster, request).await.map_err(|error| {
        let at = error.endpoint.map(|at| format!("endpoint {at}: "));
        FetchError {
            reason: format!("{}{}", at.unwrap_or_default(), error.failed).into(),
            is_unsendable: matches!(error.failed, Failed::BadRequest(_)),
        }
    })?;

    let mut trailers = Fields::new();
    for (name, value) in response.trailers.iter().flatten() {
        trailers.append(name.as_str(), value.as_bytes());
    }

    Ok(Box::new(Fetched {
        head: response.head,
        body: response.body,
        trailers,
    }))
}
