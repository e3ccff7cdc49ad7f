//! What the plugin writes down of each attachment, for itself and for the daemon.
//!
//! A record is written before anything is made for the attachment and removed after the last of it is gone. So whatever
//! the plugin was doing when it was killed, a record says what there may be.
//!
//! # For the daemon
//! `tollgate-proxy` reports the pods of its node by these files: the attachments that have `state` "added" and a `pod`.
//!
//! - A file under `/run/tollgate/cni/networks/*/attachments/` whose name ends in `.json` is a record; all others, such as
//!   half-written ones, are not. A watch (inotify) for files renamed into and removed from these directories hears of every
//!   change; new networks are new directories.
//! - It is JSON, as [`Record`] has it. A reader passes over fields that it does not know, and over a record with a `version`
//!   that it does not know.
//! - A record that goes means that the pod is detached: its addresses may be another's a minute later.
//! - After a reboot there are none.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::conf::Port;
use crate::conf::mac::Mac;
use crate::conf::port::HostPort;
use crate::env::{Attachment, Pod};
use crate::error::Error;

/// What is known of one attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of this format.
    pub version: u32,
    /// How far it has come.
    pub state: State,
    /// The network.
    pub network: String,
    /// The container, as its runtime names it.
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
    /// The container's network namespace, as it was told at ADD.
    pub netns: PathBuf,
    /// Which Pod the container is of, where the runtime says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The node's end of the pair.
    pub host_veth: String,
    /// The bridge.
    pub bridge: String,
    /// What the port on it is like.
    pub port: Port,
    /// The container's hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The container's addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Ports of the node that lead to the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
    /// Whether it is masqueraded.
    #[serde(default)]
    pub ip_masq: bool,
    /// The plugin that gave the addresses, where that isn't the built-in IPAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam_plugin: Option<String>,
    /// When ADD began, as RFC 3339 has it.
    pub since: String,
}

/// How far an attachment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// ADD is at it, or was when it was killed; or DEL.
    Pending,
    /// ADD has succeeded.
    Added,
}

/// The version that is written.
pub const VERSION: u32 = 1;

impl Record {
    /// Whose it is.
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// Writes it, in place of the one before. The caller holds the attachment's lock.
    pub fn write(&self) -> Result<(), Error> {
        let path = path(&self.network, &self.attachment());
        let mut text = serde_json::to_vec_pretty(self).map_err(|cause| Error::file("write", &path, cause.into()))?;
        text.push(b'\n');
        super::replace(&path, &text)
    }

    /// Reads an attachment's, if there is one.
    pub fn read(network: &str, attachment: &Attachment) -> Result<Option<Self>, Error> {
        let path = path(network, attachment);
        let Some(text) = super::read(&path)? else { return Ok(None) };
        let read = serde_json::from_str(&text);
        read.map(Some).map_err(|error| Error::Damaged { path, line: error.line(), problem: error.to_string() })
    }

    /// Removes an attachment's, and what there may be of one that was not written to its end.
    pub fn remove(network: &str, attachment: &Attachment) -> Result<(), Error> {
        let path = path(network, attachment);
        super::remove(&path)?;
        super::remove(&super::beside(&path))
    }
}

/// The attachments of a network that there are records of, also of such that were not written to their end.
pub fn attachments(network: &str) -> Result<BTreeSet<Attachment>, Error> {
    let names = super::list(&super::network_dir(network).join("attachments"))?;
    let parse = |name: &String| {
        let (container_id, ifname) =
            name.strip_suffix(super::BESIDE).unwrap_or(name).strip_suffix(".json")?.split_once(':')?;
        Some(Attachment { container_id: container_id.into(), ifname: ifname.into() })
    };
    Ok(names.iter().filter_map(parse).collect())
}

/// Neither a container's name nor an interface's has a colon.
fn path(network: &str, attachment: &Attachment) -> PathBuf {
    let Attachment { container_id, ifname } = attachment;
    super::network_dir(network).join("attachments").join(format!("{container_id}:{ifname}.json"))
}
