//! The list of one kind, which a relist replaces as a whole.

use std::collections::BTreeMap;

use crate::name::NamespacedName;

/// A change to one object: what it is now, or that it is no more.
pub(super) type Edit<T> = (NamespacedName, Option<T>);

/// The last known objects of one kind.
#[derive(Debug)]
pub(super) struct Kept<T> {
    /// Boxed, because the nodes of a map that fills up in order are half empty, and objects are large.
    held: BTreeMap<NamespacedName, Box<T>>,
    /// The list that is coming in, between `Init` and `InitDone`.
    incoming: Option<BTreeMap<NamespacedName, T>>,
    is_complete: bool,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), incoming: None, is_complete: false }
    }
}

impl<T: PartialEq> Kept<T> {
    pub(super) fn get(&self, name: &NamespacedName) -> Option<&T> {
        self.held.get(name).map(Box::as_ref)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.held.keys()
    }

    /// Whether a list was ever complete.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// A list begins; one that was interrupted is forgotten.
    pub(super) fn init(&mut self) {
        self.incoming = Some(BTreeMap::new());
    }

    /// Takes the object for the list that is coming in; gives it back if there is none, as a change to be made at once.
    pub(super) fn buffer(&mut self, (name, object): Edit<T>) -> Option<Edit<T>> {
        let Some(incoming) = &mut self.incoming else {
            return Some((name, object));
        };
        match object {
            Some(object) => incoming.insert(name, object),
            None => incoming.remove(&name),
        };
        None
    }

    /// The list is complete: the changes that it implies.
    pub(super) fn init_done(&mut self) -> Vec<Edit<T>> {
        self.is_complete = true;
        let Some(incoming) = self.incoming.take() else {
            return Vec::new();
        };
        let gone = self.held.keys().filter(|name| !incoming.contains_key(name));
        let gone: Vec<_> = gone.map(|name| (name.clone(), None)).collect();
        let changed = incoming.into_iter().filter(|(name, object)| self.get(name) != Some(object));
        gone.into_iter().chain(changed.map(|(name, object)| (name, Some(object)))).collect()
    }

    /// Puts the object, or nothing, in the place of what was there, which is returned if that is a change.
    pub(super) fn set(&mut self, name: &NamespacedName, object: Option<T>) -> Option<Option<Box<T>>> {
        if self.get(name) == object.as_ref() {
            return None;
        }
        Some(match object {
            Some(object) => self.held.insert(name.clone(), Box::new(object)),
            None => self.held.remove(name),
        })
    }
}
