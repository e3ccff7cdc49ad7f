//! Service ports to the maps' entries. Pure: it allots ids and slots and remembers them, and does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tollgate_ebpf_abi::{Address, AddressValue, MemberKey, MemberValue, ServiceKey, ServiceValue, address_flags};
use tollgate_model::name::{IpFamily, Protocol, ServicePortName};
use tollgate_model::snapshot::{ServicePort, Snapshot};

use super::object::{Changes, Delta, MAX_LABEL, NameValue, Objects};
use super::placement::{NoSlots, Placement, Rules};
use super::slot::{Run, Slots};
use crate::backend::NodeConfig;
use crate::backend::label::label;

/// The most slots that the array may have: 512 MiB of kernel memory.
const MAX_SLOTS: u32 = 1 << 24;
/// The key of `NAMES` under which the highest id that was ever given is kept: no Service port has it.
const HIGHEST_ID: u32 = 0;

/// What the maps hold for the Service ports placed so far.
#[derive(Debug)]
pub(crate) struct Plan {
    families: Vec<IpFamily>,
    rules: Rules,
    /// By family, in the order of [`IpFamily::ALL`].
    placements: BTreeMap<ServicePortName, [Option<Placement>; 2]>,
    /// Who holds each address.
    holders: BTreeMap<Address, Holders>,
    node_port_addresses: BTreeSet<Address>,
    slots: Slots,
    ids: BTreeSet<u32>,
    /// The highest that was ever given.
    highest_id: u32,
    sizes: Sizes,
    /// Only during the first sync: what the maps hold, for ids and slots to stay as they are.
    listed: Arc<Objects>,
    listed_ids: BTreeMap<NameKey, u32>,
}

type NameKey = ([u8; MAX_LABEL], u8, u8);

/// The placements with an address of their own, ClusterIPs first: `(is no ClusterIP, id)`.
type Holders = BTreeSet<(bool, u32)>;

/// How many entries the maps must have room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) slots: usize,
    pub(crate) names: usize,
    pub(crate) members: usize,
    pub(crate) services: usize,
    pub(crate) addresses: usize,
}

/// What changes while Service ports are placed: the entries touched, as they were and as they will be.
#[derive(Debug, Default)]
struct Edit {
    changes: Changes,
    members: [BTreeMap<MemberKey, MemberValue>; 2],
    services: [BTreeMap<ServiceKey, ServiceValue>; 2],
    /// As they were.
    addresses: BTreeMap<Address, Option<AddressValue>>,
}

impl Plan {
    /// A plan without any Service port.
    pub(crate) fn new(node: &NodeConfig) -> Self {
        Self {
            families: node.families.clone(),
            rules: Rules { masquerade_all: node.masquerade_all },
            placements: BTreeMap::new(),
            holders: BTreeMap::new(),
            node_port_addresses: BTreeSet::new(),
            slots: Slots::new(MAX_SLOTS),
            ids: BTreeSet::new(),
            highest_id: 0,
            sizes: Sizes::default(),
            listed: Arc::default(),
            listed_ids: BTreeMap::new(),
        }
    }

    /// Takes over what the maps hold: until [`forget_listed`](Self::forget_listed), Service ports are placed where they are
    /// there already. To be called before anything is placed, and when no program can be about to read a slot that no entry
    /// of `SERVICES` leads to.
    pub(crate) fn adopt(&mut self, listed: Arc<Objects>) {
        let ids = listed.services.values().map(|value| value.service_id).chain(listed.names.keys().copied());
        let noted = listed.names.get(&HIGHEST_ID).and_then(|value| value.label().parse().ok()).unwrap_or(0);
        self.highest_id = ids.fold(noted, u32::max);
        self.slots.adopt(runs(&listed));
        let names = listed.names.iter().filter(|(id, _)| **id != HIGHEST_ID);
        self.listed_ids = names.map(|(id, value)| (value.key(), *id)).collect();
        self.listed = listed;
    }

    /// Ends [`adopt`](Self::adopt): what the maps hold and nobody wants rests after the next commit, and is free then.
    pub(crate) fn forget_listed(&mut self) {
        let placements = self.placements.values().flatten().flatten();
        let mut owned: BTreeMap<u32, Run> = placements.flat_map(Placement::runs).map(|run| (run.first, run)).collect();
        let end = self.slots.end();
        for run in runs(&self.listed).into_iter().filter(|run| run.len > 0 && run.end() <= end) {
            // Two that overlap are somebody else's work: one of them is enough, and the rest is never used again.
            let before = owned.range(..run.end()).next_back();
            if before.is_none_or(|(_, other)| other.end() <= run.first) {
                self.slots.retire(run);
                owned.insert(run.first, run);
            }
        }
        self.listed = Arc::default();
        self.listed_ids = BTreeMap::new();
    }

    /// Takes in what a snapshot says of the node itself, places each of these Service ports anew, or removes it; returns what
    /// that changes, and who is refused: they have nothing in the maps then.
    pub(crate) fn update(
        &mut self,
        snapshot: &Snapshot,
        changes: &[(&ServicePortName, Option<&ServicePort>)],
        now: Duration,
    ) -> (Changes, Vec<(ServicePortName, NoSlots)>) {
        self.slots.wake(now);
        let mut edit = Edit::default();
        self.update_node(snapshot, &mut edit);
        let mut refused = Vec::new();
        // All go before any comes, because a frontend may move from one to another.
        let old: Vec<_> = changes.iter().map(|(name, _)| self.remove(name, &mut edit)).collect();
        for ((name, wanted), mut old) in changes.iter().zip(old) {
            let mut placed = [None, None];
            for (family, place) in self.families.clone().into_iter().map(|family| (family, index(family))) {
                let Some(wanted) = wanted else { continue };
                let had = old[place].take();
                match self.place(wanted, family, had.as_ref(), &mut edit) {
                    Ok(placement) => placed[place] = placement,
                    Err(refusal) => refused.push(((*name).clone(), refusal)),
                }
                self.give_up(name, family, had, placed[place].as_ref(), &mut edit);
            }
            for (family, had) in IpFamily::ALL.into_iter().zip(old) {
                self.give_up(name, family, had, None, &mut edit);
            }
            if placed.iter().any(Option::is_some) {
                self.placements.insert((*name).clone(), placed);
            }
        }
        (self.finish(edit), refused)
    }

    /// The kernel holds what the plan says, and leads to no slot that was given up.
    pub(crate) fn committed(&mut self, now: Duration) {
        self.slots.committed(now);
    }

    /// The id of a Service port in a family.
    pub(crate) fn id(&self, name: &ServicePortName, family: IpFamily) -> Option<u32> {
        Some(self.placements.get(name)?[index(family)].as_ref()?.id)
    }

    /// How much room the maps must have.
    pub(crate) fn sizes(&self) -> Sizes {
        let addresses = self.holders.len() + self.node_port_addresses.len();
        Sizes { slots: self.slots.end() as usize, names: self.ids.len() + 1, addresses, ..self.sizes }
    }

    /// Everything that the maps should hold.
    pub(crate) fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        let (mut slots, mut members, mut services, mut names) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (name, family, placement) in self.placements() {
            slots.extend(placement.fresh_slots(None));
            members.extend(placement.members());
            services.extend(placement.services());
            names.push((placement.id, name_value(name, family)));
        }
        names.push((HIGHEST_ID, self.highest()));
        let addresses = self.holders.keys().chain(&self.node_port_addresses);
        objects.addresses = addresses.filter_map(|address| Some((*address, self.address(address)?))).collect();
        objects.slots = slots.into_iter().collect();
        objects.members = members.into_iter().collect();
        objects.services = services.into_iter().collect();
        objects.names = names.into_iter().collect();
        objects
    }

    /// Every Service port that has something in a family.
    pub(crate) fn placements(&self) -> impl Iterator<Item = (&ServicePortName, IpFamily, &Placement)> {
        self.placements.iter().flat_map(|(name, placed)| {
            let families = IpFamily::ALL.into_iter().zip(placed);
            families.filter_map(move |(family, placement)| Some((name, family, placement.as_ref()?)))
        })
    }

    fn update_node(&mut self, snapshot: &Snapshot, edit: &mut Edit) {
        // A loopback address is each network namespace's own: a pod that dials it means itself.
        let is_ours = |ip: &&std::net::IpAddr| self.families.contains(&(**ip).into()) && !ip.is_loopback();
        let wanted: BTreeSet<_> =
            snapshot.node_port_addresses.iter().filter(is_ours).copied().map(Address::from).collect();
        if wanted == self.node_port_addresses {
            return;
        }
        for address in wanted.symmetric_difference(&self.node_port_addresses) {
            edit.addresses.insert(*address, self.address(address));
        }
        self.node_port_addresses = wanted;
    }

    fn place(
        &mut self,
        wanted: &ServicePort,
        family: IpFamily,
        old: Option<&Placement>,
        edit: &mut Edit,
    ) -> Result<Option<Placement>, NoSlots> {
        let recovered = old.is_none().then(|| self.recover(wanted, family)).flatten();
        let known = old.or(recovered.as_ref());
        let id = known.map_or_else(|| self.next_id(), |known| known.id);
        let Some(placement) = Placement::new(wanted, family, self.rules, id, known, &mut self.slots)? else {
            return Ok(None);
        };
        edit.changes.slots.extend(placement.fresh_slots(known));
        edit.members[1].extend(placement.members());
        edit.services[1].extend(placement.services());
        self.ids.insert(id);
        if known.is_none() {
            self.highest_id = self.highest_id.max(id);
            edit.changes.names.put.push((id, name_value(&wanted.name, family)));
        }
        for (address, is_cluster_ip) in placement.addresses() {
            edit.note_address(address, || self.address(&address));
            self.holders.entry(address).or_default().insert((!is_cluster_ip, id));
        }
        self.sizes.members += placement.members().count();
        self.sizes.services += placement.frontends.len();
        Ok(Some(placement))
    }

    fn recover(&self, wanted: &ServicePort, family: IpFamily) -> Option<Placement> {
        let id = *self.listed_ids.get(&name_value(&wanted.name, family).key())?;
        // Two names may be one label, in theory.
        (!self.ids.contains(&id)).then_some(())?;
        Some(Placement::recover(wanted, family, id, &self.listed))
    }

    /// Its id and its runs stay taken until [`give_up`](Self::give_up).
    fn remove(&mut self, name: &ServicePortName, edit: &mut Edit) -> [Option<Placement>; 2] {
        let old = self.placements.remove(name).unwrap_or_default();
        for placement in old.iter().flatten() {
            edit.members[0].extend(placement.members());
            edit.services[0].extend(placement.services());
            for (address, is_cluster_ip) in placement.addresses() {
                edit.note_address(address, || self.address(&address));
                if let Some(holders) = self.holders.get_mut(&address) {
                    holders.remove(&(!is_cluster_ip, placement.id));
                    if holders.is_empty() {
                        self.holders.remove(&address);
                    }
                }
            }
            self.sizes.members -= placement.members().count();
            self.sizes.services -= placement.frontends.len();
        }
        old
    }

    /// Gives up what an old placement has and the new one has not.
    fn give_up(
        &mut self,
        name: &ServicePortName,
        family: IpFamily,
        old: Option<Placement>,
        new: Option<&Placement>,
        edit: &mut Edit,
    ) {
        let Some(old) = old else { return };
        old.fresh_runs(new).for_each(|run| self.slots.retire(run));
        if new.is_none() {
            tracing::debug!(service = %name, %family, id = old.id, "gone");
            self.ids.remove(&old.id);
            edit.changes.names.delete.push(old.id);
        }
    }

    fn next_id(&self) -> u32 {
        match self.highest_id.checked_add(1) {
            Some(next) => next,
            // After four thousand million: one that nobody has.
            None => (1..=u32::MAX).find(|id| !self.ids.contains(id)).unwrap_or(u32::MAX),
        }
    }

    fn address(&self, address: &Address) -> Option<AddressValue> {
        let mut value = AddressValue::default();
        if let Some((is_other, id)) = self.holders.get(address).and_then(BTreeSet::first) {
            value.flags |= address_flags::VIP;
            if !is_other {
                value.flags |= address_flags::REFUSE_UNKNOWN;
                value.service_id = *id;
            }
        }
        if self.node_port_addresses.contains(address) {
            value.flags |= address_flags::NODE_PORT;
        }
        (value.flags != 0).then_some(value)
    }

    fn finish(&self, edit: Edit) -> Changes {
        let Edit { mut changes, members, services, addresses } = edit;
        changes.members = Delta::between(&members[0], &members[1]);
        changes.services = Delta::between(&services[0], &services[1]);
        for (address, before) in addresses {
            match self.address(&address) {
                after if after == before => {}
                Some(after) => changes.addresses.put.push((address, after)),
                None => changes.addresses.delete.push(address),
            }
        }
        if !changes.names.put.is_empty() {
            changes.names.put.push((HIGHEST_ID, self.highest()));
        }
        changes
    }

    fn highest(&self) -> NameValue {
        NameValue::new(&self.highest_id.to_string(), Protocol::Tcp, IpFamily::V4)
    }
}

impl Edit {
    /// Notes how an address is, the first time that it is touched.
    fn note_address(&mut self, address: Address, value: impl FnOnce() -> Option<AddressValue>) {
        self.addresses.entry(address).or_insert_with(value);
    }
}

/// The runs that the maps' frontends lead to.
fn runs(objects: &Objects) -> BTreeSet<Run> {
    let values = objects.services.values().filter(|value| value.first_slot.checked_add(value.slots).is_some());
    values.map(|value| Run { first: value.first_slot, len: value.slots }).collect()
}

fn name_value(name: &ServicePortName, family: IpFamily) -> NameValue {
    NameValue::new(&label(name, MAX_LABEL), name.protocol, family)
}

fn index(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 0,
        IpFamily::V6 => 1,
    }
}
