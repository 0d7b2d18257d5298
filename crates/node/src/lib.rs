//! One machine as a mesh: workloads as processes in network namespaces of their own, with captured
//! traffic, without root.
//!
//! In: directories of Kubernetes YAML (Deployments become workloads), an image map, programs added
//! by hand. Out: running processes, `core/v1` Pods in files for the control plane to read, and an
//! API on a Unix socket. The supervisor ([`up()`]) stays in the machine's own namespaces; the node
//! runs in namespaces of its own; clients use [`client`]. [`dispatch`] must be the first thing that
//! `main` calls.
//!
//! Never imports the proxy, translation or xDS: sidecars and the control plane are programs that it
//! starts.

pub mod api;
pub mod client;
pub mod config;

mod addresses;
mod child;
mod context;
mod control;
mod desired;
mod dialler;
mod dns;
mod etc_files;
mod events;
mod fd_socket;
mod gateways;
mod host_sockets;
mod image_files;
mod images;
mod keeper;
mod kernel;
mod launch;
mod limits;
mod links;
mod log;
mod memfd;
mod netns;
mod network;
mod node;
mod objects;
mod pods;
mod programs;
mod publication;
mod readiness;
mod relay;
mod reporter;
mod resolver;
mod roles;
mod run_files;
mod run_services;
mod sandbox;
mod service_ports;
mod services;
mod settings;
mod spec;
mod supervise;
mod supervised;
mod sys;
mod token;
mod up;
mod workload;

pub use client::{Client, ClientError};
pub use config::UpOptions;
pub use dialler::{DialMap, DialMapError};
pub use events::{AppliedObject, Event, ObjectChange, PublishedPort, WorkloadChange};
pub use images::{ImageEntry, ImageMap, ImageMapError};
pub use limits::raise_open_files;
pub use publication::ServicePublication;
pub use roles::dispatch;
pub use spec::{ContainerPort, Origin, ProxyKind, WorkloadKey};
pub use up::up;
