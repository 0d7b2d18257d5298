//! Addresses as Envoy writes them.

use std::net::{IpAddr, SocketAddr};

use meltemi_filters::{Rejection, Scope, conn};
use meltemi_proto::envoy::config::core::v3 as core;

/// Where to listen or to connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A host name and port, to be resolved.
    Name(Box<str>, u16),
    /// A Unix socket; `@` at the start means the abstract namespace.
    Pipe(Box<str>),
    /// An internal listener, by name.
    Internal(Box<str>),
}

impl Address {
    /// Compiles Envoy's message.
    pub fn compile(message: &core::Address, scope: &mut Scope) -> Result<Self, Rejection> {
        match scope.required("address", message.address.as_ref())? {
            core::address::Address::SocketAddress(socket) => Self::compile_socket(socket, scope),
            core::address::Address::Pipe(pipe) if pipe.path.is_empty() => {
                scope.refuse("a pipe without path")
            }
            core::address::Address::Pipe(pipe) => Ok(Self::Pipe(pipe.path.as_str().into())),
            core::address::Address::EnvoyInternalAddress(internal) => match &internal
                .address_name_specifier
            {
                Some(core::envoy_internal_address::AddressNameSpecifier::ServerListenerName(
                    name,
                )) => Ok(Self::Internal(name.as_str().into())),
                None => scope.refuse("an internal address without listener name"),
            },
        }
    }

    /// Compiles an optional message that must be there.
    pub fn compile_required(
        message: Option<&core::Address>,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let message = scope.required("address", message)?;
        scope.within("address", |scope| Self::compile(message, scope))
    }

    /// Compiles a socket address.
    pub fn compile_socket(
        message: &core::SocketAddress,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        if message.protocol != core::socket_address::Protocol::Tcp as i32 {
            return scope.refuse("only TCP addresses are served");
        }
        scope.unsupported(
            "network_namespace_filepath",
            !message.network_namespace_filepath.is_empty(),
        );

        let port = match &message.port_specifier {
            Some(core::socket_address::PortSpecifier::PortValue(port)) => {
                u16::try_from(*port).map_err(|_| scope.reject(format!("{port} is not a port")))?
            }
            Some(core::socket_address::PortSpecifier::NamedPort(_)) => {
                return scope.refuse("named ports are not served");
            }
            None => 0,
        };

        if message.address.is_empty() {
            return scope.refuse("an empty address");
        }

        Ok(match message.address.parse::<IpAddr>() {
            Ok(ip) => Self::Socket(SocketAddr::new(conn::canonical(ip), port)),
            Err(_) => Self::Name(message.address.as_str().into(), port),
        })
    }

    /// The IP address and port, if it is one.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            _ => None,
        }
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Socket(address) => Some(address.port()),
            Self::Name(_, port) => Some(*port),
            Self::Pipe(_) | Self::Internal(_) => None,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Pipe(path) => f.write_str(path),
            Self::Internal(name) => write!(f, "envoy://{name}"),
        }
    }
}
