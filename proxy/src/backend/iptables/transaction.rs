//! Changes to the texts that write them, in an order in which every state on the way is harmless:
//!
//! 1. `ipset`: new sets; what refuses or drops frontends that no rule will translate any more; ClusterIPs that nobody holds.
//! 2. `iptables-restore`, a transaction for each text: Service ports' own chains, to which nothing leads yet or which change
//!    as a whole; then the trees from the deepest chain up; jumps; and last the chains to which nothing leads any more.
//! 3. `ipset`: new ClusterIPs (known before their rules, they would be refused; unknown, they are dropped and the client
//!    tries again); what refused frontends that are translated now; sets that no rule names any more.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem;

use tollgate_model::name::IpFamily;

use super::name::SetName;
use super::object::{Changes, Element, Table};

/// One run of a command.
#[derive(Debug)]
pub(crate) enum Step {
    /// Lines for `ipset restore`.
    Sets(String),
    /// A text for `iptables-restore`, in parts: it may be long.
    Rules(IpFamily, Vec<String>),
    /// Sets that no rule of ours names any more. One that somebody else's rule names stays, and holds up nobody.
    Destroy(Vec<String>),
}

/// How many chains a text may have.
///
/// The nft variant takes time that grows with the square of the chains in a text. The legacy one copies the whole table for
/// each text, so that all must be one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSize(pub(crate) usize);

/// Takes the ClusterIPs that come out of changes that write the first rules, and returns what adds them. As long as no rule asks
/// for them, they may come at any time: beside the rules, of which the node's first take long.
pub(crate) fn take_cluster_ips(changes: &mut [Changes]) -> String {
    let mut text = String::new();
    for changes in changes {
        let (members, rest) = mem::take(&mut changes.elements)
            .into_iter()
            .partition(|(element, comes)| element.set == SetName::ClusterIps && *comes);
        changes.elements = rest;
        let sets = changes.sets.iter().filter(|set| **set == SetName::ClusterIps).copied().collect();
        let members = Changes { elements: members, sets, ..Changes::new(changes.family) };
        if !members.elements.is_empty() {
            text.push_str(&sets_before(&members));
            text.push_str(&sets_after(&members));
        }
    }
    text
}

/// Runs the changes of all families, in order.
pub(crate) fn commit<E>(
    changes: &[Changes],
    batch: BatchSize,
    mut run: impl FnMut(Step) -> Result<(), E>,
) -> Result<(), E> {
    let sets = |text: String, run: &mut dyn FnMut(Step) -> Result<(), E>| {
        if text.is_empty() { Ok(()) } else { run(Step::Sets(text)) }
    };
    sets(changes.iter().map(sets_before).collect(), &mut run)?;
    for changes in changes {
        rules(changes, batch, &mut run)?;
    }
    sets(changes.iter().map(sets_after).collect(), &mut run)?;
    let destroyed: Vec<_> = changes.iter().flat_map(|changes| changes.destroyed.iter().cloned()).collect();
    if destroyed.is_empty() { Ok(()) } else { run(Step::Destroy(destroyed)) }
}

/// Runs only what is Service ports' own: nothing leads there yet, or all of it changes at once.
pub(crate) fn commit_own<E>(
    changes: &Changes,
    batch: BatchSize,
    mut run: impl FnMut(Step) -> Result<(), E>,
) -> Result<(), E> {
    let text = affinity_sets(changes);
    if !text.is_empty() {
        run(Step::Sets(text))?;
    }
    let mut writer = Writer::new(changes.family, batch, &mut run);
    writer.own(changes)?;
    writer.flush()
}

fn rules<E>(changes: &Changes, batch: BatchSize, run: &mut dyn FnMut(Step) -> Result<(), E>) -> Result<(), E> {
    let mut writer = Writer::new(changes.family, batch, run);
    writer.own(changes)?;
    let mut shared: Vec<_> = changes.shared.iter().collect();
    // The sort is stable: of equals, what others lead to comes first already.
    shared.sort_by_key(|(level, _)| Reverse(*level));
    for (_, chain) in shared {
        writer.chain(chain.table, &chain.name, &chain.rules)?;
    }
    for (table, base, rule) in &changes.removed_jumps {
        writer.table(*table).rule(format_args!("-D {base} {rule}"));
    }
    let (last, first): (Vec<_>, Vec<_>) = changes.jumps.iter().partition(|jump| jump.is_last);
    // Each is put first, so that the last is written first.
    for jump in first.into_iter().rev() {
        writer.table(jump.table).rule(format_args!("-I {} 1 {}", jump.base, jump.rule));
    }
    for jump in last {
        writer.table(jump.table).rule(format_args!("-A {} {}", jump.base, jump.rule));
    }
    // All are emptied before any goes: one may lead to another.
    for (table, chain) in &changes.deleted {
        writer.chain(*table, chain, &[])?;
    }
    for (table, chain) in &changes.deleted {
        writer.delete(*table, chain)?;
    }
    writer.flush()
}

/// Gathers a text.
struct Writer<'a, E> {
    family: IpFamily,
    batch: BatchSize,
    run: &'a mut dyn FnMut(Step) -> Result<(), E>,
    tables: BTreeMap<Table, TableText>,
    chains: usize,
}

/// The part of a text that is about one table.
#[derive(Default)]
struct TableText {
    /// Chains must be known before a rule leads to them. A chain that is there is emptied by this.
    declarations: String,
    rules: String,
    deletions: String,
}

impl TableText {
    fn rule(&mut self, rule: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.rules, "{rule}");
    }
}

impl<'a, E> Writer<'a, E> {
    fn new(family: IpFamily, batch: BatchSize, run: &'a mut dyn FnMut(Step) -> Result<(), E>) -> Self {
        Self { family, batch, run, tables: BTreeMap::new(), chains: 0 }
    }

    fn table(&mut self, table: Table) -> &mut TableText {
        self.tables.entry(table).or_default()
    }

    fn own(&mut self, changes: &Changes) -> Result<(), E> {
        for own in changes.services.values() {
            // All of a Service port in one text: its rules lead to each other.
            for (name, rules) in &own.chains {
                self.write(Table::Nat, name, rules);
            }
            self.count(own.chains.len())?;
        }
        Ok(())
    }

    fn chain(&mut self, table: Table, name: &str, rules: &[String]) -> Result<(), E> {
        self.write(table, name, rules);
        self.count(1)
    }

    fn write(&mut self, table: Table, name: &str, rules: &[String]) {
        let text = self.table(table);
        let _ = writeln!(text.declarations, ":{name} - [0:0]");
        for rule in rules {
            text.rule(format_args!("-A {name} {rule}"));
        }
    }

    fn delete(&mut self, table: Table, name: &str) -> Result<(), E> {
        let _ = writeln!(self.table(table).deletions, "-X {name}");
        self.count(1)
    }

    fn count(&mut self, chains: usize) -> Result<(), E> {
        self.chains += chains;
        if self.chains >= self.batch.0 { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), E> {
        self.chains = 0;
        let mut parts = Vec::new();
        for (table, text) in mem::take(&mut self.tables) {
            let TableText { declarations, rules, deletions } = text;
            parts.extend([format!("*{}\n", table.as_str()), declarations, rules, deletions, "COMMIT\n".to_owned()]);
        }
        if parts.is_empty() { Ok(()) } else { (self.run)(Step::Rules(self.family, parts)) }
    }
}

fn sets_before(changes: &Changes) -> String {
    let mut text = String::new();
    for set in &changes.sets {
        let kind = set_type(*set);
        let name = set.text(changes.family);
        let _ = writeln!(text, "create {name} {kind} family {} maxelem 1048576", inet(changes.family));
    }
    text.push_str(&affinity_sets(changes));
    for (set, member) in &changes.foreign {
        let _ = writeln!(text, "del {} {member}", set.text(changes.family));
    }
    members(changes, &mut text, |element, comes| (element.set == SetName::ClusterIps) != comes);
    text
}

fn sets_after(changes: &Changes) -> String {
    let mut text = String::new();
    members(changes, &mut text, |element, comes| (element.set == SetName::ClusterIps) == comes);
    text
}

fn members(changes: &Changes, text: &mut String, is_now: impl Fn(&Element, bool) -> bool) {
    for (element, comes) in changes.elements.iter().filter(|(element, comes)| is_now(element, **comes)) {
        let verb = if *comes { "add" } else { "del" };
        let _ = writeln!(text, "{verb} {} {element}", element.set.text(changes.family));
    }
}

/// `timeout 0` makes the members' timeouts possible, which the rules set. When a set is full, a client that is new takes
/// the place of another (`forceadd`).
fn affinity_sets(changes: &Changes) -> String {
    let mut text = String::new();
    let family = inet(changes.family);
    for set in changes.services.values().flat_map(|own| &own.affinity) {
        let _ = writeln!(text, "create {set} hash:ip family {family} hashsize 64 timeout 0 maxelem 65536 forceadd");
    }
    text
}

/// The type of a set, in the words of `ipset`.
pub(crate) fn set_type(set: SetName) -> &'static str {
    match set {
        SetName::ClusterIps => "hash:ip",
        SetName::Reject | SetName::Drop => "hash:ip,port",
        SetName::Admit => "hash:ip,port,net",
    }
}

/// A family, in the words of `ipset`.
pub(crate) fn inet(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "inet",
        IpFamily::V6 => "inet6",
    }
}
