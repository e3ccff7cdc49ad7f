//! Pods on one bridge of this node: their packets to each other cross the bridge alone, and only br_netfilter shows them
//! to netfilter. Without it, an answer between two of them is not translated back, and the client does not know it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use tollgate_model::name::IpFamily;

/// The switches are those of the network namespace that reads them.
const SWITCHES: &str = "/proc/sys/net/bridge";
const MODULE: &str = "br_netfilter";
/// As the kernel itself calls it (`/proc/sys/kernel/modprobe`).
const MODPROBE: &str = "/sbin/modprobe";

/// Why bridged packets can't be made to meet netfilter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The switch could not be read or set.
    #[error("cannot set {} to 1, without which pods on one bridge can't reach each other through Services", path.display())]
    Switch {
        /// The switch.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel has no such switch.
    #[error(
        "br_netfilter is not loaded, without which pods on one bridge can't reach each other through Services, and loading it \
         failed ({0}); load it with `modprobe br_netfilter`"
    )]
    NotLoaded(String),
}

/// Sees to it that bridged packets of these families meet netfilter. Loads the module where it is not loaded.
pub(crate) fn ensure_calls_netfilter(families: &[IpFamily]) -> Result<(), Error> {
    if !Path::new(SWITCHES).exists() {
        load_module()?;
    }
    for family in families {
        let path = Path::new(SWITCHES).join(match family {
            IpFamily::V4 => "bridge-nf-call-iptables",
            IpFamily::V6 => "bridge-nf-call-ip6tables",
        });
        ensure_is_one(&path).map_err(|source| Error::Switch { path, source })?;
    }
    Ok(())
}

fn load_module() -> Result<(), Error> {
    let output = Command::new(MODPROBE).arg(MODULE).output();
    let output = output.map_err(|error| Error::NotLoaded(format!("{MODPROBE}: {error}")))?;
    if !Path::new(SWITCHES).exists() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::NotLoaded(format!("{}: {}", output.status, said.trim())));
    }
    tracing::info!(module = MODULE, "loaded: Services between pods on one bridge need it");
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
