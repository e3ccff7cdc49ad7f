//! Undoing an attachment: for DEL, for GC, and for an ADD that has failed or was killed.

use std::collections::BTreeSet;

use crate::conf::PluginName;
use crate::env::Attachment;
use crate::error::Error;
use crate::flow;
use crate::ipam::delegate::Plugin;
use crate::ipam::store;
use crate::link::{Socket, veth};
use crate::rules::Rules;
use crate::state::record::{Record, State};

/// What is undone. The caller holds the attachment's lock.
pub(super) struct Detach<'a> {
    /// The network.
    pub(super) network: &'a str,
    /// The attachment.
    pub(super) attachment: &'a Attachment,
    /// The IPAM plugin that the configuration names.
    pub(super) plugin: Option<&'a Plugin<'a>>,
}

/// Why it is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The runtime has said so.
    Del,
    /// This call's ADD has failed.
    Failed,
    /// It is of another call, and an IPAM plugin must be told which one is meant.
    Leftover,
}

impl Detach<'_> {
    /// Removes all that there may be. What isn't there is no error; whatever fails, the rest is tried all the same, and the
    /// record stays for another attempt.
    ///
    pub(super) fn run(&self, route: &mut Socket, why: Why) -> Result<(), Error> {
        let mut failures = Vec::new();
        let record = match Record::read(self.network, self.attachment) {
            Ok(record) => record,
            // The names of everything follow from the call.
            Err(Error::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(record) = record.clone().filter(|record| record.state == State::Added) {
            failures.extend(Record { state: State::Pending, ..record }.write().err());
        }
        let host_veth = veth::host_veth(self.network, self.attachment);
        failures.extend(self.remove_kernel_objects(route, record.as_ref(), host_veth, why).err());
        let of_record =
            |record: &Record| record.ips.iter().find_map(|ip| flow::delete_of(&record.host_ports, *ip).err());
        failures.extend(record.as_ref().and_then(of_record));
        failures.extend(self.release(record.as_ref(), why).err());
        if failures.is_empty() {
            failures.extend(Record::remove(self.network, self.attachment).err());
        }
        Error::all(failures)
    }

    /// The pair first, so that the container sends nothing any more when nothing checks it.
    fn remove_kernel_objects(
        &self,
        route: &mut Socket,
        record: Option<&Record>,
        host_veth: String,
        why: Why,
    ) -> Result<(), Error> {
        let mut rules = match Rules::open() {
            Ok(rules) => rules,
            Err(error) => return Err(error.besides(route.delete_veth(&host_veth))),
        };
        let link = match why {
            Why::Del => route.delete_veth_promptly(&host_veth, rules.as_fd()),
            Why::Failed | Why::Leftover => route.delete_veth(&host_veth),
        };
        let elements = match record.map(|record| rules.remove(record)).transpose() {
            Ok(Some(true)) => Ok(()),
            Ok(_) => rules.sweep(&BTreeSet::from([host_veth])),
            Err(error) => Err(error),
        };
        Error::all([link, elements].into_iter().filter_map(Result::err))
    }

    fn release(&self, record: Option<&Record>, why: Why) -> Result<(), Error> {
        let other = (why == Why::Leftover).then_some(self.attachment);
        // The plugin that gave the addresses may be another than the one that the configuration names by now.
        let recorded = record.and_then(|record| record.ipam_plugin.as_deref()).map(PluginName::parse).transpose()?;
        match (self.plugin, recorded) {
            (Some(plugin), Some(name)) => Plugin { name: &name, ..plugin.clone() }.del(other),
            // What it gave in a call that failed is recorded.
            (Some(plugin), None) if record.is_none() && why == Why::Del => plugin.del(other),
            (None, Some(name)) => Err(Error::Delegate {
                plugin: name.as_str().into(),
                verb: "DEL",
                problem: "it gave the addresses, and the configuration does not name it any more".into(),
                code: None,
            }),
            _ => store::release(self.network, self.attachment),
        }
    }
}
