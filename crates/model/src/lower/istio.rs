//! Istio's own APIs to the model.

pub(crate) mod delegate;
pub(crate) mod destination_rule;
pub(crate) mod gateway;
pub(crate) mod gateway_ref;
pub(crate) mod route;
pub(crate) mod security;
pub(crate) mod sidecar;
pub(crate) mod telemetry;
mod unfit;
pub(crate) mod virtual_service;
