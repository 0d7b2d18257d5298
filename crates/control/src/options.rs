//! How a control plane is set up.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meltemi_ca::{CertificateAuthority, TokenReview};
use meltemi_model::BuildOptions;

/// Everything that a control plane needs to know. Ports may be 0; see [`crate::Addresses`].
#[derive(Clone)]
pub struct ControlOptions {
    /// The user's directories of YAML, in order of precedence.
    pub config: Vec<PathBuf>,
    /// Directories in which the node writes the objects of its workloads.
    pub runtime: Vec<PathBuf>,
    /// The mesh's own state: applied objects in `applied/`, last good versions in `last-good/`.
    pub state: PathBuf,
    /// Issues certificates, the control plane's own as well.
    pub authority: Arc<CertificateAuthority>,
    /// Checks tokens.
    pub tokens: Arc<dyn TokenReview>,
    /// xDS and CSR API over TLS; Istio's port is 15012.
    pub secure: SocketAddr,
    /// The same in plaintext and without authentication, if asked for; Istio's port is 15010.
    pub plaintext: Option<SocketAddr>,
    /// Health, metrics, debugging; Istio's port is 15014.
    pub http: Option<SocketAddr>,
    /// The same and the objects, for the owner of this file.
    pub socket: Option<PathBuf>,
    /// DNS names for the server certificate beside `istiod.istio-system.svc` and its friends.
    pub server_names: Vec<String>,
    /// Addresses for the server certificate beside the loopback and `secure`.
    pub server_addresses: Vec<IpAddr>,
    /// Lifetime of the server certificate; it is renewed at half of it.
    pub server_lifetime: Duration,
    /// Streams end after this, give or take a tenth, so that clients prove again who they are.
    pub stream_age: Option<Duration>,
    /// Domain, networks, defaults.
    pub build: BuildOptions,
}

impl ControlOptions {
    /// Istio's ports on all addresses but 15010, a day for the server certificate, half an hour for
    /// streams.
    pub fn new(
        state: PathBuf,
        authority: Arc<CertificateAuthority>,
        tokens: Arc<dyn TokenReview>,
    ) -> Self {
        Self {
            config: Vec::new(),
            runtime: Vec::new(),
            state,
            authority,
            tokens,
            secure: SocketAddr::from(([0, 0, 0, 0], 15012)),
            plaintext: None,
            http: Some(SocketAddr::from(([0, 0, 0, 0], 15014))),
            socket: None,
            server_names: Vec::new(),
            server_addresses: Vec::new(),
            server_lifetime: Duration::from_secs(24 * 3600),
            stream_age: Some(Duration::from_secs(30 * 60)),
            build: BuildOptions::default(),
        }
    }
}
