//! Sequences of snapshots.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::backend::iptables::tests::properties::snapshots;

/// Destinations that get new connections, of each virtual service.
fn serving(applied: &Applied) -> BTreeMap<ServiceKey, BTreeSet<SocketAddr>> {
    let of = |service: &changes::AppliedService| {
        service.destinations.iter().filter(|(_, it)| it.weight > 0).map(|(to, _)| *to).collect()
    };
    applied.services.iter().map(|(key, service)| (*key, of(service))).collect()
}

/// What no packet must meet: a frontend that is let through to IPVS, and nobody serves it there.
fn gaps(applied: &Applied) -> Result<(), String> {
    let serving = serving(applied);
    for (element, value) in &applied.elements {
        let Some((protocol, port)) = element.port else { continue };
        let key = match element.set {
            SetName::Frontends => ServiceKey::Address { ip: element.ip, protocol, port },
            SetName::Shortcut => ServiceKey::Mark(value.mark.ok_or("a shortcut without a mark")?),
            _ => continue,
        };
        if serving.get(&key).is_none_or(BTreeSet::is_empty) {
            return Err(format!("{element}: nobody serves {key}"));
        }
    }
    Ok(())
}

/// The same without what connections may go on by.
fn without_rests(mut applied: Applied, plan: &Plan) -> Applied {
    applied.services.retain(|key, service| {
        service.destinations.retain(|_, destination| destination.weight > 0);
        plan.service(*key).is_some()
    });
    let is_held = |ip| plan.holds(ip) || plan.serves_at(ip);
    applied.elements.retain(|element, _| element.set != SetName::Vips || is_held(element.ip));
    let is_kept = |net: &ipnet::IpNet| net.prefix_len() < net.max_prefix_len() || is_held(net.addr());
    applied.routes.retain(|route| is_kept(&route.net));
    applied
}

/// Marks are given out by turn, so that only whose they are can be compared.
fn without_marks(applied: Applied, plan: &Plan) -> (BTreeMap<String, String>, BTreeMap<Element, bool>, String) {
    let name = |key: &ServiceKey| match key {
        ServiceKey::Mark(_) => format!("{:?}", plan.owner(*key)),
        ServiceKey::Address { .. } => key.to_string(),
    };
    let services = applied.services.iter().map(|(key, service)| (name(key), format!("{service:?}")));
    let elements = applied.elements.iter().map(|(element, value)| (element.clone(), value.mark.is_some()));
    (services.collect(), elements.collect(), format!("{:?}", applied.routes))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn changes_come_to_the_same_as_a_plan_made_at_once_and_never_leave_a_gap(snapshots in snapshots(), v6 in any::<bool>()) {
        let family = if v6 { IpFamily::V6 } else { IpFamily::V4 };
        let (mut plan, mut applied) = (plan(family), Applied::default());
        let mut last = Snapshot::default();
        for next in snapshots {
            let names: BTreeSet<_> = last.service_ports.keys().chain(next.service_ports.keys()).cloned().collect();
            let before = serving(&applied);
            let (touched, _) = plan.update(&next, names);
            let steps = changes::steps(&plan, &applied, &touched);
            let result = apply(&mut applied, &steps, |state, step| {
                gaps(state).map_err(|gap| format!("after {step}: {gap}"))?;
                // Who served and goes on to serve is there all the time.
                let now = serving(state);
                for (key, old) in &before {
                    let Some(wanted) = plan.service(*key) else { continue };
                    let stays = |to: &&SocketAddr| wanted.has(**to);
                    let missing = old.iter().filter(stays).find(|to| !now.get(key).is_some_and(|now| now.contains(to)));
                    if let Some(to) = missing {
                        return Err(format!("after {step}: {key} is without {to}"));
                    }
                }
                Ok(())
            });
            prop_assert_eq!(result, Ok(()));
            let mut fresh = self::plan(family);
            fresh.update(&next, next.service_ports.keys().cloned());
            let expected = without_marks(kernel(&fresh), &fresh);
            prop_assert_eq!(without_marks(without_rests(applied.clone(), &plan), &plan), expected);
            // Compared as a whole, there is nothing more to do.
            let again = changes::steps(&plan, &applied, &changes::everything(&plan, &applied));
            prop_assert_eq!(text(&again), "");
            last = next;
        }
    }
}
