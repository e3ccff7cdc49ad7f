//! What Tollgate does, seen from outside: every rule on every backend and in both families, by real packets.
//!
//! A trial's name is `rule::mode::family`, where the rule is its name in the semantics. Cases that only read share a lab
//! for each mode and family; cases that stop, kill or break things have one of their own.

mod address;
mod connection;
mod endpoint;
mod flow;
mod health;
mod object;
mod rules;
mod scene;
mod source;
mod spread;
mod table;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::Trial;
use tollgate_lab::harness::{Shared, judge, run};
use tollgate_lab::{Cluster, Family, Mode, Tollgate, Topology, isolate};

use scene::{Scene, Stage};
use table::Table;

/// How a rule is shown.
#[derive(Clone, Copy)]
enum Case {
    /// Objects, and what probes see, in a lab that others use too.
    Table(fn(&Scene<'_>) -> Table),
    /// Steps in a lab that others use too.
    Steps(fn(&Scene<'_>) -> Result<()>),
    /// Steps in a lab of its own.
    Own(fn(&mut Stage) -> Result<()>),
    /// Steps in a lab of its own, whose control plane has TLS.
    Secured(fn(&mut Stage) -> Result<()>),
}

fn main() -> ExitCode {
    isolate();
    let mut trials = Vec::new();
    for (&mode, family) in Mode::ALL.iter().flat_map(|mode| Family::ALL.map(|family| (mode, family))) {
        let shared = Arc::new(Shared::new(move || lab(mode)));
        let trial = |(rule, case)| trial(rule, case, mode, family, shared.clone());
        trials.extend(cases().map(trial));
    }
    run(trials)
}

fn cases() -> impl Iterator<Item = (&'static str, Case)> {
    // The long ones first, so that the others run beside them.
    [connection::CASES, source::CASES, flow::CASES, rules::CASES, health::CASES]
        .into_iter()
        .chain([object::CASES, endpoint::CASES, spread::CASES, address::CASES])
        .flatten()
        .copied()
}

fn trial(rule: &'static str, case: Case, mode: Mode, family: Family, shared: Arc<Shared<Tollgate>>) -> Trial {
    Trial::test(format!("{rule}::{mode}::{family}"), move || match case {
        Case::Table(table) => judge(&mut shared.get().map_err(words)?, |lab| {
            let scene = Scene::new(lab, family, rule)?;
            table(&scene).play(&scene)
        }),
        Case::Steps(steps) => judge(&mut shared.get().map_err(words)?, |lab| steps(&Scene::new(lab, family, rule)?)),
        Case::Own(steps) => judge(&mut Stage { lab: lab(mode).map_err(words)?, mode, family }, steps),
        Case::Secured(steps) => {
            let lab = cluster().and_then(|cluster| Tollgate::start_secured(cluster, mode)).map_err(words)?;
            judge(&mut Stage { lab, mode, family }, steps)
        }
    })
}

/// The whole chain of causes.
#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn words(error: anyhow::Error) -> String {
    format!("{error:#}")
}

/// A lab of two nodes with two pods each, where two outside hosts send what is for Services to node 1.
fn lab(mode: Mode) -> Result<Tollgate> {
    Tollgate::start(cluster()?, mode)
}

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::new(Topology { hosts: 2, ..Topology::default() })?;
    for host in [1, 2] {
        cluster.host(host).route_services_via(cluster.node(1))?;
    }
    Ok(cluster)
}
