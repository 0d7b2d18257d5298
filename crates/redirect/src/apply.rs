//! Applies a rule set to the network namespace of the calling thread in one nf_tables transaction.

use std::io;

use crate::netlink::{Family, Socket};
use crate::render::nf_tables;
use crate::rules::RuleSet;

/// Why the rules were not applied. The previous rules stay in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The process lacks CAP_NET_ADMIN in this network namespace.
    #[error(
        "changing packet rules is not permitted here (CAP_NET_ADMIN in this network namespace is missing)"
    )]
    Forbidden,
    /// The kernel lacks nf_tables or one of its parts.
    #[error(
        "the kernel lacks nf_tables or one of its parts (needs NF_TABLES, NFT_NAT, NFT_REDIR, NFT_NUMGEN): {0}; try `modprobe nf_tables nft_redir nft_nat nft_numgen` as root"
    )]
    Unsupported(io::Error),
    /// The kernel refused the rules for another reason.
    #[error("the kernel refused the packet rules: {0}")]
    Refused(io::Error),
}

impl ApplyError {
    fn from_io(error: io::Error) -> Self {
        // EPROTONOSUPPORT: no netfilter netlink at all. ENOENT, EOPNOTSUPP: an expression or chain
        // type is missing.
        const ENOENT: i32 = 2;
        const EPROTONOSUPPORT: i32 = 93;
        const EOPNOTSUPP: i32 = 95;

        match error.raw_os_error() {
            _ if error.kind() == io::ErrorKind::PermissionDenied => Self::Forbidden,
            Some(ENOENT | EPROTONOSUPPORT | EOPNOTSUPP) => Self::Unsupported(error),
            _ => Self::Refused(error),
        }
    }
}

/// Replaces this crate's table by `rules`. Applying the same rules again changes nothing.
///
/// # Errors
/// See [`ApplyError`]; the previous rules then stay in force.
pub fn apply(rules: &RuleSet) -> Result<(), ApplyError> {
    Socket::open(Family::Netfilter)
        .and_then(|socket| apply_on(&socket, rules))
        .map_err(ApplyError::from_io)
}

/// Like [`apply`], for the namespace in which `socket` was opened.
pub fn apply_on(socket: &Socket, rules: &RuleSet) -> io::Result<()> {
    socket.transaction(nf_tables::NFNL_SUBSYS_NFTABLES, &nf_tables::replace(rules))
}

/// Removes this crate's table. Succeeds if the table does not exist.
pub fn remove(ipv6: bool) -> Result<(), ApplyError> {
    Socket::open(Family::Netfilter)
        .and_then(|socket| {
            socket.transaction(nf_tables::NFNL_SUBSYS_NFTABLES, &nf_tables::remove(ipv6))
        })
        .map_err(ApplyError::from_io)
}
