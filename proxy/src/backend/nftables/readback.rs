//! What the kernel holds of a table, in the plan's objects.

use std::collections::BTreeMap;

use super::element::{read_key, read_ranges, read_value};
use super::object::{Chain, ChainName, Key, Objects, SetName, Value};
use tollgate_nftables::Table;
use tollgate_nftables::element::Element;
use tollgate_nftables::set::Set;
use tollgate_nftables::socket::{Failure, Socket};

/// One table, as the kernel has it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Listed {
    /// Its objects. What packets write, the elements of `affinity`, is not among them.
    pub(crate) objects: Objects,
    /// How many packets met an element that counts them.
    pub(crate) counters: BTreeMap<Key, u64>,
}

/// Reads a table; `None` where there is none.
pub(crate) fn read(socket: &mut Socket, table: Table) -> Result<Option<Listed>, Failure> {
    if !socket.has_table(table)? {
        return Ok(None);
    }
    let mut listed = Listed::default();
    // A set without a name belongs to a rule, which says enough.
    for set in socket.sets(table)?.into_iter().filter(|set| !set.shape.is_anonymous()) {
        listed.read_elements(socket, table, &set)?;
        listed.objects.insert(Key::Set(SetName::named(&set.name)), Value::Set(set.shape.into()));
    }
    let mut chains: BTreeMap<Box<str>, Chain> = BTreeMap::new();
    for chain in socket.chains(table)? {
        chains.insert(chain.name, Chain { base: chain.base, rules: Vec::new() });
    }
    for (chain, rule) in socket.rules(table)? {
        chains.entry(chain).or_default().rules.push(rule);
    }
    let chains =
        chains.into_iter().map(|(name, chain)| (Key::Chain(ChainName::named(&name)), Value::Chain(chain.into())));
    listed.objects.extend(chains);
    Ok(Some(listed))
}

impl Listed {
    fn read_elements(&mut self, socket: &mut Socket, table: Table, set: &Set) -> Result<(), Failure> {
        let name = SetName::named(&set.name);
        if set.shape.is_dynamic() || matches!(name, SetName::Affinity | SetName::Foreign(_)) {
            return Ok(());
        }
        if set.shape.has_ends() {
            let keep = |found: &mut BTreeMap<_, Element>, element: Element| {
                found.insert((element.key, element.is_end), element).is_none()
            };
            let elements = socket.elements(table, &set.name, keep)?;
            let ranges = read_ranges(&name, elements.into_values().collect());
            self.objects.extend(ranges.into_iter().map(|key| (Key::Element(name.clone(), key), Value::Present)));
            return Ok(());
        }
        let mut read = socket.elements(table, &set.name, |listed: &mut Self, element| {
            let (key, value) = (Key::Element(name.clone(), read_key(&name, &element)), read_value(&name, &element));
            if let Some(packets) = element.packets {
                listed.counters.insert(key.clone(), packets);
            }
            listed.objects.insert(key, value).is_none()
        })?;
        self.objects.append(&mut read.objects);
        self.counters.append(&mut read.counters);
        Ok(())
    }
}
