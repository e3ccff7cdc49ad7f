//! DEL: detaches a container. As often as one likes, and whether or not its network namespace is still there: the node's end
//! of the pair and everything else are found by the container's name.

use super::detach::{Detach, Why};
use crate::conf::Network;
use crate::env::{self, Attachment, Variables};
use crate::error::Error;
use crate::ipam::delegate::Plugin;
use crate::link::Socket;
use crate::state::lock::{Lock, What};

pub(super) fn del(variables: &impl Variables, stdin: &[u8]) -> Result<(), Error> {
    let attachment = Attachment::read(variables)?;
    let network = Network::parse(stdin)?;
    let dirs = if network.ipam_plugin.is_some() { env::plugin_dirs(variables)? } else { Vec::new() };
    let plugin = network.ipam_plugin.as_ref().map(|name| Plugin { name, dirs: &dirs, conf: stdin });
    let _lock = Lock::wait(What::Attachment(&attachment))?;
    let detach = Detach { network: &network.name, attachment: &attachment, plugin: plugin.as_ref() };
    detach.run(&mut Socket::open()?, Why::Del)
}
