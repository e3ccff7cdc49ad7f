//! A large load is the same in several transactions as in one.

use super::*;
use crate::backend::nftables::object::{Key, SetName};
use crate::backend::nftables::transaction::{TableChanges, rejoin, stages};

fn load(count: u16) -> Vec<TableChanges> {
    let wanted = services((0..count).map(|index| service(&format!("s{index}"), Protocol::Tcp, &[index], &[1, 2])));
    let of_family = |family| {
        let mut plan = plan(family);
        let changes = from_nothing(&mut plan, &wanted);
        TableChanges { style: plan.style().clone(), changes }
    };
    IpFamily::ALL.map(of_family).into()
}

#[test]
fn stages_hold_each_object_once_and_what_is_dialled_comes_after_what_it_leads_to() {
    let all = load(4000);
    let staged = stages(all.clone());
    assert!((5..30).contains(&staged.len()), "{} stages", staged.len());
    let of = |table: &TableChanges, stage: &[TableChanges]| {
        let found = stage.iter().filter(|it| it.style.family == table.style.family);
        found.flat_map(|it| it.changes.add.iter().map(|(key, _)| key.clone())).collect::<Vec<_>>()
    };
    for table in &all {
        let stages: Vec<_> = staged.iter().map(|stage| of(table, stage)).collect();
        assert!(stages.iter().all(|keys| keys.is_sorted()), "what makes others possible comes first");
        let places = |is_it: fn(&Key) -> bool| -> Vec<usize> {
            (0..).zip(&stages).filter(|(_, keys)| keys.iter().any(is_it)).map(|(place, _)| place).collect()
        };
        let rules = places(|key| !matches!(key, Key::Element(..)));
        let slots = places(|key| matches!(key, Key::Element(SetName::SlotsTcp, _)));
        let frontends = places(|key| matches!(key, Key::Element(SetName::Frontends, _)));
        let refused = places(|key| matches!(key, Key::Element(SetName::ClusterIps, _)));
        assert_eq!(rules, [0]);
        assert!(slots.len() > 1 && slots.last() < frontends.first() && frontends.last() < refused.first());
    }
    let rejoined = rejoin(staged);
    for (all, rejoined) in all.iter().zip(&rejoined) {
        assert!(all.changes == rejoined.changes, "nothing is lost");
    }
}

#[test]
fn a_transaction_that_deletes_is_not_taken_apart() {
    let mut tables = load(4000);
    let gone = tables[0].changes.add[0].clone();
    tables[0].changes.delete.push(gone);
    assert_eq!(stages(tables).len(), 1);
}
