//! Of the nftables mode.

use super::{Mutant, mutant};

const BATCH: &str = "proxy/nftables/src/batch.rs";
const CHAIN: &str = "proxy/src/backend/nftables/chain.rs";
const FORWARD: &str = "proxy/src/backend/forward.rs";
const NFTABLES: &str = "proxy/src/backend/nftables/mod.rs";
const PLACEMENT: &str = "proxy/src/backend/nftables/placement.rs";
const PLAN: &str = "proxy/src/backend/nftables/plan.rs";

#[rustfmt::skip]
pub(super) const MUTANTS: &[Mutant] = &[
    mutant("no-local-drop", PLAN, "*kind == PoolKind::Local && has_endpoints_elsewhere", "false && *kind == PoolKind::Local && has_endpoints_elsewhere"),
    mutant("invalid-dropped", NFTABLES, "let drops_invalid = !is_tcp_liberal();", "let drops_invalid = is_tcp_liberal();"),
    mutant("external-local-shortcut", CHAIN, "            self.mark(is_node).goto(FixedChain::ExtShortcut.as_str()),\n", "            is_node,\n"),
    mutant("external-local-shortcut-without-detection", CHAIN, "self.mark(is_node).goto(FixedChain::ExtShortcut.as_str()),", "is_node.goto(FixedChain::ExtShortcut.as_str()),"),
    mutant("external-local-shortcut", CHAIN, "self.is_local_pod(shortcut()).map(|rule| rule.goto(FixedChain::ExtShortcut.as_str()));", "self.is_local_pod(shortcut());"),
    mutant("no-endpoints-reject", CHAIN, "rule(\"no-endpoints-reject\").protocol(wire(Protocol::Tcp)).reset(),\n                rule(\"no-endpoints-reject\").reject(addresses(self.family)),", "rule(\"no-endpoints-reject\").drop(),"),
    mutant("unknown-port-on-vip", CHAIN, "                .goto(FixedChain::Refuse.as_str()),\n            rule(\"unallocated", "                .drop(),\n            rule(\"unallocated"),
    mutant("unallocated-vip-drop", CHAIN, ".within([self.daddr()], SetName::ServiceCidrs.as_str()).drop(),", ".within([self.daddr()], SetName::ServiceCidrs.as_str()),"),
    mutant("even-spread", CHAIN, "[self.dnat_to_slot(protocol, count), rule(\"no-gap", "[self.dnat_to_slot(protocol, count.next_power_of_two()), rule(\"no-gap"),
    mutant("affinity-client-ip-clock", CHAIN, "            remember(),\n            self.dnat_to_ref(pool, protocol),\n            // Forgotten", "            self.dnat_to_ref(pool, protocol),\n            // Forgotten"),
    mutant("affinity-dead-endpoint", CHAIN, "            known(\"affinity-dead-endpoint\").delete(affinity, client(), word()),\n", ""),
    mutant("hairpin", CHAIN, ".within([self.saddr(), self.daddr()], SetName::Hairpin.as_str())\n                .masquerade(),", ".within([self.saddr(), self.daddr()], SetName::Hairpin.as_str()),"),
    mutant("pod-source-kept", CHAIN, "self.is_local_pod(rule(\"pod-source-kept\")).map(Rule::ret);", "self.is_local_pod(rule(\"pod-source-kept\"));"),
    mutant("off-cluster-masquerade", CHAIN, ".then(|| self.mark(rule(\"off-cluster-masquerade\")));", ".then(|| rule(\"off-cluster-masquerade\"));"),
    mutant("masquerade-all", CHAIN, "self.mark(rule(\"masquerade-all\").within([self.daddr()], SetName::ClusterIps.as_str()))", "rule(\"masquerade-all\").within([self.daddr()], SetName::ClusterIps.as_str())"),
    mutant("masquerade-all", CHAIN, "self.mark(rule(\"masquerade-all\").within([self.daddr()], SetName::ClusterIps.as_str()))", "self.mark(rule(\"masquerade-all\"))"),
    mutant("external-cluster-masquerade", CHAIN, "self.mark(rule(\"external-cluster-masquerade\")),", "rule(\"external-cluster-masquerade\"),"),
    mutant("external-policy-local", CHAIN, "rule(\"external-policy-local\").set(Meta::Priority, pool_word(PoolKind::Local)),", "rule(\"external-policy-local\").set(Meta::Priority, pool_word(PoolKind::Cluster)),"),
    mutant("lb-source-ranges", CHAIN, ".outside([word().big_endian(), self.saddr()], SetName::LbRanges.as_str())\n                    .drop(),", ".outside([word().big_endian(), self.saddr()], SetName::LbRanges.as_str()),"),
    mutant("invalid-dropped", CHAIN, ".unequal(Term::from(Ct::State) & CT_STATE_INVALID, 0).drop()]", ".unequal(Term::from(Ct::State) & CT_STATE_INVALID, 0)]"),
    mutant("family-split", PLACEMENT, "service_port.frontends.iter().filter(|frontend| frontend.family() == family)", "service_port.frontends.iter().filter(|frontend| frontend.family() == family || true)"),
    mutant("internal-policy-local", CHAIN, "rule(\"internal-policy-local\").set(Meta::Priority, pool_word(PoolKind::Local)),", "rule(\"internal-policy-local\").set(Meta::Priority, pool_word(PoolKind::Cluster)),"),
    mutant("internal-policy-local", PLACEMENT, "(FrontendOrigin::ClusterIp, TrafficPolicy::Local) => Route::By(Kind::VipLocal),", "(FrontendOrigin::ClusterIp, TrafficPolicy::Local) => Route::Plain,"),
    mutant("affinity-client-ip", CHAIN, "            remember(),\n            self.dnat_to_ref(pool, protocol),\n            rule(\"no-gap", "            self.dnat_to_ref(pool, protocol),\n            rule(\"no-gap"),
    mutant("affinity-client-ip-timeout", CHAIN, "Duration::from_secs(timeout.into())", "Duration::from_secs(u64::from(timeout) + 60)"),
    mutant("nodeport-addresses", CHAIN, "                .within([self.daddr()], SetName::NodeportIps.as_str())\n", ""),
    mutant("nodeport-addresses", PLAN, "if (&nodeport_ips, &local_pods) == (&self.nodeport_ips, &self.local_pods) {", "if !self.nodeport_ips.is_empty() {"),
    mutant("lb-source-ranges", PLACEMENT, "(FrontendOrigin::LoadBalancerIp, _) => Route::external(external, is_guarded),", "(FrontendOrigin::LoadBalancerIp, _) => Route::external(external, is_guarded && false),"),
    mutant("lb-source-ranges", PLACEMENT, "(FrontendOrigin::ExternalIp, _) => Route::external(external, false),", "(FrontendOrigin::ExternalIp, _) => Route::external(external, is_guarded),"),
    mutant("udp-no-stale-flow", NFTABLES, "conntrack::stale_flows(before, &synced)).unwrap_or_default();", "conntrack::stale_flows(before, &synced)).filter(|_| false).unwrap_or_default();"),
    mutant("no-gap-on-restart", NFTABLES, "for family in self.other_families.iter().filter(|_| self.synced.is_none()) {", "for family in IpFamily::ALL.iter().filter(|_| self.synced.is_none()) {"),
    mutant("removed-frontend-closes", PLAN, "        edit.before(|objects| old.elements(name, objects));\n", ""),
    mutant("no-gap-on-update", NFTABLES, "        let chains = transaction::take_new_chains(tables);\n", "        let chains = transaction::take_new_chains(tables);\n        for table in tables.iter_mut() {\n            let delete = std::mem::take(&mut table.changes.delete);\n            let changes = object::Changes { delete, ..object::Changes::default() };\n            self.kernel.commit(&[TableChanges { style: table.style.clone(), changes }])?;\n        }\n"),
    mutant("foreign-rules-untouched", BATCH, "self.message(NFT_MSG_DELTABLE, 0, table, |it| write_table(it, table.name));", "self.message(NFT_MSG_DELTABLE, 0, table, |_| ());"),
    mutant("cleanup-complete", NFTABLES, "IpFamily::ALL.into_iter().filter_map(|family| self.kernel.delete(family).err()).collect();", "IpFamily::ALL.into_iter().take(1).filter_map(|family| self.kernel.delete(family).err()).collect();"),
    mutant("drift-repaired", NFTABLES, "let is_untouched = is_exact && known == Some(before);", "let is_untouched = is_exact && known.is_some();"),
    mutant("kill-then-start-converges", NFTABLES, "object::into_changes(listed, plan.objects())", "object::into_changes(Objects::new(), plan.objects())"),
    mutant("same-bridge-reply", NFTABLES, "        bridge::ensure_calls_netfilter(&config.families)?;\n", ""),
    mutant("forward-policy-drop", NFTABLES, "        forward::warn_of_drop_policies(&config.families);\n", ""),
    mutant("forward-policy-drop", FORWARD, "hook: Hook::Forward, accepts: false, ..", "hook: Hook::Forward, accepts: true, .."),
];
