//! What is refused holds up nobody.

use super::*;
use crate::backend::nftables::kernel::Error;
use crate::backend::nftables::object::{Key, SetName};
use crate::backend::nftables::plan::number;
use crate::backend::nftables::transaction::{TableChanges, commit_apart, take_new_chains};

/// A kernel that refuses whatever belongs to these numbers.
struct Picky {
    refuses: BTreeSet<u32>,
    taken: Objects,
    commits: usize,
}

impl Picky {
    fn commit(&mut self, tables: &[TableChanges]) -> Result<(), Error> {
        self.commits += 1;
        let added = || tables.iter().flat_map(|table| &table.changes.add);
        let refused = added().filter_map(|(key, value)| number(key, value)).find(|it| self.refuses.contains(it));
        if let Some(number) = refused {
            return Err(Error::Refused { what: "a test".to_owned(), cause: format!("number {number}") });
        }
        self.taken.extend(added().cloned());
        Ok(())
    }
}

#[test]
fn only_what_is_refused_is_left_out() {
    let mut plan = plan(IpFamily::V4);
    let wanted = services((0..1000).map(|index| service(&format!("s{index}"), Protocol::Tcp, &[index], &[1, 12])));
    let tables = vec![TableChanges { style: plan.style().clone(), changes: from_nothing(&mut plan, &wanted) }];
    let mut kernel = Picky { refuses: [3, 700].into(), taken: Objects::new(), commits: 0 };
    let is_owned = |(_, number)| plan.owner(number).is_some();
    let refused = commit_apart(tables, is_owned, |tables| kernel.commit(tables)).unwrap();
    let refused: Vec<_> = refused.into_iter().map(|((_, number), cause)| (number, cause)).collect();
    assert_eq!(refused, [(3, "number 3".to_owned()), (700, "number 700".to_owned())]);
    let left_out: Vec<_> = plan.objects().into_iter().filter(|(key, _)| !kernel.taken.contains_key(key)).collect();
    assert_eq!(left_out.len(), 2 * 3, "a frontend and two slots each");
    assert!(left_out.iter().all(|(key, value)| number(key, value).is_some_and(|it| [3, 700].contains(&it))));
    assert!(kernel.commits < 50, "{} commits", kernel.commits);
}

#[test]
fn what_all_need_is_no_one_services_fault() {
    let mut plan = plan(IpFamily::V4);
    let wanted = services([service("web", Protocol::Tcp, &[1], &[1])]);
    let tables = vec![TableChanges { style: plan.style().clone(), changes: from_nothing(&mut plan, &wanted) }];
    let refuses_chains = |tables: &[TableChanges]| {
        let keys = tables.iter().flat_map(|table| &table.changes.add).map(|(key, _)| key);
        match keys.filter(|key| matches!(key, Key::Set(SetName::Frontends))).count() {
            0 => Ok(()),
            _ => Err(Error::Refused { what: "a test".to_owned(), cause: "no maps here".to_owned() }),
        }
    };
    assert!(commit_apart(tables, |_| true, refuses_chains).is_err());
}

#[test]
fn new_chains_are_there_before_anything_leads_to_them() {
    let mut plan = plan(IpFamily::V4);
    let table = |plan: &Plan, changes| vec![TableChanges { style: plan.style().clone(), changes }];
    let chains = |tables: &[TableChanges]| -> Vec<String> {
        let keys = tables.iter().flat_map(|table| &table.changes.add).map(|(key, _)| key);
        keys.filter(|key| matches!(key, Key::Chain(_))).map(ToString::to_string).collect()
    };
    // A table that is being made: nothing leads into it.
    let one = services([service("web", Protocol::Tcp, &[1], &[1])]);
    update(&mut plan, &Services::new(), &one);
    let mut made = table(&plan, diff(&Objects::new(), &plan.objects()));
    assert_eq!(chains(&take_new_chains(&mut made)), [""; 0]);
    assert!(chains(&made).len() > 10, "it has all of them");
    // A count that nobody had before.
    let two = services([service("web", Protocol::Tcp, &[1], &[1, 2])]);
    let changes = update(&mut plan, &one, &two);
    let all: BTreeSet<_> = changes.add.iter().map(|(key, _)| key.clone()).collect();
    let mut rest = table(&plan, changes);
    let first = take_new_chains(&mut rest);
    assert_eq!(chains(&first).len(), 1, "{:?}", chains(&first));
    assert_eq!(chains(&rest), [""; 0]);
    let parts = first.iter().chain(&rest).flat_map(|table| &table.changes.add).map(|(key, _)| key.clone());
    assert_eq!(parts.collect::<BTreeSet<_>>(), all, "nothing is lost");
    // Chains that only change are no new ones.
    let mut changed = table(&plan, diff(&plan.objects(), &Objects::new()));
    changed[0].changes.add = changed[0].changes.delete.clone();
    changed[0].changes.add.retain(|(key, _)| matches!(key, Key::Chain(_)));
    assert_eq!(chains(&take_new_chains(&mut changed)), [""; 0]);
}
