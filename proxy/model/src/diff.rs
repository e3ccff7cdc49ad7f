//! What changed between two maps.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// One difference between an old and a new map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a, K, V> {
    /// Only the new map has the key.
    Added(&'a K, &'a V),
    /// Both have the key, with different values: old, then new.
    Changed(&'a K, &'a V, &'a V),
    /// Only the old map has the key.
    Removed(&'a K, &'a V),
}

/// The differences between two maps, in the order of their keys. Parts that the maps share are not visited, so that the
/// cost is that of what changed, not of what exists.
pub fn diff<'a, K: Ord, V: PartialEq>(
    old: &'a OrdMap<K, Arc<V>>,
    new: &'a OrdMap<K, Arc<V>>,
) -> impl Iterator<Item = Change<'a, K, V>> {
    old.diff(new).map(|item| match item {
        DiffItem::Add(key, value) => Change::Added(key, value.as_ref()),
        DiffItem::Update { old: (key, old), new: (_, new) } => Change::Changed(key, old.as_ref(), new.as_ref()),
        DiffItem::Remove(key, value) => Change::Removed(key, value.as_ref()),
    })
}
