//! The service `details`: data of a book.

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::json;

use crate::serve::{Answer, id_of, json as answer_json, not_found};

pub(crate) async fn answer(request: Request<Incoming>) -> Answer {
    match request.uri().path() {
        "/health" => answer_json(StatusCode::OK, &json!({"status": "Details is healthy"})),
        path => match id_of(path, "/details") {
            Some(id) => answer_json(
                StatusCode::OK,
                &json!({
                    "id": id,
                    "author": "William Shakespeare",
                    "year": 1595,
                    "type": "paperback",
                    "pages": 200,
                    "publisher": "PublisherA",
                    "language": "English",
                    "ISBN-10": "1234567890",
                    "ISBN-13": "123-1234567890",
                }),
            ),
            None => not_found(),
        },
    }
}
