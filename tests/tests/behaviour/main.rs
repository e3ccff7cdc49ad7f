//! What Tollgate does, seen from outside: every rule on every backend and in both families, by real packets.
//!
//! A trial's name is `rule::mode::family`, where the rule is its name in the semantics. Cases that only read share a lab
//! for each mode and family; cases that stop, kill or break things have one of their own.

mod address;
mod connection;
mod deviation;
mod endpoint;
mod external;
mod flow;
mod health;
mod input;
mod load_balancer;
mod local;
mod node_port;
mod object;
mod packet;
mod rules;
mod scene;
mod sctp;
mod source;
mod spread;
mod table;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Failed, Trial};
use tollgate_lab::harness::{Shared, judge, run};
use tollgate_lab::{Cluster, Family, Mode, Tollgate, Topology, isolate, kernel_has_sctp};

use input::RawStage;
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
    /// Steps in a lab of its own that is not as the others are.
    Lab(fn(Mode) -> Result<Tollgate>, fn(&mut Stage) -> Result<()>),
    /// As `Table`, of SCTP: it takes a kernel that has it.
    Sctp(fn(&Scene<'_>) -> Table),
    /// Steps with a source that checks nothing.
    Raw(fn(&mut RawStage) -> Result<()>),
}

fn main() -> ExitCode {
    isolate();
    let mut trials = Vec::new();
    for (&mode, family) in Mode::ALL.iter().flat_map(|mode| Family::ALL.map(|family| (mode, family))) {
        let shared = Arc::new(Shared::new(move || lab(mode)));
        let trial = |(rule, case)| trial(rule, case, mode, family, shared.clone());
        trials.extend(cases().map(trial));
    }
    trials.push(Trial::test("deviations-are-in-the-readme", || {
        let names: Vec<_> = cases().map(|(name, _)| name).collect();
        Ok(deviation::check(&names).map_err(words)?)
    }));
    run(trials)
}

fn cases() -> impl Iterator<Item = (&'static str, Case)> {
    // The long ones first, so that the others run beside them.
    [connection::CASES, source::CASES, flow::CASES, rules::CASES, health::CASES]
        .into_iter()
        .chain([
            local::CASES,
            packet::CASES,
            input::CASES,
            node_port::CASES,
            object::CASES,
            endpoint::CASES,
            external::CASES,
        ])
        .chain([load_balancer::CASES, spread::CASES, address::CASES])
        .chain([sctp::CASES])
        .flatten()
        .copied()
}

fn trial(rule: &'static str, case: Case, mode: Mode, family: Family, shared: Arc<Shared<Tollgate>>) -> Trial {
    let run = move || {
        play(rule, case, mode, family, &shared).map_err(|failed| failed.message().unwrap_or_default().to_owned())
    };
    let trial = Trial::test(format!("{rule}::{mode}::{family}"), move || match deviation::of(mode, rule) {
        Some(deviation) => Ok(deviation.judge(run())?),
        None => Ok(run()?),
    });
    let lacking = match case {
        Case::Sctp(_) if !kernel_has_sctp() => Some("SCTP"),
        _ => mode.lacking(),
    };
    match lacking {
        // Not skipped for want of something that could be installed: xtask looks for a kernel that has it.
        Some(what) => trial.with_kind(format!("this kernel has no {what}")).with_ignored_flag(true),
        None => trial,
    }
}

fn play(rule: &str, case: Case, mode: Mode, family: Family, shared: &Shared<Tollgate>) -> Result<(), Failed> {
    match case {
        Case::Table(table) | Case::Sctp(table) => judge(&mut shared.get().map_err(words)?, |lab| {
            let scene = Scene::new(lab, family, rule)?;
            table(&scene).play(&scene)
        }),
        Case::Steps(steps) => judge(&mut shared.get().map_err(words)?, |lab| steps(&Scene::new(lab, family, rule)?)),
        Case::Own(steps) => judge(&mut Stage { lab: lab(mode).map_err(words)?, mode, family }, steps),
        Case::Lab(lab, steps) => judge(&mut Stage { lab: lab(mode).map_err(words)?, mode, family }, steps),
        Case::Raw(steps) => judge(&mut RawStage::new(mode, family).map_err(words)?, steps),
    }
}

/// The whole chain of causes.
#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn words(error: anyhow::Error) -> String {
    format!("{error:#}")
}

/// [`cluster`] with Tollgate on it.
fn lab(mode: Mode) -> Result<Tollgate> {
    Tollgate::start(cluster()?, mode)
}

/// Two nodes with two pods each, and two outside hosts that send what is for Services to node 1.
fn cluster() -> Result<Cluster> {
    let cluster = Cluster::new(Topology { hosts: 2, ..Topology::default() })?;
    for host in [1, 2] {
        cluster.host(host).route_services_via(cluster.node(1))?;
    }
    Ok(cluster)
}
