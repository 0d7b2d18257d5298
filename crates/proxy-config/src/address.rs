//! Addresses as Envoy writes them.

use std::net::{IpAddr, SocketAddr};

use meltemi_filters::{Rejection, Scope, conn};
use meltemi_proto::envoy::config::core::v3 as core;

use crate::convert::not_honoured;

/// Where to listen or to connect. Source: Envoy `config.core.v3.Address`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A host name, which is to be resolved, and a port.
    Name(Box<str>, u16),
    /// The path of a Unix socket; `@` at its start means the abstract namespace.
    Pipe(Box<str>),
    /// The name of an internal listener.
    Internal(Box<str>),
}

impl Address {
    pub(crate) fn compile(message: &core::Address, scope: &mut Scope) -> Result<Self, Rejection> {
        use core::envoy_internal_address::AddressNameSpecifier;

        match scope.required("address", message.address.as_ref())? {
            core::address::Address::SocketAddress(socket) => Self::compile_socket(socket, scope),
            core::address::Address::Pipe(core::Pipe {
                path,
                // Of a socket that somebody else listens on.
                mode: _,
            }) => match path.as_str() {
                "" => scope.refuse("a pipe without path"),
                path => Ok(Self::Pipe(path.into())),
            },
            core::address::Address::EnvoyInternalAddress(core::EnvoyInternalAddress {
                address_name_specifier,
                // Tells endpoints of one internal listener apart; their order does that here.
                endpoint_id: _,
            }) => match address_name_specifier {
                Some(AddressNameSpecifier::ServerListenerName(name)) => {
                    Ok(Self::Internal(name.as_str().into()))
                }
                None => scope.refuse("an internal address without listener name"),
            },
        }
    }

    /// Compiles a message that must be there.
    pub(crate) fn compile_required(
        message: Option<&core::Address>,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let message = scope.required("address", message)?;
        scope.within("address", |scope| Self::compile(message, scope))
    }

    /// Either [`Address::Socket`] or [`Address::Name`].
    pub(crate) fn compile_socket(
        message: &core::SocketAddress,
        scope: &mut Scope,
    ) -> Result<Self, Rejection> {
        let core::SocketAddress {
            protocol,
            address,
            resolver_name,
            ipv4_compat,
            network_namespace_filepath,
            port_specifier,
        } = message;

        if *protocol != core::socket_address::Protocol::Tcp as i32 {
            return scope.refuse("only TCP addresses are served");
        }

        // A socket of `[::]` takes IPv6 connections alone; see `ProxySnapshot::find_listener`.
        not_honoured!(
            scope,
            resolver_name,
            ipv4_compat,
            network_namespace_filepath,
        );

        let port = match port_specifier {
            Some(core::socket_address::PortSpecifier::PortValue(port)) => {
                u16::try_from(*port).map_err(|_| scope.reject(format!("{port} is not a port")))?
            }
            Some(core::socket_address::PortSpecifier::NamedPort(_)) => {
                return scope.refuse("named ports are not served");
            }
            None => 0,
        };

        if address.is_empty() {
            return scope.refuse("an empty address");
        }

        Ok(match address.parse::<IpAddr>() {
            Ok(ip) => Self::Socket(SocketAddr::new(conn::canonical(ip), port)),
            Err(_) => Self::Name(address.as_str().into(), port),
        })
    }

    /// The IP address and port of an [`Address::Socket`].
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            _ => None,
        }
    }

    /// The port of an [`Address::Socket`] or [`Address::Name`].
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
