//! What this machine's kernel has, of that which cases need and no package brings.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

use socket2::{Domain, Protocol, Socket, Type};

use crate::isolate;

/// Whether this kernel has SCTP sockets (`CONFIG_IP_SCTP`): they are what a server and a client need, whatever netfilter
/// knows of the protocol.
pub fn kernel_has_sctp() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::SCTP)).is_ok())
}

/// Whether this kernel has nftables for both families: user-mode Linux as Debian builds it has the core and no family.
///
/// True where that can't be tried, so that the cases themselves tell what is amiss.
pub(crate) fn kernel_has_nftables() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        isolate::ensure_isolated().is_err()
            || ["ip", "ip6"].into_iter().all(|family| {
                let mut nft = Command::new("nft");
                let nft = nft.args(["add", "table", family, "tollgate-lab"]).stderr(Stdio::null());
                nft.status().map_or(true, |status| status.success())
            })
    })
}
