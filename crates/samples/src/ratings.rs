//! The service `ratings`: stars by reviewer.

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::json;

use crate::serve::{Answer, id_of, json as answer_json, not_found};

pub(crate) async fn answer(request: Request<Incoming>) -> Answer {
    match request.uri().path() {
        "/health" => answer_json(StatusCode::OK, &json!({"status": "Ratings is healthy"})),
        path => match id_of(path, "/ratings") {
            Some(id) => answer_json(
                StatusCode::OK,
                &json!({"id": id, "ratings": {"Reviewer1": 5, "Reviewer2": 4}}),
            ),
            None => not_found(),
        },
    }
}
