//! What the maps should hold, and what differs between two such sets.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use tollgate_ebpf_abi::{
    Address, AddressPort, AddressValue, EndpointValue, MemberKey, MemberValue, ServiceKey, ServiceValue,
};
use tollgate_model::name::{IpFamily, Protocol};

/// The map in which the daemon keeps what ids are called. No program reads it; a daemon that starts and a person who looks do.
pub(crate) const NAMES: &str = "NAMES";
/// The most characters of a Service port's name that are kept.
pub(crate) const MAX_LABEL: usize = 120;

/// A value of [`NAMES`]; its key is a Service port's id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct NameValue {
    /// The name, UTF-8, zeros behind it.
    label: [u8; MAX_LABEL],
    /// IP protocol number.
    protocol: u8,
    /// 4 or 6.
    family: u8,
    /// Zero.
    pad: u16,
}

const _: () = assert!(size_of::<NameValue>() == 124);
// SAFETY: the type is `repr(C)`, holds integers only and, by the size above, has no implicit padding.
unsafe impl aya::Pod for NameValue {}

/// Everything that a sync writes. Of `ENDPOINTS`, the slots that are in use: others hold what was there last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) slots: BTreeMap<u32, EndpointValue>,
    pub(crate) names: BTreeMap<u32, NameValue>,
    pub(crate) members: BTreeMap<MemberKey, MemberValue>,
    pub(crate) services: BTreeMap<ServiceKey, ServiceValue>,
    pub(crate) addresses: BTreeMap<Address, AddressValue>,
}

/// What changes in one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delta<K, V> {
    /// Entries that are new or differ.
    pub(crate) put: Vec<(K, V)>,
    /// Entries that go.
    pub(crate) delete: Vec<K>,
}

/// What changes in all of them. To be written in the order of [`Changes::steps`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) slots: Vec<(u32, EndpointValue)>,
    pub(crate) names: Delta<u32, NameValue>,
    pub(crate) members: Delta<MemberKey, MemberValue>,
    pub(crate) services: Delta<ServiceKey, ServiceValue>,
    pub(crate) addresses: Delta<Address, AddressValue>,
}

/// A part of the changes that goes to one map, in whatever order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    PutSlots(&'a [(u32, EndpointValue)]),
    PutNames(&'a [(u32, NameValue)]),
    PutMembers(&'a [(MemberKey, MemberValue)]),
    PutServices(&'a [(ServiceKey, ServiceValue)]),
    PutAddresses(&'a [(Address, AddressValue)]),
    DeleteAddresses(&'a [Address]),
    DeleteServices(&'a [ServiceKey]),
    DeleteMembers(&'a [MemberKey]),
    DeleteNames(&'a [u32]),
}

impl<K, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self { put: Vec::new(), delete: Vec::new() }
    }
}

impl<K: Ord + Copy, V: Eq + Copy> Delta<K, V> {
    /// From one set of entries to another.
    pub(crate) fn between(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> Self {
        let put = after.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(key, value)| (*key, *value));
        let delete = before.keys().filter(|key| !after.contains_key(key)).copied();
        Self { put: put.collect(), delete: delete.collect() }
    }

    /// How many entries.
    pub(crate) fn len(&self) -> usize {
        self.put.len() + self.delete.len()
    }
}

impl Objects {
    /// What makes the maps hold `wanted`, where they hold these.
    pub(crate) fn changes_to(&self, wanted: &Self) -> Changes {
        Changes {
            slots: Delta::between(&self.slots, &wanted.slots).put,
            names: Delta::between(&self.names, &wanted.names),
            members: Delta::between(&self.members, &wanted.members),
            services: Delta::between(&self.services, &wanted.services),
            addresses: Delta::between(&self.addresses, &wanted.addresses),
        }
    }
}

impl Changes {
    /// In this order a lookup at any moment finds all that what it found before leads to: what is new is written from the
    /// endpoints up to the address, what goes is deleted the other way round.
    pub(crate) fn steps(&self) -> [Step<'_>; 9] {
        [
            Step::PutSlots(&self.slots),
            Step::PutNames(&self.names.put),
            Step::PutMembers(&self.members.put),
            Step::PutServices(&self.services.put),
            Step::PutAddresses(&self.addresses.put),
            Step::DeleteAddresses(&self.addresses.delete),
            Step::DeleteServices(&self.services.delete),
            Step::DeleteMembers(&self.members.delete),
            Step::DeleteNames(&self.names.delete),
        ]
    }

    /// How many entries change.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() + self.names.len() + self.members.len() + self.services.len() + self.addresses.len()
    }

    /// A line for each entry that changes, for people.
    pub(crate) fn describe(&self) -> Vec<String> {
        fn lines<K, V>(map: &str, delta: &Delta<K, V>, show: impl Fn(&K) -> String) -> Vec<String> {
            let put = delta.put.iter().map(|(key, _)| format!("{map}: {} was missing or changed", show(key)));
            put.chain(delta.delete.iter().map(|key| format!("{map}: {} is nobody's", show(key)))).collect()
        }
        let slots = self.slots.iter().map(|(slot, _)| format!("ENDPOINTS: slot {slot} was changed"));
        let mut all: Vec<_> = slots.collect();
        all.extend(lines(NAMES, &self.names, ToString::to_string));
        all.extend(lines("MEMBERS", &self.members, |it| {
            format!("{} of {}", SocketAddr::from(it.endpoint), it.service_id)
        }));
        all.extend(lines("SERVICES", &self.services, show_frontend));
        all.extend(lines("ADDRESSES", &self.addresses, |it| IpAddr::from(*it).to_string()));
        all
    }
}

impl NameValue {
    /// A label is cut where it is too long, which those of [`super::super::label`] are not.
    pub(crate) fn new(label: &str, protocol: Protocol, family: IpFamily) -> Self {
        let mut bytes = [0; MAX_LABEL];
        let len = label.len().min(MAX_LABEL);
        bytes[..len].copy_from_slice(&label.as_bytes()[..len]);
        Self { label: bytes, protocol: protocol.number(), family: family_number(family), pad: 0 }
    }

    /// The name.
    pub(crate) fn label(&self) -> String {
        let len = self.label.iter().position(|byte| *byte == 0).unwrap_or(MAX_LABEL);
        String::from_utf8_lossy(&self.label[..len]).into_owned()
    }

    /// The protocol; `None` where somebody else wrote it.
    pub(crate) fn protocol(&self) -> Option<Protocol> {
        protocol(self.protocol)
    }

    /// The family; `None` where somebody else wrote it.
    pub(crate) fn family(&self) -> Option<IpFamily> {
        IpFamily::ALL.into_iter().find(|family| family_number(*family) == self.family)
    }

    /// In the order of bytes.
    pub(crate) fn key(&self) -> ([u8; MAX_LABEL], u8, u8) {
        (self.label, self.protocol, self.family)
    }
}

impl fmt::Debug for NameValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.label(), self.protocol(), self.family())
    }
}

/// The protocol of that IP number.
pub(crate) fn protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
}

/// The frontend of an address, or a NodePort.
pub(crate) fn service_key(address: Address, port: u16, protocol: Protocol) -> ServiceKey {
    ServiceKey::new(address, port.to_be(), protocol.number())
}

/// Under which address `SERVICES` has the NodePorts of a family.
pub(crate) fn node_port_address(family: IpFamily) -> Address {
    match family {
        IpFamily::V4 => ServiceKey::NODE_PORT_V4,
        IpFamily::V6 => ServiceKey::NODE_PORT_V6,
    }
}

/// An endpoint or a frontend in the maps' words.
pub(crate) fn address_port(ip: IpAddr, port: u16) -> AddressPort {
    SocketAddr::new(ip, port).into()
}

fn family_number(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 6,
    }
}

fn show_frontend(key: &ServiceKey) -> String {
    let protocol = protocol(key.protocol).map_or_else(|| key.protocol.to_string(), |protocol| protocol.to_string());
    let port = u16::from_be(key.port);
    match key.address.is_unspecified() {
        true => format!("NodePort {port}/{protocol}"),
        false => format!("{}/{protocol}", SocketAddr::new(key.address.into(), port)),
    }
}
