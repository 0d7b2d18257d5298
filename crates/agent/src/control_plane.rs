//! Connections to the control plane over TLS. The agent authenticates with its certificate; without
//! a valid one, or if the control plane rejects it, with the token.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::Uri;
use hyper_util::rt::TokioIo;
use meltemi_net::{ConnectOptions, connect};
use meltemi_proto::ca::{CertificateRequest, CertificateServiceClient};
use meltemi_tls::{
    ClientTerms, DEFAULT_SECRET, Identity, SecretStore, ServerRule, TlsError, TrustBundle,
    cause_of_io, client_config,
};
use meltemi_xds::Connection;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::BoxFuture;
use crate::identity::{CertificateSource, FetchError};

/// Limit of each step of connecting: resolving and TCP, the TLS handshake, the HTTP/2 preface.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for the CA's answer.
const CSR_TIMEOUT: Duration = Duration::from_secs(10);

/// The token with which the agent requests its first certificate.
#[derive(Clone)]
pub enum Token {
    /// A file, read for each connection: the kubelet or the node renews it.
    File(PathBuf),
    /// The token itself, for example read from an inherited file descriptor.
    Text(Arc<str>),
}

/// Shows the file or `in memory`, never the token.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "Token({})", path.display()),
            Self::Text(_) => f.write_str("Token(in memory)"),
        }
    }
}

/// Address of the control plane, and how to authenticate it and ourselves.
#[derive(Debug, Clone)]
pub struct ControlPlaneOptions {
    /// `host:port`; usually port 15012.
    pub address: String,
    /// DNS name that the control plane's certificate must carry.
    pub server_name: String,
    /// PEM file with the roots that verify the control plane's certificate; read for each
    /// connection.
    pub roots: PathBuf,
    /// Credential for the time without a valid certificate.
    pub token: Option<Token>,
    /// SO_MARK that lets the connection pass the capture rules.
    pub mark: Option<u32>,
    /// Sent as gRPC metadata `clusterid`, as Istio's agent does.
    pub cluster_id: String,
}

/// Why a connection to the control plane failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve, the connection is refused, or a step took too long. Worth a
    /// retry.
    #[error("control plane {address}: {reason}")]
    Unreachable {
        /// `host:port` of the control plane.
        address: String,
        /// The system's error or the step that timed out.
        reason: String,
    },
    /// The TLS handshake failed, or the server rejected our certificate.
    #[error("control plane {address}: TLS: {reason}")]
    Handshake {
        /// `host:port` of the control plane.
        address: String,
        /// The cause, with the expected and the presented name where names differ.
        reason: String,
    },
    /// A local file (roots or token) cannot be used.
    #[error("{path}: {reason}")]
    Material {
        /// Path of the file.
        path: String,
        /// What is wrong with the file.
        reason: String,
    },
    /// There is neither a valid certificate nor a token.
    #[error("there is neither a valid certificate nor a token to show to the control plane")]
    NoCredential,
}

/// Opens connections to the control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    options: Arc<ControlPlaneOptions>,
    secrets: SecretStore,
}

type Stream = BufReader<TlsStream<TcpStream>>;

impl ControlPlane {
    /// Connections present the certificate `default` of `secrets` once the store has one.
    pub fn new(options: ControlPlaneOptions, secrets: SecretStore) -> Self {
        Self {
            options: Arc::new(options),
            secrets,
        }
    }

    /// A connector for `xds::ClientConfig`; each call connects with the newest credential.
    pub fn connector(
        &self,
    ) -> impl Fn()
        -> BoxFuture<'static, Result<Connection, Box<dyn std::error::Error + Send + Sync>>>
    + Send
    + Sync
    + use<> {
        let this = self.clone();
        move || {
            let this = this.clone();
            Box::pin(async move { Ok(this.connect().await?) })
        }
    }

    /// Opens one connection. Returns a channel over it and the metadata that each call must carry.
    /// The channel does not reconnect.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        let (stream, token) = self.dial().await?;
        let failed = |error: tonic::transport::Error| self.unreachable(error.to_string());
        let endpoint = Endpoint::from_shared(format!("http://{}", self.options.server_name))
            .map_err(failed)?
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);

        let channel: Channel = endpoint
            .connect_with_connector(EstablishedStream(Some(stream)))
            .await
            .map_err(failed)?;

        let mut metadata = MetadataMap::new();
        if let Ok(cluster) = self.options.cluster_id.parse() {
            metadata.insert("clusterid", cluster);
        }
        if let Some(token) = token {
            metadata.insert("authorization", token);
        }

        Ok(Connection { channel, metadata })
    }

    /// Connects with the certificate if there is a valid one. If the control plane rejects it,
    /// which happens when its CA was replaced, connects with the token. Returns the token if it
    /// must be sent.
    async fn dial(&self) -> Result<(Stream, Option<MetadataValue<Ascii>>), ConnectError> {
        let mut refused = None;
        if let Some(identity) = self.certificate() {
            match self.handshake(Some(&identity)).await {
                Ok(stream) => return Ok((stream, None)),
                Err(error @ ConnectError::Handshake { .. }) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }

        match (self.token()?, refused) {
            (Some(token), refused) => {
                if let Some(error) = refused {
                    tracing::warn!(%error, "certificate not taken, trying the token");
                }
                Ok((self.handshake(None).await?, Some(token)))
            }
            (None, Some(error)) => Err(error),
            (None, None) => Err(ConnectError::NoCredential),
        }
    }

    /// The current certificate, unless it has expired.
    fn certificate(&self) -> Option<Identity> {
        let identity = self.secrets.get(DEFAULT_SECRET)?.identity.clone()?;
        (identity.not_after() > SystemTime::now()).then_some(identity)
    }

    /// The value of the `authorization` header; `None` if no token is configured.
    fn token(&self) -> Result<Option<MetadataValue<Ascii>>, ConnectError> {
        let (text, path) = match &self.options.token {
            None => return Ok(None),
            Some(Token::Text(text)) => (text.to_string(), "token".to_owned()),
            Some(Token::File(path)) => {
                let path_text = path.display().to_string();
                let text =
                    std::fs::read_to_string(path).map_err(|error| ConnectError::Material {
                        path: path_text.clone(),
                        reason: error.to_string(),
                    })?;
                (last_whole_line(&text).to_owned(), path_text)
            }
        };

        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", text.trim())
                .parse()
                .map_err(|_| ConnectError::Material {
                    path,
                    reason: "the token holds characters that a header cannot carry".to_owned(),
                })?;

        value.set_sensitive(true);

        Ok(Some(value))
    }

    /// Connects and waits until the server has accepted the client certificate, if one was sent.
    async fn handshake(&self, identity: Option<&Identity>) -> Result<Stream, ConnectError> {
        let options = &*self.options;
        let path = options.roots.display().to_string();
        let material = |reason: String| ConnectError::Material {
            path: path.clone(),
            reason,
        };

        let roots = std::fs::read(&options.roots).map_err(|error| material(error.to_string()))?;
        let trust =
            TrustBundle::from_pem(&roots).map_err(|error: TlsError| material(error.to_string()))?;
        let terms = ClientTerms {
            alpn: vec!["h2".to_owned()],
            rule: ServerRule::Host(options.server_name.clone()),
            ..ClientTerms::default()
        };

        let config =
            client_config(&terms, identity, &trust).map_err(|error| material(error.to_string()))?;
        let name = ServerName::try_from(options.server_name.clone())
            .map_err(|error| self.unreachable(error.to_string()))?;
        let refused = |error: std::io::Error| ConnectError::Handshake {
            address: options.address.clone(),
            reason: cause_of_io(&error),
        };

        let late = |step: &str| self.unreachable(format!("{step} took more than {STEP_TIMEOUT:?}"));

        let tcp = tokio::time::timeout(STEP_TIMEOUT, self.tcp())
            .await
            .map_err(|_| late("connecting"))??;
        let tls =
            tokio::time::timeout(STEP_TIMEOUT, TlsConnector::from(config).connect(name, tcp)).await;
        let mut stream = BufReader::new(
            tls.map_err(|_| late("the TLS handshake"))?
                .map_err(refused)?,
        );

        // In TLS 1.3 the client's handshake completes before the server has verified the client's
        // certificate. The server's HTTP/2 preface, which it sends first, proves that the
        // certificate was accepted.
        match tokio::time::timeout(STEP_TIMEOUT, stream.fill_buf())
            .await
            .map_err(|_| late("the HTTP/2 preface"))?
        {
            Ok([]) => Err(refused(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(stream),
            Err(error) => Err(refused(error)),
        }
    }

    /// Resolves the address and connects to the first IP address that answers.
    async fn tcp(&self) -> Result<TcpStream, ConnectError> {
        let options = ConnectOptions {
            mark: self.options.mark,
            ..ConnectOptions::default()
        };

        let addresses = tokio::net::lookup_host(&self.options.address)
            .await
            .map_err(|error| self.unreachable(error.to_string()))?;
        let mut last = self.unreachable("the name has no address".to_owned());
        for address in addresses {
            match connect(address, &options).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = self.unreachable(format!("{address}: {error}")),
            }
        }

        Err(last)
    }

    fn unreachable(&self, reason: String) -> ConnectError {
        ConnectError::Unreachable {
            address: self.options.address.clone(),
            reason,
        }
    }
}

impl CertificateSource for ControlPlane {
    fn fetch<'a>(
        &'a self,
        csr_pem: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, FetchError>> {
        Box::pin(async move {
            let connection = self
                .connect()
                .await
                .map_err(|error| FetchError::Unreachable(error.to_string()))?;

            let mut request = tonic::Request::new(CertificateRequest {
                csr: csr_pem.to_owned(),
                validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
                metadata: None,
            });

            *request.metadata_mut() = connection.metadata;
            let call = async {
                CertificateServiceClient::new(connection.channel)
                    .create_certificate(request)
                    .await
            };

            let answer = tokio::time::timeout(CSR_TIMEOUT, call).await.map_err(|_| {
                FetchError::Unreachable(format!("the CA gave no answer within {CSR_TIMEOUT:?}"))
            })?;

            match answer {
                Ok(response) => Ok(response.into_inner().cert_chain),
                // These codes mean that the same request will fail again; all others may pass.
                Err(status) => match status.code() {
                    tonic::Code::PermissionDenied
                    | tonic::Code::Unauthenticated
                    | tonic::Code::InvalidArgument => Err(FetchError::Refused(format!(
                        "{:?}: {}",
                        status.code(),
                        status.message()
                    ))),
                    code => Err(FetchError::Unreachable(format!(
                        "{code:?}: {}",
                        status.message()
                    ))),
                },
            }
        })
    }
}

/// The newest token of a file. The node appends renewed tokens as lines, so this is the last line
/// that ends with a line feed: a token that is being written is never read in part. A file without
/// a line feed is one token.
fn last_whole_line(text: &str) -> &str {
    let whole = text.rfind('\n').map_or(text, |end| &text[..end]);
    whole
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or(text.trim())
}

/// A tonic connector that yields one established connection. Reconnecting fails, so that the
/// channel's owner connects anew with fresh credentials.
struct EstablishedStream(Option<Stream>);

impl tower_service::Service<Uri> for EstablishedStream {
    type Response = TokioIo<Stream>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(
            self.0
                .take()
                .map(TokioIo::new)
                .ok_or_else(|| std::io::ErrorKind::NotConnected.into()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_an_end_is_the_token() {
        for (text, token) in [
            ("one", "one"),
            ("one\n", "one"),
            (" one \r\n\n", "one"),
            ("one\ntwo\n", "two"),
            ("one\ntw", "one"),
            ("", ""),
        ] {
            assert_eq!(last_whole_line(text), token, "{text:?}");
        }
    }

    #[test]
    fn the_token_file_is_read_for_each_connection() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let plane = ControlPlane::new(
            ControlPlaneOptions {
                address: String::new(),
                server_name: String::new(),
                roots: PathBuf::new(),
                token: Some(Token::File(file.path().to_owned())),
                mark: None,
                cluster_id: String::new(),
            },
            SecretStore::new(),
        );

        let shown = || plane.token().unwrap().unwrap().to_str().unwrap().to_owned();
        std::fs::write(file.path(), "first\n").unwrap();
        assert_eq!(shown(), "Bearer first");
        std::fs::write(file.path(), "first\nsecond\n").unwrap();
        assert_eq!(shown(), "Bearer second");
    }
}
