//! Capture rules: packet rules that redirect the traffic of a network namespace to a proxy.
//!
//! In: a plan ([`SidecarPlan`], [`RouterPlan`], [`ServicePlan`]), plain data. Out: a [`RuleSet`],
//! which is applied to the current network namespace by netlink ([`apply`]) or rendered as text for
//! other tools ([`render::nft`], [`render::iptables`]). Planning and rendering are pure; only
//! [`apply`] and [`netlink`] use the kernel.
//!
//! Never imports anything of the control plane or the proxy: it knows addresses, ports and marks,
//! not services.

pub mod apply;
pub mod netlink;
pub mod plan;
pub mod render;
pub mod rules;

pub use apply::{ApplyError, apply, remove};
pub use plan::{Exempt, RouterPlan, ServicePlan, ServiceRule, SidecarPlan};
pub use rules::RuleSet;
