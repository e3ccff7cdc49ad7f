//! Service ports to kernel objects, for one family. Pure: it remembers what it was told, and does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use tollgate_model::name::ServicePortName;
use tollgate_model::snapshot::{ServicePort, Snapshot};

use super::name;
use super::object::{Chain, Changes, Element, Own, Table};
use super::service::{self, Dispatch, Objects};
use super::style::Style;
use super::tree::{Dialled, Node, Nodes, Tree};

/// What one family's tables and sets hold for the Service ports placed so far.
#[derive(Debug)]
pub(crate) struct Plan {
    style: Style,
    placed: BTreeMap<ServicePortName, Arc<ServicePort>>,
    trees: Trees,
    /// Members of the family's sets, with how many Service ports need them.
    elements: BTreeMap<Element, usize>,
}

/// The three trees that find a frontend's Service port.
#[derive(Clone, Debug)]
struct Trees {
    cluster_ips: Tree,
    external: Tree,
    node_ports: Tree,
}

/// Why a Service port can't be realised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Its frontend is another's.
    #[error("the frontend {0} is held by another Service port")]
    Frontend(String),
}

/// What differs while Service ports are placed.
#[derive(Default)]
struct Edit {
    before: BTreeMap<ServicePortName, Own>,
    after: BTreeMap<ServicePortName, Own>,
    /// Whether each member was there before.
    elements: BTreeMap<Element, bool>,
    keys: BTreeMap<Dispatch, BTreeSet<Dialled>>,
}

impl Trees {
    fn of(&self, dispatch: Dispatch) -> &Tree {
        match dispatch {
            Dispatch::ClusterIp => &self.cluster_ips,
            Dispatch::External => &self.external,
            Dispatch::NodePort => &self.node_ports,
        }
    }

    fn of_mut(&mut self, dispatch: Dispatch) -> &mut Tree {
        match dispatch {
            Dispatch::ClusterIp => &mut self.cluster_ips,
            Dispatch::External => &mut self.external,
            Dispatch::NodePort => &mut self.node_ports,
        }
    }
}

impl Plan {
    /// A plan without any Service port.
    pub(crate) fn new(style: Style) -> Self {
        let trees = Trees {
            cluster_ips: Tree::new('C', name::CLUSTER),
            external: Tree::new('P', name::EXTERNAL),
            node_ports: Tree::new('N', name::NODE_PORTS),
        };
        Self { style, placed: BTreeMap::new(), trees, elements: BTreeMap::new() }
    }

    /// What the rules depend on besides the Service ports.
    pub(crate) fn style(&self) -> &Style {
        &self.style
    }

    /// Places these Service ports as the snapshot has them, or removes them, and takes over what it says of the node. Returns
    /// what that changes, and those that are refused: they have nothing in the kernel then.
    pub(crate) fn update(
        &mut self,
        desired: &Snapshot,
        names: impl IntoIterator<Item = ServicePortName>,
    ) -> (Changes, Vec<(ServicePortName, Refusal)>) {
        let (old_style, old_trees) = (self.style.clone(), self.trees.clone());
        let mut edit = Edit::default();
        let refused = self.replace(desired, names, &mut edit);
        (self.changes(edit, &old_style, &old_trees), refused)
    }

    /// The same where what it changes is not asked for: the kernel is read, and will be compared.
    pub(crate) fn set(
        &mut self,
        desired: &Snapshot,
        names: impl IntoIterator<Item = ServicePortName>,
    ) -> Vec<(ServicePortName, Refusal)> {
        self.replace(desired, names, &mut Edit::default())
    }

    fn replace(
        &mut self,
        desired: &Snapshot,
        names: impl IntoIterator<Item = ServicePortName>,
        edit: &mut Edit,
    ) -> Vec<(ServicePortName, Refusal)> {
        let style = self.style.with(desired);
        let mut names: BTreeMap<ServicePortName, Option<Arc<ServicePort>>> = names
            .into_iter()
            .map(|name| {
                let wanted = desired.service_ports.get(&name).cloned();
                (name, wanted)
            })
            .collect();
        if style != self.style {
            let affected = self.placed.iter().filter(|(_, placed)| service::depends_on_node(placed));
            for (name, placed) in affected {
                names.entry(name.clone()).or_insert_with(|| Some(placed.clone()));
            }
        }
        self.place(style, names, edit)
    }

    /// Removes a Service port that the kernel does not take.
    pub(crate) fn refuse(&mut self, name: &ServicePortName) {
        self.place(self.style.clone(), BTreeMap::from([(name.clone(), None)]), &mut Edit::default());
    }

    fn place(
        &mut self,
        style: Style,
        names: BTreeMap<ServicePortName, Option<Arc<ServicePort>>>,
        edit: &mut Edit,
    ) -> Vec<(ServicePortName, Refusal)> {
        let old_style = mem::replace(&mut self.style, style);
        // All go before any comes, because a frontend may move from one to another.
        for name in names.keys() {
            if let Some(old) = self.placed.remove(name) {
                let objects = service::objects(&old, &old_style);
                self.take_out(&objects, edit);
                edit.before.insert(name.clone(), objects.own);
            }
        }
        let mut refused = Vec::new();
        for (name, wanted) in names {
            let Some(wanted) = wanted else { continue };
            let objects = service::objects(&wanted, &self.style);
            if let Some(frontend) = self.taken(&objects) {
                refused.push((name, Refusal::Frontend(frontend)));
                continue;
            }
            self.put_in(&objects, edit);
            edit.after.insert(name.clone(), objects.own);
            self.placed.insert(name, wanted);
        }
        refused
    }

    fn taken(&self, objects: &Objects) -> Option<String> {
        let taken = objects.leaves.iter().find(|(dispatch, key, _)| self.trees.of(*dispatch).get(key).is_some());
        taken.map(|(_, key, _)| match key.ip {
            Some(ip) => format!("{}/{}", std::net::SocketAddr::new(ip, key.port), key.protocol),
            None => format!("NodePort {}/{}", key.port, key.protocol),
        })
    }

    fn put_in(&mut self, objects: &Objects, edit: &mut Edit) {
        for (dispatch, key, leaf) in &objects.leaves {
            self.trees.of_mut(*dispatch).insert(*key, leaf.clone());
            edit.keys.entry(*dispatch).or_default().insert(*key);
        }
        for element in &objects.elements {
            let uses = self.elements.entry(element.clone()).or_insert(0);
            edit.elements.entry(element.clone()).or_insert(*uses > 0);
            *uses += 1;
        }
    }

    fn take_out(&mut self, objects: &Objects, edit: &mut Edit) {
        for (dispatch, key, _) in &objects.leaves {
            self.trees.of_mut(*dispatch).remove(key);
            edit.keys.entry(*dispatch).or_default().insert(*key);
        }
        for element in &objects.elements {
            let Some(uses) = self.elements.get_mut(element) else { continue };
            edit.elements.entry(element.clone()).or_insert(true);
            *uses -= 1;
            if *uses == 0 {
                self.elements.remove(element);
            }
        }
    }

    fn changes(&self, edit: Edit, old_style: &Style, old_trees: &Trees) -> Changes {
        let mut changes = Changes::new(self.style.family);
        let Edit { mut before, after, elements, keys } = edit;
        for (name, after) in after {
            let before = before.remove(&name).unwrap_or_default();
            own_changes(name, &before, after, &mut changes);
        }
        for (name, before) in before {
            own_changes(name, &before, Own::default(), &mut changes);
        }
        for dispatch in [Dispatch::ClusterIp, Dispatch::External, Dispatch::NodePort] {
            let (old, new) = (old_trees.of(dispatch), self.trees.of(dispatch));
            let keys = keys.get(&dispatch).into_iter().flatten().copied();
            let (before, after) = Tree::changed(old, new, keys.filter(|key| old.get(key) != new.get(key)));
            self.node_changes(before, after, &mut changes);
        }
        self.fixed_changes(old_style, old_trees, &mut changes);
        for (element, was_there) in elements {
            let is_there = self.elements.contains_key(&element);
            if was_there != is_there {
                changes.elements.insert(element, is_there);
            }
        }
        changes
    }

    fn fixed_changes(&self, old_style: &Style, old_trees: &Trees, changes: &mut Changes) {
        if *old_style == self.style && old_trees.external.range() == self.trees.external.range() {
            return;
        }
        let old = old_style.chains(old_trees.external.range());
        let new = self.style.chains(self.trees.external.range());
        changes
            .shared
            .extend(new.iter().filter(|chain| !old.contains(chain)).map(|chain| (level(chain), chain.clone())));
        let gone = old.iter().filter(|old| !new.iter().any(|new| (new.table, &new.name) == (old.table, &old.name)));
        changes.deleted.extend(gone.map(|chain| (chain.table, chain.name.clone())));
        if old_style.before_cluster_tree() != self.style.before_cluster_tree() {
            // The header of the root, which `node_changes` does not see.
            let root =
                self.trees.cluster_ips.nodes().remove(name::CLUSTER).unwrap_or(Node { level: 0, rules: Vec::new() });
            changes.shared.retain(|(_, chain)| chain.name != name::CLUSTER);
            changes.shared.push((0, self.node_chain(name::CLUSTER.to_owned(), root)));
        }
    }

    fn node_changes(&self, before: Nodes, after: Nodes, changes: &mut Changes) {
        let gone = before.keys().filter(|name| !after.contains_key(*name));
        changes.deleted.extend(gone.map(|name| (Table::Nat, name.clone())));
        for (name, node) in after {
            // The level decides the order of writing, and is not in the kernel.
            if before.get(&name).is_none_or(|before| before.rules != node.rules) {
                changes.shared.push((node.level, self.node_chain(name, node)));
            }
        }
    }

    /// A tree's chain, with what comes before the tree in its root.
    fn node_chain(&self, name: String, node: Node) -> Chain {
        let before = if name == name::CLUSTER { self.style.before_cluster_tree() } else { None };
        Chain { table: Table::Nat, name, rules: before.into_iter().chain(node.rules).collect() }
    }

    /// Every chain that Service ports share, with its level.
    pub(crate) fn shared(&self) -> impl Iterator<Item = (usize, Chain)> + '_ {
        let trees = [&self.trees.cluster_ips, &self.trees.external, &self.trees.node_ports];
        let nodes = trees.into_iter().flat_map(Tree::nodes);
        let nodes = nodes.map(|(name, node)| (node.level, self.node_chain(name, node)));
        nodes.chain(self.style.chains(self.trees.external.range()).into_iter().map(|chain| (level(&chain), chain)))
    }

    /// Every Service port with what is its alone.
    pub(crate) fn own(&self) -> impl Iterator<Item = (&ServicePortName, Own)> + '_ {
        self.placed.iter().map(|(name, placed)| (name, service::objects(placed, &self.style).own))
    }

    /// Every member of the family's sets.
    pub(crate) fn elements(&self) -> impl Iterator<Item = &Element> {
        self.elements.keys()
    }
}

/// Chains that others lead to come before those.
fn level(chain: &Chain) -> usize {
    usize::from([name::OFF_CLUSTER, name::MASQUERADE, name::REFUSE].contains(&chain.name.as_str()))
}

fn own_changes(name: ServicePortName, before: &Own, after: Own, changes: &mut Changes) {
    let gone = before.chains.keys().filter(|chain| !after.chains.contains_key(*chain));
    changes.deleted.extend(gone.map(|chain| (Table::Nat, chain.clone())));
    changes.destroyed.extend(before.affinity.difference(&after.affinity).cloned());
    let Own { mut chains, affinity } = after;
    chains.retain(|chain, rules| before.chains.get(chain) != Some(rules));
    let affinity: BTreeSet<_> = affinity.difference(&before.affinity).cloned().collect();
    if !chains.is_empty() || !affinity.is_empty() {
        changes.services.insert(name, Own { chains, affinity });
    }
}
