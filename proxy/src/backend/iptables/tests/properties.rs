//! Sequences of snapshots.

use proptest::prelude::*;

use super::*;

/// What a kernel would hold, as far as names go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    chains: BTreeMap<(Table, String), Vec<String>>,
    sets: BTreeSet<String>,
    members: BTreeSet<String>,
}

impl Held {
    /// Does what a step says, and fails where a kernel would: at what leads to nothing, and at what is still led to.
    fn apply(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Sets(text) => text.lines().try_for_each(|line| self.set(line)),
            Step::Rules(_, parts) => self.rules(&parts.concat()),
            Step::Destroy(sets) => sets.iter().try_for_each(|set| self.set(&format!("destroy {set}"))),
        }
    }

    fn set(&mut self, line: &str) -> Result<(), String> {
        let (verb, rest) = line.split_once(' ').ok_or(line)?;
        let set = rest.split(' ').next().unwrap_or_default();
        let is_new = match verb {
            "create" => self.sets.insert(set.to_owned()),
            "destroy" => {
                let users = self.chains.values().flatten().filter(|rule| rule.contains(&format!(" {set} "))).count();
                users == 0 && self.sets.remove(set)
            }
            "add" => self.sets.contains(set) && self.members.insert(rest.to_owned()),
            "del" => self.members.remove(rest),
            _ => false,
        };
        if is_new { Ok(()) } else { Err(format!("ipset: {line}")) }
    }

    fn rules(&mut self, text: &str) -> Result<(), String> {
        let mut table = Table::Nat;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::named(name).ok_or(line)?;
            } else if let Some(chain) = line.strip_prefix(':') {
                self.chains.insert((table, chain.split(' ').next().unwrap_or_default().to_owned()), Vec::new());
            } else if let Some((chain, rule)) = line.strip_prefix("-A T").and_then(|rest| rest.split_once(' ')) {
                let chain = format!("T{chain}");
                self.chains.get_mut(&(table, chain)).ok_or(line)?.push(rule.to_owned());
            } else if let Some(chain) = line.strip_prefix("-X ") {
                self.chains.remove(&(table, chain.to_owned())).ok_or(line)?;
            }
        }
        for ((table, _), rule) in self.chains.iter().flat_map(|(key, rules)| rules.iter().map(move |rule| (key, rule)))
        {
            let to = crate::backend::iptables::readback::target(rule).unwrap_or_default();
            let is_chain = to.starts_with("TG-") || to.starts_with("TOLLGATE-");
            if is_chain && !self.chains.contains_key(&(*table, to.to_owned())) {
                return Err(format!("{rule}: leads to nothing"));
            }
            let mut sets = rule.split(' ').filter(|word| word.starts_with("TG-A") || word.starts_with("TOLLGATE-4-"));
            if sets.any(|set| !self.sets.contains(set)) {
                return Err(format!("{rule}: there is no such set"));
            }
        }
        Ok(())
    }
}

fn arbitrary_service() -> impl Strategy<Value = ServicePort> {
    let addresses = prop::collection::vec((any::<bool>(), 0_u16..4), 0..2);
    let endpoints = prop_oneof![
        4 => prop::collection::btree_set(0_u16..20, 0..5),
        1 => prop::collection::btree_set(0_u16..200, 33..60),
    ];
    (0_u16..40, endpoints, addresses, prop::option::of(30_000_u16..30_040), any::<[bool; 5]>()).prop_map(
        |(index, endpoints, addresses, node_port, flags)| {
            let [is_udp, is_sticky, is_local, is_external_local, has_ranges] = flags;
            let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
            let endpoints: Vec<u16> = endpoints.into_iter().collect();
            let mut it = service(&format!("s{index}"), protocol, index, &endpoints);
            for (is_balancer, host) in addresses {
                let origin = if is_balancer { FrontendOrigin::LoadBalancerIp } else { FrontendOrigin::ExternalIp };
                it = with_address(it, origin, 8 * host + index);
            }
            it.frontends.sort_unstable();
            it.frontends.dedup_by_key(|frontend| frontend.ip);
            it.node_port = node_port;
            it = if is_sticky { sticky(it) } else { it };
            it = if is_local { local(it) } else { it };
            it = if is_external_local { external_local(it) } else { it };
            if has_ranges { with_ranges(it, &["192.0.2.0/24"], &["2001:db8:1::/48"]) } else { it }
        },
    )
}

pub(crate) fn snapshots() -> impl Strategy<Value = Vec<Snapshot>> {
    let addresses = prop::sample::subsequence(vec!["192.0.2.1", "192.0.2.2", "10.200.0.1"], 0..=3);
    let one = (prop::collection::vec(arbitrary_service(), 0..30), addresses, any::<bool>());
    let one = one.prop_map(|(services, addresses, has_pods)| Snapshot {
        pod_cidrs: if has_pods { cidrs(&["10.244.1.0/24"]).into() } else { Arc::default() },
        ..snapshot(services, &addresses)
    });
    prop::collection::vec(one, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn changes_come_to_the_same_as_a_plan_made_at_once(snapshots in snapshots(), batch in 1_usize..40) {
        let style = Style::new(IpFamily::V4, &NodeConfig { detect_local: DetectLocal::NodeCidr, ..node() }, true);
        let run = |held: &mut Held, changes: Changes| commit(&[changes], BatchSize(batch), |step| held.apply(&step));
        let mut plan = Plan::new(style.clone());
        let mut held = Held::default();
        prop_assert_eq!(run(&mut held, everything(&plan)), Ok(()));
        let mut last = Snapshot::default();
        for next in snapshots {
            let names: BTreeSet<_> = last.service_ports.keys().chain(next.service_ports.keys()).cloned().collect();
            let (changes, refused) = plan.update(&next, names);
            prop_assert_eq!(run(&mut held, changes), Ok(()));
            let mut fresh = Plan::new(style.clone());
            let (_, refused_at_once) = fresh.update(&next, next.service_ports.keys().cloned());
            prop_assert_eq!(refused, refused_at_once);
            let mut expected = Held::default();
            prop_assert_eq!(run(&mut expected, everything(&fresh)), Ok(()));
            prop_assert_eq!(&held, &expected);
            last = next;
        }
    }
}
