//! The service `reviews`: v1 shows no stars, v2 black stars, v3 red stars.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use crate::call::get_json;
use crate::serve::{Answer, id_of, json as answer_json, not_found};

/// Deadline of the call to ratings, as in Istio's tutorial.
const RATINGS_DEADLINE: Duration = Duration::from_secs(10);

/// A version of the service and the colour of its stars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flavour {
    version: &'static str,
    star_color: Option<&'static str>,
}

impl Flavour {
    pub(crate) fn of(version: &str) -> anyhow::Result<Self> {
        Ok(match version {
            "v1" => Self {
                version: "v1",
                star_color: None,
            },
            "v2" => Self {
                version: "v2",
                star_color: Some("black"),
            },
            "v3" => Self {
                version: "v3",
                star_color: Some("red"),
            },
            other => anyhow::bail!("reviews has the versions v1, v2 and v3, not {other:?}"),
        })
    }
}

pub(crate) async fn answer(flavour: Flavour, request: Request<Incoming>) -> Answer {
    let path = request.uri().path();
    if path == "/health" {
        return answer_json(StatusCode::OK, &json!({"status": "Reviews is healthy"}));
    }
    let Some(id) = id_of(path, "/reviews") else {
        return not_found();
    };
    let ratings = match flavour.star_color {
        None => None,
        Some(_) => Some(
            get_json(
                "ratings",
                &format!("/ratings/{id}"),
                request.headers(),
                RATINGS_DEADLINE,
            )
            .await,
        ),
    };

    let texts = [
        (
            "Reviewer1",
            "A play of twins and mistaken doors. I laughed, lost count, and laughed again.",
        ),
        (
            "Reviewer2",
            "Short, loud and kind. The later plays are deeper, but none runs faster.",
        ),
    ];

    let reviews: Vec<Value> = texts
        .iter()
        .map(|(reviewer, text)| {
            let mut review = json!({"reviewer": reviewer, "text": text});
            if let (Some(color), Some(ratings)) = (flavour.star_color, &ratings) {
                review["rating"] = match ratings {
                    Ok(ratings) => json!({"stars": ratings["ratings"][reviewer], "color": color}),
                    Err(error) => {
                        eprintln!("no ratings: {error:#}");
                        json!({"error": "Ratings service is currently unavailable"})
                    }
                };
            }

            review
        })
        .collect();

    let host = std::env::var("HOSTNAME").unwrap_or_default();

    answer_json(
        StatusCode::OK,
        &json!({"id": id.to_string(), "podname": host, "version": flavour.version, "reviews": reviews}),
    )
}
