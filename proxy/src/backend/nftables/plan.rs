//! Service ports to kernel objects, for one family's table. Pure: it allots numbers and remembers them, and does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tollgate_model::name::{IpFamily, Protocol, ServicePortName};
use tollgate_model::snapshot::{ServicePort, Snapshot};

use super::chain::{Detect, Style};
use super::number::{Classes, Numbers};
use super::object::{
    ChainName, Changes, ElementKey, FixedChain, Gathered, Key, Objects, SetName, Value, Verdict, into_changes,
};
use super::placement::{Placement, Pool, Refusal};
use super::word::{Balance, Kind, PoolKind, Word, low};
use crate::backend::{DetectLocal, NodeConfig};

/// What one family's table holds for the Service ports placed so far.
#[derive(Debug)]
pub(crate) struct Plan {
    style: Style,
    /// Whether local pods are told by what the snapshot says of the node.
    follows_pod_cidrs: bool,
    local_pods: Vec<IpNet>,
    service_cidrs: Vec<IpNet>,
    nodeport_ips: BTreeSet<IpAddr>,
    placements: BTreeMap<ServicePortName, Placement>,
    /// Who has a number.
    owners: BTreeMap<u32, ServicePortName>,
    /// Who may not be placed twice.
    frontends: BTreeSet<ElementKey>,
    numbers: Numbers,
    classes: Classes,
    /// Elements that several Service ports may need, with how many do.
    shared: BTreeMap<Key, usize>,
    /// Elements of `hairpin` that nobody needs any more, and that stay until the full sync after. A packet may have been
    /// translated to its own sender just before the commit that takes the endpoint away, and ask `hairpin` just after it:
    /// not masqueraded, it is lost, and so is all that its connection sends again. More of them than needed do no harm.
    lingering: BTreeSet<Key>,
    /// Only during the first sync: what the kernel holds, for numbers, slots and refs to stay as they are.
    listed: Arc<Objects>,
    listed_numbers: BTreeSet<u32>,
}

/// What changes while Service ports are placed: the objects touched, as they were and as they will be.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    before: Gathered,
    after: Gathered,
    /// Whether nobody will ask.
    is_ignored: bool,
}

impl Edit {
    /// Of changes that are found otherwise.
    pub(crate) fn ignored() -> Self {
        Self { is_ignored: true, ..Self::default() }
    }

    fn before(&mut self, gather: impl FnOnce(&mut Gathered)) {
        if !self.is_ignored {
            gather(&mut self.before);
        }
    }

    fn after(&mut self, gather: impl FnOnce(&mut Gathered)) {
        if !self.is_ignored {
            gather(&mut self.after);
        }
    }

    /// The difference.
    pub(crate) fn changes(self) -> Changes {
        into_changes(self.before.into_iter().collect(), self.after.into_iter().collect())
    }
}

impl Plan {
    /// A plan without any Service port.
    pub(crate) fn new(family: IpFamily, node: &NodeConfig, drops_invalid: bool) -> Self {
        let (detect, local_pods) = match &node.detect_local {
            DetectLocal::Nothing | DetectLocal::NodeCidr => by_source(&[], family),
            DetectLocal::ClusterCidr(cidrs) => by_source(cidrs, family),
            DetectLocal::BridgeInterface(name) => (Detect::Interface(name.clone()), Vec::new()),
            DetectLocal::InterfaceNamePrefix(prefix) => (Detect::Interface(format!("{prefix}*")), Vec::new()),
        };
        let (masquerade_all, mark) = (node.masquerade_all, node.masquerade_mark);
        Self {
            style: Style { family, detect, masquerade_all, mark, drops_invalid },
            follows_pod_cidrs: node.detect_local == DetectLocal::NodeCidr,
            local_pods,
            nodeport_ips: BTreeSet::new(),
            service_cidrs: of_family(&node.service_cidrs, family),
            placements: BTreeMap::new(),
            owners: BTreeMap::new(),
            frontends: BTreeSet::new(),
            numbers: Numbers::default(),
            classes: Classes::default(),
            shared: BTreeMap::new(),
            lingering: BTreeSet::new(),
            listed: Arc::default(),
            listed_numbers: BTreeSet::new(),
        }
    }

    /// How the table's rules are written.
    pub(crate) fn style(&self) -> &Style {
        &self.style
    }

    /// Takes in what a snapshot says of the node itself; `edit` gathers what that changes.
    pub(crate) fn update_node(&mut self, snapshot: &Snapshot, edit: &mut Edit) {
        let family = self.style.family;
        let of_family = |ip: &&IpAddr| IpFamily::from(**ip) == family;
        let nodeport_ips: BTreeSet<_> = snapshot.node_port_addresses.iter().filter(of_family).copied().collect();
        let (detect, local_pods) = match self.follows_pod_cidrs {
            true => by_source(&snapshot.pod_cidrs, family),
            false => (self.style.detect.clone(), self.local_pods.clone()),
        };
        if (&nodeport_ips, &local_pods) == (&self.nodeport_ips, &self.local_pods) {
            return;
        }
        edit.before(|objects| self.node_objects(objects));
        (self.nodeport_ips, self.style.detect, self.local_pods) = (nodeport_ips, detect, local_pods);
        edit.after(|objects| self.node_objects(objects));
    }

    /// What of the table depends on the node.
    fn node_objects(&self, objects: &mut Gathered) {
        for chain in [FixedChain::OffCluster, FixedChain::ExtLocal].map(ChainName::Fixed) {
            objects.push(self.chain(chain));
        }
        let element = |set, key| (Key::Element(set, key), Value::Present);
        let cidrs = self.local_pods.iter().map(|cidr| element(SetName::LocalPods, ElementKey::Cidr(*cidr)));
        let ips = self.nodeport_ips.iter().map(|ip| element(SetName::NodeportIps, ElementKey::Address(*ip)));
        objects.extend(cidrs.chain(ips));
    }

    /// Takes over what the kernel holds: until [`forget_listed`](Self::forget_listed), Service ports are placed where
    /// they are there already, so that a restart rewrites nothing that is right.
    pub(crate) fn adopt(&mut self, listed: Arc<Objects>) {
        self.listed_numbers = listed.iter().filter_map(|(key, value)| number(key, value)).collect();
        self.classes.adopt(&listed);
        self.lingering.extend(listed.keys().filter(|key| lingers(key)).cloned());
        self.listed = listed;
    }

    /// Ends [`adopt`](Self::adopt).
    pub(crate) fn forget_listed(&mut self) {
        self.listed = Arc::default();
        self.listed_numbers = BTreeSet::new();
    }

    /// Places each of these Service ports anew, or removes it; `edit` gathers what that changes. Returns those that are
    /// refused: they have nothing in the table then.
    pub(crate) fn update(
        &mut self,
        changes: &[(&ServicePortName, Option<&ServicePort>)],
        edit: &mut Edit,
    ) -> Vec<(ServicePortName, Refusal)> {
        // All go before any comes, because a frontend may move from one to another.
        let old: Vec<_> = changes.iter().map(|(name, _)| self.remove(name, edit)).collect();
        let had: Vec<_> = old.iter().flatten().map(|old| old.number).collect();
        let mut refused = Vec::new();
        for ((name, wanted), old) in changes.iter().zip(old) {
            let Some(wanted) = wanted else { continue };
            if let Err(refusal) = self.place(wanted, old, edit) {
                refused.push(((*name).clone(), refusal));
            }
        }
        // Not before, or a new Service port could be given the number of one that only changes.
        for number in had {
            if !self.owners.contains_key(&number) {
                self.numbers.free(number);
            }
        }
        refused
    }

    fn place(&mut self, wanted: &ServicePort, old: Option<Placement>, edit: &mut Edit) -> Result<(), Refusal> {
        let family = self.style.family;
        let had = old.as_ref().map(|old| old.number);
        let old = old.or_else(|| {
            let listed = Placement::recover(wanted, family, &self.listed)?;
            (!self.owners.contains_key(&listed.number)).then_some(listed)
        });
        let Some(mut placement) = Placement::new(wanted, family, old.as_ref())? else { return Ok(()) };
        if let Some(frontend) = placement.frontends().find(|frontend| self.frontends.contains(frontend)) {
            return Err(Refusal::Frontend(frontend.to_string()));
        }
        self.enter_classes(&mut placement, wanted, edit)?;
        placement.number = match old {
            Some(old) if had == Some(old.number) || self.numbers.take(old.number) => old.number,
            _ => self.numbers.allot(&self.listed_numbers).inspect_err(|_| leave(&mut self.classes, &placement))?,
        };
        self.insert(&wanted.name, placement, edit);
        Ok(())
    }

    /// Gives each pool its class; on failure, no class is entered.
    fn enter_classes(
        &mut self,
        placement: &mut Placement,
        wanted: &ServicePort,
        edit: &mut Edit,
    ) -> Result<(), Refusal> {
        let has_endpoints_elsewhere = !wanted.endpoints(self.style.family).cluster.is_empty();
        let (protocol, timeout) = (placement.protocol, placement.timeout);
        for (kind, pool) in &mut placement.pools {
            let Some(balance) = balance(*kind, protocol, pool, timeout) else {
                // no-local-drop against no-endpoints-reject.
                let drops = *kind == PoolKind::Local && has_endpoints_elsewhere;
                pool.class = if drops { low::DROP } else { low::REFUSE };
                continue;
            };
            let is_new = !self.classes.contains(balance);
            pool.class = self.classes.enter(balance)?;
            if is_new {
                edit.after(|objects| self.class_objects(balance, pool.class, objects));
            }
        }
        Ok(())
    }

    fn class_objects(&self, balance: Balance, class: u16, objects: &mut Gathered) {
        for chain in [ChainName::Balance(balance), balance.again()] {
            // Another class may have made the second one; asking the classes which is dearer than writing it again,
            // but writing it again would rewrite a chain that is right.
            let is_there = matches!(chain, ChainName::Again { .. })
                && self.classes.iter().any(|(other, _)| other != balance && other.again() == chain);
            if !is_there {
                objects.push(self.chain(chain));
            }
        }
        objects.push(pick(class, Verdict::Goto(ChainName::Balance(balance))));
    }

    fn insert(&mut self, name: &ServicePortName, placement: Placement, edit: &mut Edit) {
        edit.after(|objects| placement.elements(name, objects));
        for key in placement.shared() {
            let uses = self.shared.entry(key.clone()).or_insert(0);
            *uses += 1;
            if *uses == 1 && !self.lingering.remove(&key) {
                edit.after(|objects| objects.push((key, Value::Present)));
            }
        }
        self.frontends.extend(placement.frontends());
        self.owners.insert(placement.number, name.clone());
        self.placements.insert(name.clone(), placement);
    }

    /// Its number stays taken.
    fn remove(&mut self, name: &ServicePortName, edit: &mut Edit) -> Option<Placement> {
        let old = self.placements.remove(name)?;
        edit.before(|objects| old.elements(name, objects));
        for key in old.shared() {
            let Some(uses) = self.shared.get_mut(&key) else { continue };
            *uses -= 1;
            if *uses == 0 {
                self.shared.remove(&key);
                match lingers(&key) {
                    true => drop(self.lingering.insert(key)),
                    false => edit.before(|objects| objects.push((key, Value::Present))),
                }
            }
        }
        for frontend in old.frontends() {
            self.frontends.remove(&frontend);
        }
        leave(&mut self.classes, &old);
        self.owners.remove(&old.number);
        Some(old)
    }

    /// Makes chains for endpoint counts that may come. Only in a table that is being made: a rule that names a map costs a walk
    /// of it, 20 ms for 100,000 slots, which is nothing only as long as there are none; and then a change to a count not seen
    /// before costs no more than any other.
    pub(crate) fn add_spares(&mut self) {
        self.classes.add_spares();
    }

    /// Forgets the classes that no pool is in, and what lingers. Before Service ports are placed, so that what that leaves
    /// unused stays until the next time.
    pub(crate) fn sweep(&mut self) {
        self.classes.sweep();
        self.lingering.clear();
    }

    /// Everything that the table should hold.
    pub(crate) fn objects(&self) -> Objects {
        let mut objects = self.skeleton();
        for (balance, class) in self.classes.iter() {
            self.class_objects(balance, class, &mut objects);
            objects.push(self.chain(balance.again()));
        }
        for (name, placement) in &self.placements {
            placement.elements(name, &mut objects);
        }
        objects.extend(self.shared.keys().chain(&self.lingering).map(|key| (key.clone(), Value::Present)));
        objects.into_iter().collect()
    }

    fn chain(&self, chain: ChainName) -> (Key, Value) {
        let value = Value::Chain(self.style.chain(&chain).into());
        (Key::Chain(chain), value)
    }

    /// What the table holds without any Service port.
    fn skeleton(&self) -> Gathered {
        let sets = SetName::ALL.into_iter().map(|set| {
            let shape = self.style.set(&set).shape;
            (Key::Set(set), Value::Set(shape.into()))
        });
        let chains = FixedChain::ALL.into_iter().map(|chain| self.chain(ChainName::Fixed(chain)));
        let cidr =
            |set: SetName| move |cidr: &IpNet| (Key::Element(set.clone(), ElementKey::Cidr(*cidr)), Value::Present);
        let mut objects: Gathered = sets
            .chain(chains)
            .chain(self.service_cidrs.iter().map(cidr(SetName::ServiceCidrs)))
            .chain([
                pick(low::REFUSE, Verdict::Goto(ChainName::Fixed(FixedChain::Refuse))),
                pick(low::DROP, Verdict::Drop),
            ])
            .chain(Kind::ALL.map(kind_chain))
            .collect();
        self.node_objects(&mut objects);
        objects
    }

    /// What makes a table with one of each sort of chain: what a kernel must take for this plan to work.
    pub(crate) fn sample(&self) -> Changes {
        let mut objects = self.skeleton();
        for (class, timeout) in [(low::FIRST_BALANCE, None), (low::FIRST_BALANCE + 1, Some(1))] {
            let balance = Balance { pool: PoolKind::Cluster, protocol: Protocol::Tcp, count: 1, timeout };
            self.class_objects(balance, class, &mut objects);
        }
        into_changes(Objects::new(), objects.into_iter().collect())
    }

    /// Who has a number.
    pub(crate) fn owner(&self, number: u32) -> Option<&ServicePortName> {
        self.owners.get(&number)
    }
}

/// The number of the Service port that an object belongs to; `None` for what is not one Service port's alone.
pub(crate) fn number(key: &Key, value: &Value) -> Option<u32> {
    let Key::Element(_, key) = key else { return None };
    let word = match (key, value) {
        (ElementKey::Frontend(..) | ElementKey::NodePort(..), Value::Frontend(word, _)) => word,
        (ElementKey::Slot(word, _) | ElementKey::Word(word) | ElementKey::Range(word, _), _) => word,
        _ => return None,
    };
    // Number 0 is that of classes.
    Some(word.number()).filter(|number| *number > 0)
}

/// Whether an element may outlive its last user. Only those that we would have made: others are swept at once.
fn lingers(key: &Key) -> bool {
    matches!(key, Key::Element(SetName::Hairpin, ElementKey::Twice(_)))
}

/// The balance of a pool; `None` without endpoints.
fn balance(pool: PoolKind, protocol: Protocol, of: &Pool, timeout: Option<u32>) -> Option<Balance> {
    let count = u32::try_from(of.slots.len()).ok().filter(|count| *count > 0)?;
    Some(Balance { pool, protocol, count, timeout })
}

fn leave(classes: &mut Classes, placement: &Placement) {
    for (kind, pool) in &placement.pools {
        if let Some(balance) = balance(*kind, placement.protocol, pool, placement.timeout) {
            classes.leave(balance);
        }
    }
}

/// Where the packets of a kind go on.
fn kind_chain(kind: Kind) -> (Key, Value) {
    let chain = match kind {
        Kind::VipLocal => FixedChain::VipLocal,
        Kind::ExtCluster => FixedChain::ExtCluster,
        Kind::ExtLocal => FixedChain::ExtLocal,
        Kind::GuardedCluster | Kind::GuardedLocal => FixedChain::LbGuard,
    };
    let key = Key::Element(SetName::Kinds, ElementKey::Word(Word::kind(kind)));
    (key, Value::Verdict(Verdict::Goto(ChainName::Fixed(chain))))
}

fn pick(class: u16, verdict: Verdict) -> (Key, Value) {
    (Key::Element(SetName::Picks, ElementKey::Word(Word::class(class))), Value::Verdict(verdict))
}

/// How local pods are told by their source.
fn by_source(cidrs: &[IpNet], family: IpFamily) -> (Detect, Vec<IpNet>) {
    let cidrs = of_family(cidrs, family);
    (if cidrs.is_empty() { Detect::Nothing } else { Detect::Source }, cidrs)
}

/// The ranges of one family, the fewest that cover the same: an interval set refuses those that overlap.
fn of_family(cidrs: &[IpNet], family: IpFamily) -> Vec<IpNet> {
    let cidrs: Vec<_> = cidrs.iter().filter(|cidr| IpFamily::from(cidr.addr()) == family).copied().collect();
    IpNet::aggregate(&cidrs)
}
