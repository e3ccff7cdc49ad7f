//! The kernel objects of one family, and what differs between two states of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::net::IpAddr;

use ipnet::IpNet;
use tollgate_model::name::{IpFamily, Protocol, ServicePortName};

use super::name::SetName;

/// The tables that we have chains in. Declaration order is the order of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// Translates.
    Nat,
    /// Refuses and drops what was not translated.
    Filter,
}

impl Table {
    /// As the commands call it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// The table of that name, if we have chains in it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Nat, Self::Filter].into_iter().find(|table| table.as_str() == name)
    }
}

/// A chain and its rules, as `iptables-save` writes them, without `-A` and the chain's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) table: Table,
    pub(crate) name: String,
    pub(crate) rules: Vec<String>,
}

/// A rule in a built-in chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) table: Table,
    pub(crate) base: &'static str,
    pub(crate) rule: String,
    /// After everybody else's rules, not before them.
    pub(crate) is_last: bool,
}

/// A member of one of the family's sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: SetName,
    pub(crate) ip: IpAddr,
    /// In sets of frontends.
    pub(crate) port: Option<(Protocol, u16)>,
    /// In the set of frontends and sources.
    pub(crate) source: Option<IpNet>,
}

impl fmt::Display for Element {
    /// As `ipset save` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ip)?;
        if let Some((protocol, port)) = self.port {
            write!(f, ",{protocol}:{port}")?;
        }
        match self.source {
            None => Ok(()),
            Some(net) if net.prefix_len() == net.max_prefix_len() => write!(f, ",{}", net.addr()),
            Some(net) => write!(f, ",{net}"),
        }
    }
}

/// What is one Service port's alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// Its chains in the nat table. Their rules name only each other.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// Sets of clients that stay with an endpoint.
    pub(crate) affinity: BTreeSet<String>,
}

/// What is to be done in one family.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    pub(crate) family: IpFamily,
    /// Sets of the family that are missing.
    pub(crate) sets: BTreeSet<SetName>,
    /// What of each Service port is to be written.
    pub(crate) services: BTreeMap<ServicePortName, Own>,
    /// What Service ports share, with its depth: the deepest is written first, so that nothing leads to what is not there.
    pub(crate) shared: Vec<(usize, Chain)>,
    /// Chains that go.
    pub(crate) deleted: BTreeSet<(Table, String)>,
    /// Rules of built-in chains that go, as often as they are there, and then those that come.
    pub(crate) removed_jumps: Vec<(Table, String, String)>,
    pub(crate) jumps: Vec<Jump>,
    /// Members that come (`true`) or go.
    pub(crate) elements: BTreeMap<Element, bool>,
    /// Members of these sets that make no sense there, as `ipset` writes them; they go.
    pub(crate) foreign: Vec<(SetName, String)>,
    /// Sets that go.
    pub(crate) destroyed: BTreeSet<String>,
}

impl Changes {
    pub(crate) fn new(family: IpFamily) -> Self {
        Self {
            family,
            sets: BTreeSet::new(),
            services: BTreeMap::new(),
            shared: Vec::new(),
            deleted: BTreeSet::new(),
            removed_jumps: Vec::new(),
            jumps: Vec::new(),
            elements: BTreeMap::new(),
            foreign: Vec::new(),
            destroyed: BTreeSet::new(),
        }
    }

    /// Leaves the chains that should go, without their rules.
    pub(crate) fn empty_what_goes(&mut self) {
        let emptied = mem::take(&mut self.deleted).into_iter();
        self.shared.extend(emptied.map(|(table, name)| (0, Chain { table, name, rules: Vec::new() })));
    }

    /// How many objects differ.
    pub(crate) fn len(&self) -> usize {
        let own = self.services.values().map(|own| own.chains.len() + own.affinity.len()).sum::<usize>();
        let shared = self.sets.len() + self.shared.len() + self.deleted.len() + self.destroyed.len();
        own + shared + self.removed_jumps.len() + self.jumps.len() + self.elements.len() + self.foreign.len()
    }
}
