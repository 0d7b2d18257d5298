//! The service `productpage`: a web page with a book, its details and its reviews, and a login
//! whose name is sent as the header `end-user` with every call.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{COOKIE, HeaderValue, LOCATION, SET_COOKIE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::call::get_json;
use crate::metrics;
use crate::serve::{self, Answer, html, id_of, json as answer_json, not_found};

/// Deadline of each call, as in Istio's tutorial.
const DEADLINE: Duration = Duration::from_secs(3);
/// Attempts to get the reviews, as in Istio's tutorial.
const REVIEW_TRIES: usize = 2;
/// Maximum size of the login form in bytes.
const MAX_LOGIN: usize = 4096;

pub(crate) async fn answer(request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let user = user_of(request.headers());
    match (request.method(), path.as_str()) {
        (&Method::POST, "/login") => login(request).await,
        (_, "/logout") => {
            go_to_page("session=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax".to_owned())
        }
        (_, "/" | "/index.html") => html(StatusCode::OK, index()),
        (_, "/health") => answer_json(
            StatusCode::OK,
            &json!({"status": "Product page is healthy"}),
        ),
        (_, "/metrics") => serve::metrics(metrics::text()),
        (_, "/productpage") => {
            let headers = with_user(request.headers(), user.as_deref());
            let (details, reviews) = tokio::join!(details(0, &headers), reviews(0, &headers));
            html(StatusCode::OK, page(user.as_deref(), &details, &reviews))
        }
        (_, "/api/v1/products") => answer_json(StatusCode::OK, &json!([product()])),
        (_, path) => {
            let headers = with_user(request.headers(), user.as_deref());
            let rest = path.strip_prefix("/api/v1/products").unwrap_or_default();
            if let Some(id) = rest
                .strip_suffix("/reviews")
                .and_then(|head| id_of(head, ""))
            {
                return api(reviews(id, &headers).await);
            }

            if let Some(id) = rest
                .strip_suffix("/ratings")
                .and_then(|head| id_of(head, ""))
            {
                return api(
                    get_json("ratings", &format!("/ratings/{id}"), &headers, DEADLINE).await,
                );
            }

            match id_of(rest, "") {
                Some(id) => api(details(id, &headers).await),
                None => not_found(),
            }
        }
    }
}

fn product() -> Value {
    json!({"id": 0, "title": "The Comedy of Errors", "descriptionHtml": "Two pairs of twins, one town, no patience."})
}

fn api(answer: anyhow::Result<Value>) -> Answer {
    match answer {
        Ok(value) => answer_json(StatusCode::OK, &value),
        Err(error) => answer_json(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({"error": format!("{error:#}")}),
        ),
    }
}

async fn details(id: u32, headers: &HeaderMap) -> anyhow::Result<Value> {
    get_json("details", &format!("/details/{id}"), headers, DEADLINE).await
}

async fn reviews(id: u32, headers: &HeaderMap) -> anyhow::Result<Value> {
    let mut last = None;
    for _ in 0..REVIEW_TRIES {
        match get_json("reviews", &format!("/reviews/{id}"), headers, DEADLINE).await {
            Ok(value) => return Ok(value),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no try was made")))
}

fn with_user(headers: &HeaderMap, user: Option<&str>) -> HeaderMap {
    let mut headers = headers.clone();
    if let Some(value) = user.and_then(|user| HeaderValue::from_str(user).ok()) {
        headers.insert("end-user", value);
    }
    headers
}

fn user_of(headers: &HeaderMap) -> Option<String> {
    let cookies = headers
        .get_all(COOKIE)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let user = cookies
        .flat_map(|line| line.split(';'))
        .find_map(|cookie| cookie.trim().strip_prefix("session="))?;
    (!user.is_empty()).then(|| user.to_owned())
}

/// Signs in with any name. Characters other than letters, digits, `.`, `-`, `_` and `@` are
/// removed.
async fn login(request: Request<Incoming>) -> Answer {
    let body = match Limited::new(request.into_body(), MAX_LOGIN).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return html(
                StatusCode::PAYLOAD_TOO_LARGE,
                "The login form is too large.".to_owned(),
            );
        }
    };

    let form = String::from_utf8_lossy(&body).into_owned();
    let name = form
        .split('&')
        .find_map(|field| field.strip_prefix("username="))
        .unwrap_or_default();

    let name: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || ".-_@".contains(*c))
        .take(64)
        .collect();

    go_to_page(format!("session={name}; Path=/; HttpOnly; SameSite=Lax"))
}

fn go_to_page(cookie: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::FOUND;
    answer
        .headers_mut()
        .insert(LOCATION, HeaderValue::from_static("/productpage"));
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    answer
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:0;color:#1d2733;background:#f4f7f9}\
header{background:#0b4f6c;color:#fff;padding:1rem 2rem;display:flex;justify-content:space-between;align-items:center}\
main{max-width:62rem;margin:2rem auto;display:grid;grid-template-columns:1fr 1fr;gap:2rem;padding:0 1rem}\
section{background:#fff;border-radius:8px;padding:1.2rem 1.6rem;box-shadow:0 1px 3px #0002}\
blockquote{margin:1rem 0;padding-left:1rem;border-left:3px solid #9ec5d6}dt{font-weight:600}\
.sorry{color:#a33}.by{color:#567;font-size:.9rem}button,input{font:inherit;padding:.2rem .6rem}";

fn frame(user: Option<&str>, body: &str) -> String {
    let account = match user {
        Some(user) => format!("<span>{} <a style=\"color:#fff\" href=\"/logout\">sign out</a></span>", escape(user)),
        None => "<form method=\"post\" action=\"/login\"><input name=\"username\" placeholder=\"user, say jason\" required> \
                 <button>Sign in</button></form>"
            .to_owned(),
    };

    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Simple Bookstore App</title>\
         <style>{STYLE}</style></head><body><header><strong>Bookinfo</strong>{account}</header>{body}</body></html>"
    )
}

fn index() -> String {
    frame(
        None,
        "<main><section><h1>Bookinfo</h1><p>Four small services and one page: <a href=\"/productpage\">the book</a>.</p></section></main>",
    )
}

fn page(
    user: Option<&str>,
    details: &anyhow::Result<Value>,
    reviews: &anyhow::Result<Value>,
) -> String {
    let product = product();
    let mut body = format!(
        "<main><section style=\"grid-column:1/-1\"><h1>{}</h1><p>{}</p></section>",
        product["title"].as_str().unwrap_or_default(),
        product["descriptionHtml"].as_str().unwrap_or_default()
    );

    body.push_str("<section><h2>Book Details</h2>");
    match details {
        Ok(details) => {
            body.push_str("<dl>");
            for key in [
                "type",
                "pages",
                "publisher",
                "language",
                "ISBN-10",
                "ISBN-13",
            ] {
                let value = match &details[key] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                body.push_str(&format!("<dt>{key}</dt><dd>{}</dd>", escape(&value)));
            }

            body.push_str("</dl>");
        }
        Err(error) => {
            eprintln!("no details: {error:#}");
            body.push_str("<p class=\"sorry\"><b>Error fetching product details!</b> Sorry, product details are currently unavailable for this book.</p>");
        }
    }

    body.push_str("</section><section><h2>Book Reviews</h2>");
    match reviews {
        Ok(reviews) => {
            for review in reviews["reviews"].as_array().into_iter().flatten() {
                let text = |key: &str| escape(review[key].as_str().unwrap_or_default());
                body.push_str(&format!(
                    "<blockquote><p>{}</p><p class=\"by\">{}</p>{}</blockquote>",
                    text("text"),
                    text("reviewer"),
                    stars(&review["rating"])
                ));
            }

            let text = |key: &str| escape(reviews[key].as_str().unwrap_or_default());
            body.push_str(&format!(
                "<p class=\"by\">reviews {} on {}</p>",
                text("version"),
                text("podname")
            ));
        }
        Err(error) => {
            eprintln!("no reviews: {error:#}");
            body.push_str("<p class=\"sorry\"><b>Error fetching product reviews!</b> Sorry, product reviews are currently unavailable for this book.</p>");
        }
    }

    body.push_str("</section></main>");

    frame(user, &body)
}

fn stars(rating: &Value) -> String {
    if let Some(error) = rating["error"].as_str() {
        return format!("<p class=\"sorry\">{}</p>", escape(error));
    }
    let Some(stars) = rating["stars"].as_u64() else {
        return String::new();
    };
    let color = if rating["color"] == "red" {
        "red"
    } else {
        "black"
    };

    let filled = "\u{2605}".repeat(stars.min(5) as usize);
    let empty = "\u{2606}".repeat(5 - stars.min(5) as usize);

    format!(
        "<p class=\"stars\" style=\"color:{color}\" aria-label=\"{stars} of 5 stars\">{filled}{empty}</p>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_missing_parts_and_escapes_text() {
        let details = Ok(json!({"type": "<b>", "pages": 200}));
        let page = page(Some("<jason>"), &details, &Err(anyhow::anyhow!("503")));
        assert!(
            page.contains("&lt;jason&gt;")
                && page.contains("&lt;b&gt;")
                && page.contains("<dd>200</dd>")
        );
        assert!(page.contains("Sorry, product reviews are currently unavailable"));
        assert!(!page.contains("<jason>"));
    }

    #[test]
    fn stars_have_a_colour() {
        assert!(stars(&json!({"stars": 4, "color": "red"})).contains("color:red"));
        assert_eq!(stars(&Value::Null), "");
    }
}
