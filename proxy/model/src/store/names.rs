//! Names that many objects have in common, held once.

use std::collections::HashSet;
use std::sync::Arc;

const SWEEP_AT_LEAST: usize = 1024;

/// Every shared name. Names that nothing uses any more are dropped when the set has doubled since the last time.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Names {
    /// Puts the one held copy of the name in its place.
    pub(super) fn share(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.known.get(name) {
            *name = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = SWEEP_AT_LEAST.max(2 * self.known.len());
        }
        self.known.insert(Arc::clone(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nothing_uses_are_dropped() {
        let mut names = Names::default();
        let used: Arc<str> = "used".into();
        names.share(&mut used.clone());
        for i in 0..10 * SWEEP_AT_LEAST {
            names.share(&mut format!("name-{i}").into());
        }
        assert!(names.known.len() <= 2 * SWEEP_AT_LEAST);
        assert!(names.known.contains(&used));
    }
}
