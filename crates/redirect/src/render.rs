//! The rule set as other tools take it: nf_tables netlink messages, `nft -f` text,
//! `iptables-restore` text.

pub mod iptables;
pub mod nf_tables;
pub mod nft;
