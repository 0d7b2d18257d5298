//! Connections to the control plane: TLS with our own certificate, or with a token until there is
//! one.

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

/// One step of connecting (resolving, TCP, TLS) takes at most this.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer of the CA takes at most this.
const CSR_TIMEOUT: Duration = Duration::from_secs(10);

/// The first credential.
#[derive(Clone)]
pub enum Token {
    /// Read anew for each connection, since whoever made it also renews it.
    File(PathBuf),
    /// Handed over, for example by an inherited file descriptor.
    Text(Arc<str>),
}

/// Never shows the token.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "Token({})", path.display()),
            Self::Text(_) => f.write_str("Token(in memory)"),
        }
    }
}

/// Where the control plane is and how it is recognised.
#[derive(Debug, Clone)]
pub struct ControlPlaneOptions {
    /// `host:port`; usually port 15012.
    pub address: String,
    /// The name that its certificate must carry.
    pub server_name: String,
    /// PEM file with the roots that it is verified with; read anew for each connection.
    pub roots: PathBuf,
    /// For the first certificate.
    pub token: Option<Token>,
    /// SO_MARK that lets the connection pass the capture rules.
    pub mark: Option<u32>,
    /// Sent as `clusterid`, as Istio's agent does.
    pub cluster_id: String,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers at the address.
    #[error("control plane {address}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// The handshake failed.
    #[error("control plane {address}: TLS: {reason}")]
    Handshake {
        /// Where.
        address: String,
        /// With what was expected and what was presented.
        reason: String,
    },
    /// Our own files.
    #[error("{path}: {reason}")]
    Material {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a certificate nor a token.
    #[error("there is neither a valid certificate nor a token to show to the control plane")]
    NoCredential,
}

/// The way to the control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    options: Arc<ControlPlaneOptions>,
    secrets: SecretStore,
}

type Stream = BufReader<TlsStream<TcpStream>>;

impl ControlPlane {
    /// Connections show the certificate `default` of the store as soon as there is one.
    pub fn new(options: ControlPlaneOptions, secrets: SecretStore) -> Self {
        Self {
            options: Arc::new(options),
            secrets,
        }
    }

    /// For `xds::ClientConfig`: each call makes a connection with the newest credential.
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

    /// A channel over one connection, and what each call over it must carry. The channel does not
    /// reconnect.
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
            .connect_with_connector(Once(Some(stream)))
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

    /// With the certificate if there is a valid one; if the control plane does not take it (its
    /// authority may be a new one since), with the token.
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

    fn certificate(&self) -> Option<Identity> {
        let identity = self.secrets.get(DEFAULT_SECRET)?.identity.clone()?;
        (identity.not_after() > SystemTime::now()).then_some(identity)
    }

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
                (newest(&text).to_owned(), path_text)
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

        // In TLS 1.3 a server judges the client's certificate after the handshake is over for the
        // client. Its HTTP/2 preface, which comes unasked, says that it was taken.
        match tokio::time::timeout(STEP_TIMEOUT, stream.fill_buf())
            .await
            .map_err(|_| late("the HTTP/2 preface"))?
        {
            Ok([]) => Err(refused(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(stream),
            Err(error) => Err(refused(error)),
        }
    }

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

/// The token of a file: all of it, or, where whoever renews it appends lines, the last whole one. A
/// line is whole when its end is there, so half of a new one is never taken.
fn newest(text: &str) -> &str {
    let whole = text.rfind('\n').map_or(text, |end| &text[..end]);
    whole
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or(text.trim())
}

/// Hands over one finished connection; when it is gone, the channel's owner asks for a new one.
struct Once(Option<Stream>);

impl tower_service::Service<Uri> for Once {
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
    fn the_newest_whole_token_of_a_file_counts() {
        for (text, token) in [
            ("one", "one"),
            ("one\n", "one"),
            (" one \r\n\n", "one"),
            ("one\ntwo\n", "two"),
            ("one\ntw", "one"),
            ("", ""),
        ] {
            assert_eq!(newest(text), token, "{text:?}");
        }
    }

    #[test]
    fn a_file_is_read_anew_for_each_connection() {
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
