//! The pure part: what is planned, how changes are ordered, and that they come to the same as a plan made at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tollgate_model::frontend::FrontendOrigin;
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::snapshot::Snapshot;

use super::changes::{self, Applied, Steps};
use super::object::{Element, ElementValue, Route, ServiceChange, ServiceKey, ServiceStep, SetName};
use super::plan::Plan;
use super::rules::{self, Listing};
use super::style::Style;
use crate::backend::iptables::tests::{
    external_local, local, node, service, snapshot, sticky, with_address, with_node_port, with_ranges,
};

mod golden;
mod properties;

fn plan(family: IpFamily) -> Plan {
    Plan::new(Style::new(family, &node(), true))
}

/// A plan of all of a snapshot.
fn placed(family: IpFamily, snapshot: &Snapshot) -> Plan {
    let mut plan = plan(family);
    let (_, refused) = plan.update(snapshot, snapshot.service_ports.keys().cloned());
    assert_eq!(refused, []);
    plan
}

/// What makes of a kernel that holds nothing what the plan says.
fn everything(plan: &Plan) -> Steps {
    let applied = Applied::default();
    changes::steps(plan, &applied, &changes::everything(plan, &applied))
}

/// A kernel that holds what a plan says.
fn kernel(plan: &Plan) -> Applied {
    let mut applied = Applied::default();
    apply(&mut applied, &everything(plan), |_, _| Ok(())).unwrap();
    applied
}

/// Does the steps in their order, and fails where a kernel would. Each state on the way is told to `each`.
fn apply(
    applied: &mut Applied,
    steps: &Steps,
    mut each: impl FnMut(&Applied, &str) -> Result<(), String>,
) -> Result<(), String> {
    let elements =
        |applied: &mut Applied, all: &[(Element, Option<ElementValue>)], each: &mut dyn FnMut(&Applied, &str) -> _| {
            all.iter().try_for_each(|(element, value)| {
                applied.apply_element(element, value.as_ref());
                each(applied, &element.to_string())
            })
        };
    let services = |applied: &mut Applied, all: &[ServiceStep], each: &mut dyn FnMut(&Applied, &str) -> _| {
        all.iter().try_for_each(|step| {
            check(applied, step)?;
            applied.apply_service(step);
            each(applied, &step.to_string())
        })
    };
    elements(applied, &steps.before, &mut each)?;
    services(applied, &steps.adds, &mut each)?;
    applied.routes.extend(&steps.new_routes);
    elements(applied, &steps.after, &mut each)?;
    services(applied, &steps.removals, &mut each)?;
    for route in &steps.old_routes {
        assert!(applied.routes.remove(route), "there is no route for {route}");
    }
    each(applied, "the end")
}

/// What a kernel would refuse.
fn check(applied: &Applied, step: &ServiceStep) -> Result<(), String> {
    let there = applied.services.get(&step.key);
    let has = |to: &SocketAddr| there.is_some_and(|there| there.destinations.contains_key(to));
    let is_right = match &step.change {
        ServiceChange::Add(_) => there.is_none(),
        ServiceChange::Set(_) | ServiceChange::Delete => there.is_some(),
        ServiceChange::AddDestination(to, _) => there.is_some() && !has(to),
        ServiceChange::SetDestination(to, _) | ServiceChange::DeleteDestination(to) => has(to),
    };
    if is_right { Ok(()) } else { Err(format!("refused: {step}")) }
}

/// The steps as a reader sees them.
fn text(steps: &Steps) -> String {
    let elements = |all: &[(Element, Option<ElementValue>)]| {
        let line = |(element, value): &(Element, Option<ElementValue>)| match value {
            None => format!("del {element}\n"),
            Some(ElementValue { mark, comment }) => {
                let mark = mark.map(|mark| format!(" mark {mark:#x}")).unwrap_or_default();
                let comment = comment.as_deref().map(|text| format!(" \"{text}\"")).unwrap_or_default();
                format!("add {element}{mark}{comment}\n")
            }
        };
        all.iter().map(line).collect::<String>()
    };
    let services = |all: &[ServiceStep]| all.iter().map(|step| format!("{step}\n")).collect::<String>();
    let routes =
        |verb: &str, all: &[Route]| all.iter().map(|route| format!("{verb} route {route}\n")).collect::<String>();
    let Steps { before, adds, new_routes, after, removals, old_routes } = steps;
    [
        ("before", elements(before)),
        ("adds", services(adds)),
        ("routes", routes("add", new_routes)),
        ("after", elements(after)),
        ("removals", services(removals)),
        ("routes", routes("delete", old_routes)),
    ]
    .into_iter()
    .filter(|(_, text)| !text.is_empty())
    .map(|(title, text)| format!("# {title}\n{text}"))
    .collect()
}
