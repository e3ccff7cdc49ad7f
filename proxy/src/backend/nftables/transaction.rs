//! What one commit changes in both tables, and how it is taken apart when the kernel refuses it.

use std::collections::BTreeMap;
use std::time::Duration;

use tollgate_model::name::IpFamily;

use super::chain::Style;
use super::kernel;
use super::object::{Changes, Key, SetName};
use super::plan::number;

/// What changes in one table.
#[derive(Clone, Debug)]
pub(crate) struct TableChanges {
    /// How its rules are written.
    pub(crate) style: Style,
    /// What changes.
    pub(crate) changes: Changes,
}

/// A set that is new is loaded with so many elements at first.
const FIRST: usize = 1024;

/// Between two stages of a load, the kernel's work queue has its turn, also where it ranks behind this process.
pub(crate) const TURN: Duration = Duration::from_micros(100);

/// A large load, in transactions of which each adds at most half of what its sets have by then.
///
/// A hash table of the kernel's grows in a work queue, which does not come to its turn within a system call. A load in one
/// makes table after table meanwhile, each twice as large as the one before, and looks for every element in all of them
/// (`rhashtable_insert_slow`: half of what the kernel took for 10,000 Services x 10).
///
/// What nobody asks for yet goes first: rules and endpoints. Then what is dialled, so that one Service after the other comes to
/// be, whole; and last what is refused or dropped where nothing was found that is dialled. What deletes anything is one
/// transaction.
pub(crate) fn stages(tables: Vec<TableChanges>) -> Vec<Vec<TableChanges>> {
    if tables.iter().any(|table| !table.changes.delete.is_empty()) {
        return vec![tables];
    }
    let mut stages: BTreeMap<(Phase, usize), Vec<TableChanges>> = BTreeMap::new();
    for TableChanges { style, changes } in tables {
        let mut own: BTreeMap<(Phase, usize), TableChanges> = BTreeMap::new();
        let mut set: Option<SetName> = None;
        // Of the set's elements, how many there are and how many of them are in stages before.
        let (mut count, mut step, mut end) = (0, 0, FIRST);
        for (key, value) in changes.add {
            let stage = match &key {
                Key::Set(_) | Key::Chain(_) => (Phase::Unasked, 0),
                Key::Element(name, _) => {
                    if set.as_ref() != Some(name) {
                        (set, count, step, end) = (Some(name.clone()), 0, 0, FIRST);
                    }
                    if count == end {
                        (step, end) = (step + 1, end + end / 2);
                    }
                    count += 1;
                    (Phase::of(name), step)
                }
            };
            own.entry(stage).or_insert_with(|| TableChanges::none(&style)).changes.add.push((key, value));
        }
        for (stage, part) in own {
            stages.entry(stage).or_default().push(part);
        }
    }
    stages.into_values().collect()
}

/// In which order what is new becomes known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nothing leads there yet.
    Unasked,
    /// What clients dial.
    Dialled,
    /// What becomes of addresses at which nothing is dialled.
    Missed,
}

impl Phase {
    fn of(set: &SetName) -> Self {
        match set {
            SetName::Frontends | SetName::Nodeports => Self::Dialled,
            SetName::ClusterIps | SetName::ServiceCidrs => Self::Missed,
            _ => Self::Unasked,
        }
    }
}

/// Several transactions in one.
pub(crate) fn rejoin(stages: impl IntoIterator<Item = Vec<TableChanges>>) -> Vec<TableChanges> {
    joined(stages.into_iter().flatten())
}

/// A Service port in one table: the family and its number there.
pub(crate) type Owner = (IpFamily, u32);

/// A commit that was refused, in parts that can be refused one by one.
struct Parts {
    /// What Service ports share and need; it comes first.
    shared: Vec<TableChanges>,
    /// Each Service port's own.
    own: Vec<(Owner, TableChanges)>,
    /// What is left over and nobody's; it goes last.
    leftover: Vec<TableChanges>,
}

/// Commits part by part, and returns the Service ports whose part is refused. Halves what is refused until it is one
/// Service port's: a few refused ones among many cost a few transactions each.
///
/// # Errors
/// When what all Service ports need is refused, or the kernel can't be asked at all.
pub(crate) fn commit_apart(
    tables: Vec<TableChanges>,
    is_owned: impl Fn(Owner) -> bool,
    mut commit: impl FnMut(&[TableChanges]) -> Result<(), kernel::Error>,
) -> Result<Vec<(Owner, String)>, kernel::Error> {
    let parts = apart(tables, is_owned);
    commit(&parts.shared)?;
    let mut refused = Vec::new();
    halve(&parts.own, &mut commit, &mut refused)?;
    commit(&parts.leftover)?;
    Ok(refused)
}

/// Takes out the chains that are new in tables that are there, for a transaction of their own before that of the rest.
///
/// A packet goes through a chain by the generation that held when it came to the hook (`genbit` in the kernel's
/// `nft_do_chain`), and looks elements up by the one that holds when it asks (`nft_genmask_cur`). So a packet that a commit
/// overtakes is led by a new element to a new chain, which it finds empty, and leaves the hook untranslated (seen on Linux
/// 6.18: 13 of 200,000 packets under 2,000 such commits, and none where the chains were there before). Once the chains have
/// been committed, the next commit has them in both generations before it shows its elements.
pub(crate) fn take_new_chains(tables: &mut [TableChanges]) -> Vec<TableChanges> {
    let taken = tables.iter_mut().map(|TableChanges { style, changes }| {
        let mut new = TableChanges::none(style);
        // Nothing leads into a table that is only being made; and rules can't be there before the sets that they name.
        if changes.add.iter().any(|(key, _)| matches!(key, Key::Set(_))) {
            return new;
        }
        let Changes { delete, add } = changes;
        let is_new = |key: &Key| {
            matches!(key, Key::Chain(_)) && delete.binary_search_by(|(deleted, _)| deleted.cmp(key)).is_err()
        };
        new.changes.add = add.extract_if(.., |(key, _)| is_new(key)).collect();
        new
    });
    taken.collect()
}

fn halve(
    parts: &[(Owner, TableChanges)],
    commit: &mut impl FnMut(&[TableChanges]) -> Result<(), kernel::Error>,
    refused: &mut Vec<(Owner, String)>,
) -> Result<(), kernel::Error> {
    if parts.is_empty() {
        return Ok(());
    }
    match (commit(&joined(parts.iter().map(|(_, part)| part.clone()))), parts) {
        (Ok(()), _) => Ok(()),
        (Err(kernel::Error::Refused { cause, .. }), [(owner, _)]) => {
            refused.push((*owner, cause));
            Ok(())
        }
        (Err(kernel::Error::Refused { .. }), parts) => {
            let (left, right) = parts.split_at(parts.len() / 2);
            halve(left, commit, refused)?;
            halve(right, commit, refused)
        }
        (Err(error), _) => Err(error),
    }
}

fn joined(parts: impl IntoIterator<Item = TableChanges>) -> Vec<TableChanges> {
    let mut tables: BTreeMap<IpFamily, TableChanges> = BTreeMap::new();
    for part in parts {
        let table = tables.entry(part.style.family).or_insert_with(|| TableChanges::none(&part.style));
        table.changes.delete.extend(part.changes.delete);
        table.changes.add.extend(part.changes.add);
    }
    for table in tables.values_mut() {
        table.changes.delete.sort_by(|(a, _), (b, _)| a.cmp(b));
        table.changes.add.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
    tables.into_values().collect()
}

fn apart(tables: Vec<TableChanges>, is_owned: impl Fn(Owner) -> bool) -> Parts {
    let mut parts = Parts { shared: Vec::new(), own: Vec::new(), leftover: Vec::new() };
    for TableChanges { style, changes } in tables {
        let mut shared = TableChanges::none(&style);
        let mut leftover = TableChanges::none(&style);
        let mut own: BTreeMap<Owner, TableChanges> = BTreeMap::new();
        let owner = |number: Option<u32>| number.map(|number| (style.family, number)).filter(|owner| is_owned(*owner));
        let mut replaced_by: BTreeMap<Key, Option<Owner>> = BTreeMap::new();
        for (key, value) in changes.add {
            let owner = owner(number(&key, &value));
            replaced_by.insert(key.clone(), owner);
            let part =
                owner.map_or(&mut shared, |owner| own.entry(owner).or_insert_with(|| TableChanges::none(&style)));
            part.changes.add.push((key, value));
        }
        for (key, value) in changes.delete {
            // What is replaced goes with what replaces it.
            let (owner, rest) = match replaced_by.get(&key) {
                Some(owner) => (*owner, &mut shared),
                None => (owner(number(&key, &value)), &mut leftover),
            };
            let part = owner.map_or(rest, |owner| own.entry(owner).or_insert_with(|| TableChanges::none(&style)));
            part.changes.delete.push((key, value));
        }
        parts.shared.push(shared);
        parts.leftover.push(leftover);
        parts.own.extend(own);
    }
    parts
}

impl TableChanges {
    fn none(style: &Style) -> Self {
        Self { style: style.clone(), changes: Changes::default() }
    }
}
