//! Pods on one bridge of this node: their packets to each other cross the bridge alone, and only br_netfilter shows them
//! to netfilter. Without it, an answer between two of them is not translated back, and the client does not know it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tollgate_model::name::IpFamily;

/// The switches are those of the network namespace that reads them.
const SWITCHES: &str = "/proc/sys/net/bridge";

/// The switch could not be read or set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {} to 1, without which pods on one bridge can't reach each other through Services", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Sees to it that bridged packets of these families meet netfilter. Where the kernel lacks br_netfilter, says so in the
/// log: nodes without bridges do well without it.
pub(crate) fn ensure_calls_netfilter(families: &[IpFamily]) -> Result<(), Error> {
    if !Path::new(SWITCHES).exists() {
        tracing::info!("br_netfilter is not loaded: pods on one bridge of this node need it (modprobe br_netfilter)");
        return Ok(());
    }
    for family in families {
        let path = Path::new(SWITCHES).join(match family {
            IpFamily::V4 => "bridge-nf-call-iptables",
            IpFamily::V6 => "bridge-nf-call-ip6tables",
        });
        ensure_is_one(&path).map_err(|source| Error { path, source })?;
    }
    Ok(())
}

fn ensure_is_one(path: &Path) -> io::Result<()> {
    if fs::read_to_string(path)?.trim() == "1" {
        return Ok(());
    }
    fs::write(path, "1")?;
    tracing::info!(switch = %path.display(), "switched on: Services between pods on one bridge need it");
    Ok(())
}
