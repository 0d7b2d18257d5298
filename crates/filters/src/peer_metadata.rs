//! Istio's peer metadata: HTTP proxies exchange it in headers, TCP proxies in a preamble.
//!
//! Both carry the node metadata as a protobuf `Struct`. A peer's own statement serves metrics and
//! logs alone, never authorization.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use meltemi_proto::Any;
use meltemi_proto::google::protobuf::value::Kind;
use meltemi_proto::google::protobuf::{Struct, Value};
use meltemi_proto::istio::StructExt;
use meltemi_types::Labels;
use prost::Message;

/// The header with the node metadata, in base64.
pub const HEADER: &str = "x-envoy-peer-metadata";
/// The header with the node's id.
pub const HEADER_ID: &str = "x-envoy-peer-metadata-id";

/// The facts of a workload that Istio's metrics show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PeerInfo {
    /// The pod's name.
    pub name: Box<str>,
    /// The pod's namespace.
    pub namespace: Box<str>,
    /// The Kubernetes cluster.
    pub cluster: Box<str>,
    /// The workload's name, for example that of the Deployment.
    pub workload: Box<str>,
    /// The workload's owner, as a URI.
    pub owner: Box<str>,
    /// Label `app`.
    pub app: Box<str>,
    /// Label `version`.
    pub version: Box<str>,
    /// The label `service.istio.io/canonical-name`, or its fallback.
    pub canonical_service: Box<str>,
    /// The label `service.istio.io/canonical-revision`, or its fallback.
    pub canonical_revision: Box<str>,
}

/// Longest metadata that is read.
const MAX_ENCODED: usize = 16 * 1024;

impl PeerInfo {
    /// The value of a field of Istio's `%FILTER_STATE(downstream_peer:FIELD:...)%`; `None` if it is
    /// unknown or empty.
    pub fn field(&self, name: &str) -> Option<&str> {
        let text = match name {
            "workload" => &self.workload,
            "namespace" => &self.namespace,
            "cluster" => &self.cluster,
            "service" => &self.canonical_service,
            "revision" => &self.canonical_revision,
            "app" => &self.app,
            "version" => &self.version,
            "name" => &self.name,
            _ => return None,
        };

        Some(&**text).filter(|text| !text.is_empty())
    }

    /// Reads a node's metadata.
    pub fn from_struct(metadata: &Struct) -> Self {
        let text = |key: &str| Box::<str>::from(metadata.text(key).unwrap_or_default());
        let labels: Labels = match metadata
            .fields
            .get("LABELS")
            .and_then(|labels| labels.kind.as_ref())
        {
            Some(Kind::StructValue(labels)) => labels
                .fields
                .keys()
                .filter_map(|key| Some((key.as_str(), labels.text(key)?)))
                .collect(),
            _ => Labels::default(),
        };

        let workload = text("WORKLOAD_NAME");

        Self {
            name: text("NAME"),
            namespace: text("NAMESPACE"),
            cluster: text("CLUSTER_ID"),
            owner: text("OWNER"),
            app: labels.value("app").unwrap_or_default().into(),
            version: labels.value("version").unwrap_or_default().into(),
            canonical_service: labels.canonical_service(&workload).into(),
            canonical_revision: labels.canonical_revision().into(),
            workload,
        }
    }

    /// Writes a node's metadata from which [`PeerInfo::from_struct`] reads the same facts.
    pub fn to_struct(&self) -> Struct {
        let text = |value: &str| Value {
            kind: Some(Kind::StringValue(value.to_owned())),
        };
        let fields = |pairs: &[(&str, &str)]| Struct {
            fields: pairs
                .iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(key, value)| ((*key).to_owned(), text(value)))
                .collect(),
        };

        let labels = fields(&[
            ("app", &self.app),
            ("version", &self.version),
            ("service.istio.io/canonical-name", &self.canonical_service),
            (
                "service.istio.io/canonical-revision",
                &self.canonical_revision,
            ),
        ]);

        let mut metadata = fields(&[
            ("NAME", &self.name),
            ("NAMESPACE", &self.namespace),
            ("CLUSTER_ID", &self.cluster),
            ("WORKLOAD_NAME", &self.workload),
            ("OWNER", &self.owner),
        ]);

        metadata.fields.insert(
            "LABELS".to_owned(),
            Value {
                kind: Some(Kind::StructValue(labels)),
            },
        );

        metadata
    }

    /// The value of the header [`HEADER`].
    pub fn encode(&self) -> String {
        STANDARD.encode(self.to_struct().encode_to_vec())
    }

    /// Reads the header [`HEADER`]; `None` if it is malformed or longer than 16 KiB.
    pub fn decode(header: &[u8]) -> Option<Self> {
        if header.len() > MAX_ENCODED {
            return None;
        }
        let trimmed = header
            .strip_suffix(b"==")
            .or_else(|| header.strip_suffix(b"="))
            .unwrap_or(header);

        let bytes = STANDARD_NO_PAD.decode(trimmed).ok()?;

        Struct::decode(bytes.as_slice())
            .ok()
            .map(|metadata| Self::from_struct(&metadata))
    }
}

/// Decoded peers by node id, so that a peer's metadata is decoded once and not on every request.
/// Each worker has one.
#[derive(Debug, Default)]
pub struct PeerCache {
    peers: HashMap<Box<[u8]>, (u64, Arc<PeerInfo>)>,
}

/// How many peers are kept, as in Istio; then all are dropped.
const MAX_PEERS: usize = 500;

impl PeerCache {
    /// The peer whose headers these are; `None` if they are malformed.
    pub fn decode(&mut self, id: &[u8], header: &[u8]) -> Option<Arc<PeerInfo>> {
        use std::hash::{DefaultHasher, Hash, Hasher};

        let mut hasher = DefaultHasher::new();
        header.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some((known, peer)) = self.peers.get(id)
            && *known == hash
        {
            return Some(peer.clone());
        }

        let peer = Arc::new(PeerInfo::decode(header)?);
        if !id.is_empty() && id.len() <= 1024 {
            if self.peers.len() >= MAX_PEERS {
                self.peers.clear();
            }
            self.peers.insert(id.into(), (hash, peer.clone()));
        }

        Some(peer)
    }
}

/// The peer metadata of this proxy.
#[derive(Debug, Clone, Default)]
pub struct LocalPeer {
    /// The node's id.
    pub id: Box<str>,
    /// The facts of this proxy's workload.
    pub info: PeerInfo,
    /// The result of [`PeerInfo::encode`].
    pub encoded: Box<str>,
}

/// The preamble that both sides of a TCP connection with ALPN `istio-peer-exchange` send first.
/// Source: Istio proxy `metadata_exchange.cc`.
pub mod preamble {
    use super::*;

    /// The first four bytes.
    pub const MAGIC: u32 = 0x3d23_0467;
    /// Magic and length, both big-endian.
    pub const HEADER_LEN: usize = 8;
    /// The longest body that is read.
    pub const MAX_BODY: usize = 64 * 1024;

    /// The result of [`read`].
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Read {
        /// More bytes are needed: this many in all.
        More(usize),
        /// There is no preamble: the bytes are the application's.
        Absent,
        /// A preamble of so many bytes, and the peer if its body could be read.
        Peer(usize, Option<Arc<PeerInfo>>),
    }

    /// Reads the preamble at the start of a connection.
    pub fn read(bytes: &[u8]) -> Read {
        let magic = MAGIC.to_be_bytes();
        let known = bytes.len().min(magic.len());
        if bytes[..known] != magic[..known] {
            return Read::Absent;
        }
        let Some(length) = bytes.get(4..HEADER_LEN) else {
            return Read::More(HEADER_LEN);
        };
        let length = length
            .iter()
            .fold(0usize, |length, byte| length << 8 | usize::from(*byte));
        if length > MAX_BODY {
            return Read::Absent;
        }
        let end = HEADER_LEN + length;

        match bytes.get(HEADER_LEN..end) {
            None => Read::More(end),
            Some(body) => Read::Peer(end, peer_of(body)),
        }
    }

    fn peer_of(body: &[u8]) -> Option<Arc<PeerInfo>> {
        let any = Any::decode(body).ok()?;
        let outer: Struct = meltemi_proto::unpack(&any).ok()?;
        match outer.fields.get(HEADER)?.kind.as_ref()? {
            Kind::StructValue(metadata) => Some(Arc::new(PeerInfo::from_struct(metadata))),
            _ => None,
        }
    }

    /// Writes the preamble of this proxy.
    pub fn write(id: &str, info: &PeerInfo) -> Vec<u8> {
        let text = Value {
            kind: Some(Kind::StringValue(id.to_owned())),
        };
        let metadata = Value {
            kind: Some(Kind::StructValue(info.to_struct())),
        };
        let outer = Struct {
            fields: [(HEADER.to_owned(), metadata), (HEADER_ID.to_owned(), text)].into(),
        };
        let body = Any {
            type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
            value: outer.encode_to_vec(),
        }
        .encode_to_vec();

        let mut out = MAGIC.to_be_bytes().to_vec();

        // A node's metadata is far below 4 GiB.
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(&body);

        out
    }
}

#[cfg(test)]
mod laws;
