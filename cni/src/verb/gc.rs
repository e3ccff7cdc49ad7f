//! GC: removes what belongs to attachments that the runtime does not know any more.
//!
//! It reads what there is before it reads the records: an ADD that begins meanwhile writes its record first, so that nothing
//! of it is taken for a leftover; what stays locked is being worked on, and is left to whoever does that.

use std::collections::BTreeSet;
use std::time::Duration;

use super::detach::{Detach, Why};
use super::needs;
use crate::conf::Network;
use crate::env::{self, Attachment, Variables, Verb};
use crate::error::Error;
use crate::ipam::delegate::Plugin;
use crate::ipam::store;
use crate::link::{Socket, veth};
use crate::rules::Rules;
use crate::state;
use crate::state::lock::{Lock, What};
use crate::state::record::{self, Record};
use crate::version::SpecVersion;

/// How long a call that is at work on an attachment is waited for. One that was killed may have left a child which has not yet
/// let go of the lock.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn gc(variables: &impl Variables, stdin: &[u8]) -> Result<(), Error> {
    let network = Network::parse(stdin)?;
    needs(Verb::Gc, SpecVersion::V1_1_0, network.version)?;
    let valid = network.valid_attachments.as_ref();
    // An empty list means that nothing is valid; a forgotten one must not.
    let valid: BTreeSet<&Attachment> =
        valid.ok_or_else(|| Error::field("cni.dev/valid-attachments", "is missing"))?.iter().collect();
    let dirs = if network.ipam_plugin.is_some() { env::plugin_dirs(variables)? } else { Vec::new() };
    let plugin = network.ipam_plugin.as_ref().map(|name| Plugin { name, dirs: &dirs, conf: stdin });

    let mut route = Socket::open()?;
    let mut failures = Vec::new();
    for attachment in record::attachments(&network.name)?.iter().filter(|attachment| !valid.contains(attachment)) {
        let Some(_lock) = Lock::within(PATIENCE, What::Attachment(attachment))? else { continue };
        let detach = Detach { network: &network.name, attachment, plugin: plugin.as_ref() };
        failures.extend(detach.run(&mut route, Why::Leftover).err());
    }
    failures.extend(release_leases(&network.name, &valid).err());
    failures.extend(delete_links(&mut route, &network.name).err());
    failures.extend(sweep_rules().err());
    failures.extend(plugin.as_ref().and_then(|plugin| plugin.if_known(Verb::Gc).err()));
    Error::all(failures)
}

/// Addresses of attachments that there is no record of.
fn release_leases(network: &str, valid: &BTreeSet<&Attachment>) -> Result<(), Error> {
    store::release_gone(network, |holder| {
        let is_known = valid.contains(holder) || Record::read(network, holder)?.is_some();
        // An ADD that has just taken its address has no record yet.
        Ok(!is_known && Lock::try_now(What::Attachment(holder))?.is_some())
    })
}

/// Links of this network that there is no record of.
fn delete_links(route: &mut Socket, network: &str) -> Result<(), Error> {
    let prefix = veth::alias_prefix(network);
    let links = route.links()?;
    let known = known_veths()?;
    let gone = links.iter().filter(|link| link.alias.starts_with(&prefix) && !known.contains(&link.name));
    Error::all(gone.filter_map(|link| route.delete_veth(&link.name).err()))
}

/// Elements of pairs that there is no record of.
fn sweep_rules() -> Result<(), Error> {
    let mut rules = Rules::open()?;
    let owners = rules.owners()?;
    let known = known_veths()?;
    let gone: BTreeSet<String> = owners.difference(&known).cloned().collect();
    if gone.is_empty() { Ok(()) } else { rules.sweep(&gone) }
}

/// The node's ends of all networks' pairs.
fn known_veths() -> Result<BTreeSet<String>, Error> {
    let mut known = BTreeSet::new();
    for network in state::networks()? {
        known.extend(record::attachments(&network)?.iter().map(|attachment| veth::host_veth(&network, attachment)));
    }
    Ok(known)
}
