//! A client of the control plane's Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::{ApplyResponse, ErrorBody, ObjectList, ObjectSelector, Status, encode};

/// A control plane answers at once or not at all.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A whole mesh's state fits; a runaway answer does not.
const MAX_BODY: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no control plane at {path}: {error}; is the mesh up?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The connection broke.
    #[error("talking to the control plane: {0}")]
    Transport(String),
    /// The control plane says no.
    #[error("{message}")]
    Refused {
        /// The status code.
        status: u16,
        /// In its words.
        message: String,
    },
    /// The answer is not what this version expects.
    #[error("the control plane's answer is not understood: {0}; are both of the same version?")]
    Answer(#[from] serde_json::Error),
}

/// Calls a control plane. One connection per call: calls are few, and sockets are cheap.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Over a Unix socket.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
        }
    }

    /// Everything at a glance.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/status").await
    }

    /// Applies YAML or JSON text; objects that name no namespace belong to `namespace`. Answers
    /// what became of each object, also when they are refused.
    pub async fn apply(
        &self,
        text: String,
        namespace: &str,
        dry_run: bool,
    ) -> Result<ApplyResponse, ClientError> {
        let query = encode(&[
            ("ns", namespace),
            ("dry_run", if dry_run { "true" } else { "" }),
        ]);

        let (status, body) = self
            .call(Method::POST, &format!("/apis/apply?{query}"), text)
            .await?;
        match status {
            StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY => Ok(serde_json::from_slice(&body)?),
            _ => Err(refused(status, &body)),
        }
    }

    /// The objects in force.
    pub async fn objects(&self, which: &ObjectSelector) -> Result<ObjectList, ClientError> {
        let ObjectSelector { kind, ns, name } = which;
        self.get(&format!(
            "/apis/objects?{}",
            encode(&[("kind", kind), ("ns", ns), ("name", name)])
        ))
        .await
    }

    /// Deletes applied objects.
    pub async fn delete(
        &self,
        which: &ObjectSelector,
        dry_run: bool,
    ) -> Result<ApplyResponse, ClientError> {
        let ObjectSelector { kind, ns, name } = which;
        let query = encode(&[
            ("kind", kind),
            ("ns", ns),
            ("name", name),
            ("dry_run", if dry_run { "true" } else { "" }),
        ]);

        let (status, body) = self
            .call(
                Method::DELETE,
                &format!("/apis/objects?{query}"),
                String::new(),
            )
            .await?;

        match status {
            StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY => Ok(serde_json::from_slice(&body)?),
            _ => Err(refused(status, &body)),
        }
    }

    /// Any endpoint that answers with JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.text(path).await?)?)
    }

    /// Any endpoint, as it answers.
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
        match tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Transport(format!(
                "no answer within {TIMEOUT:?}"
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
