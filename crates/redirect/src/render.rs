//! Renders a rule set as nf_tables netlink messages, as text for `nft -f`, and as text for
//! `iptables-restore`.

pub mod iptables;
pub mod nf_tables;
pub mod nft;
