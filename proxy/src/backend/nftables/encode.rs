//! Changes to a transaction's messages: one table's part.

use super::chain::Style;
use super::element::{elements, keys};
use super::object::{ChainName, Changes, ElementKey, Key, SetName, Value};
use tollgate_nftables::Table;
use tollgate_nftables::batch::Batch;
use tollgate_nftables::chain::Chain as KernelChain;

/// Adds to `batch` what makes `changes` to a table. First everything goes, from what refers to what is referred to; then
/// everything comes, the other way round.
pub(crate) fn encode(batch: &mut Batch, table: Table, style: &Style, changes: &Changes) {
    if changes.is_empty() {
        return;
    }
    batch.add_table(table);
    delete(batch, table, style, changes);
    for (key, _) in &changes.add {
        if let Key::Set(set) = key {
            batch.add_set(table, &style.set(set));
        }
    }
    let chains = || changes.add.iter().filter_map(chain);
    for (name, wanted) in chains() {
        batch.add_chain(table, &KernelChain { name: name.to_string().into(), base: wanted.base.clone() });
    }
    for (name, wanted) in chains() {
        let name = name.to_string();
        wanted.rules.iter().for_each(|rule| batch.add_rule(table, &name, rule));
    }
    for (set, of_set) in by_set(&changes.add) {
        let all = of_set.iter().filter_map(|(key, value)| Some(elements(element(key)?, value))).flatten();
        batch.add_elements(table, set.as_str(), all);
    }
}

fn delete(batch: &mut Batch, table: Table, style: &Style, changes: &Changes) {
    for (set, of_set) in by_set(&changes.delete) {
        // By key alone: what somebody else put there may not be readable, and must not keep it there.
        batch.delete_elements(table, set.as_str(), of_set.iter().filter_map(|(key, _)| element(key)).flat_map(keys));
    }
    let chains = || changes.delete.iter().filter_map(chain);
    for (name, _) in chains() {
        batch.flush_chain(table, &name.to_string());
    }
    for (name, found) in chains() {
        // A chain that only gets other rules stays: with the last nat chain of a family, established connections would go.
        let stays = changes.adds(&Key::Chain(name.clone())) && found.base == style.chain(name).base;
        if !stays {
            batch.delete_chain(table, &name.to_string());
        }
    }
    for (key, _) in &changes.delete {
        if let Key::Set(set) = key {
            batch.delete_set(table, set.as_str());
        }
    }
}

fn chain((key, value): &(Key, Value)) -> Option<(&ChainName, &super::object::Chain)> {
    match (key, value) {
        (Key::Chain(name), Value::Chain(chain)) => Some((name, chain)),
        _ => None,
    }
}

fn element(key: &Key) -> Option<&ElementKey> {
    match key {
        Key::Element(_, key) => Some(key),
        _ => None,
    }
}

/// The elements among objects, which are in the order of their keys, so that those of one set follow each other.
fn by_set(objects: &[(Key, Value)]) -> impl Iterator<Item = (&SetName, &[(Key, Value)])> {
    fn set(key: &Key) -> Option<&SetName> {
        match key {
            Key::Element(set, _) => Some(set),
            _ => None,
        }
    }
    objects.chunk_by(|(a, _), (b, _)| set(a) == set(b)).filter_map(|of_set| Some((set(&of_set.first()?.0)?, of_set)))
}
