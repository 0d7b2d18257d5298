//! A client for the control plane's Unix socket, over HTTP/1.1.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::{ApplyResponse, ChangeOptions, ErrorBody, ObjectList, ObjectSelector, Status, encode};

/// Limit of a call that changes nothing.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of a call that changes something: many objects take time.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(600);
/// Maximum size of an answer in bytes: the state of a large mesh fits.
const MAX_BODY: usize = 256 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No control plane listens on the socket.
    #[error("no control plane at {path}: {error}; is the mesh up?")]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// The error of `connect(2)`.
        error: std::io::Error,
    },
    /// The connection failed, or the answer took too long.
    #[error("talking to the control plane: {0}")]
    Transport(String),
    /// The control plane refused the request.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The control plane's message for the user.
        message: String,
    },
    /// The answer cannot be parsed: client and control plane differ in version.
    #[error("the control plane's answer is not understood: {0}; are both of the same version?")]
    Answer(#[from] serde_json::Error),
}

/// A client of one control plane. Each call opens a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Creates a client for the Unix socket at `path`. Does not connect yet.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
        }
    }

    /// Gets the status of the control plane and of all proxies.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/status").await
    }

    /// Applies objects in YAML or JSON. Objects without a namespace belong to `namespace`. Returns
    /// the result for each object, also when objects are refused.
    pub async fn apply(
        &self,
        text: String,
        namespace: &str,
        options: ChangeOptions,
    ) -> Result<ApplyResponse, ClientError> {
        let ChangeOptions { dry_run, write } = options;
        let query = encode(&[
            ("ns", namespace),
            ("dry_run", flag(dry_run)),
            ("write", flag(write)),
        ]);

        let (status, body) = self
            .call(Method::POST, &format!("/apis/apply?{query}"), text)
            .await?;
        match status {
            StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY => Ok(serde_json::from_slice(&body)?),
            _ => Err(refused(status, &body)),
        }
    }

    /// Gets the objects in force that the selector matches.
    pub async fn objects(&self, which: &ObjectSelector) -> Result<ObjectList, ClientError> {
        let ObjectSelector { kind, ns, name } = which;
        self.get(&format!(
            "/apis/objects?{}",
            encode(&[("kind", kind), ("ns", ns), ("name", name)])
        ))
        .await
    }

    /// Deletes the object that the selector names.
    pub async fn delete(
        &self,
        which: &ObjectSelector,
        options: ChangeOptions,
    ) -> Result<ApplyResponse, ClientError> {
        self.delete_objects("/apis/objects", which, options).await
    }

    /// Deletes every applied object that the selector matches. Objects of the user's files stay.
    pub async fn delete_applied(
        &self,
        which: &ObjectSelector,
        options: ChangeOptions,
    ) -> Result<ApplyResponse, ClientError> {
        self.delete_objects("/apis/applied", which, options).await
    }

    async fn delete_objects(
        &self,
        path: &str,
        which: &ObjectSelector,
        options: ChangeOptions,
    ) -> Result<ApplyResponse, ClientError> {
        let ObjectSelector { kind, ns, name } = which;
        let ChangeOptions { dry_run, write } = options;
        let query = encode(&[
            ("kind", kind),
            ("ns", ns),
            ("name", name),
            ("dry_run", flag(dry_run)),
            ("write", flag(write)),
        ]);

        let (status, body) = self
            .call(Method::DELETE, &format!("{path}?{query}"), String::new())
            .await?;

        match status {
            StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY => Ok(serde_json::from_slice(&body)?),
            _ => Err(refused(status, &body)),
        }
    }

    /// Gets any endpoint that answers with JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.text(path).await?)?)
    }

    /// Gets any endpoint and returns the body as it is.
    pub async fn text(&self, path: &str) -> Result<Bytes, ClientError> {
        let (status, body) = self.call(Method::GET, path, String::new()).await?;
        if status.is_success() {
            Ok(body)
        } else {
            Err(refused(status, &body))
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        // A change goes on without its caller.
        let (limit, hint) = match method {
            Method::GET => (TIMEOUT, ""),
            _ => (
                CHANGE_TIMEOUT,
                "; the change goes on, and `meltemi get` shows what has come of it",
            ),
        };
        match tokio::time::timeout(limit, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Transport(format!(
                "no answer within {limit:?}{hint}"
            ))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let transport = |error: &dyn std::fmt::Display| ClientError::Transport(error.to_string());
        let stream =
            UnixStream::connect(&self.path)
                .await
                .map_err(|error| ClientError::Connect {
                    path: self.path.clone(),
                    error,
                })?;

        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| transport(&error))?;

        let answer = meltemi_web::call(stream, request, MAX_BODY)
            .await
            .map_err(|error| transport(&error))?;

        Ok((answer.status(), answer.into_body()))
    }
}

/// A flag as a query's value; an empty value is left out.
fn flag(is_set: bool) -> &'static str {
    if is_set { "true" } else { "" }
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let message = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) if !body.error.is_empty() => body.error,
        _ => format!("{status}: {}", String::from_utf8_lossy(body)),
    };
    ClientError::Refused {
        status: status.as_u16(),
        message,
    }
}
