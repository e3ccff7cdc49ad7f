//! Of the iptables mode.

use super::{Mutant, mutant};

const IPTABLES: &str = "proxy/src/backend/iptables/mod.rs";
const NAME: &str = "proxy/src/backend/iptables/name.rs";
const PLAN: &str = "proxy/src/backend/iptables/plan.rs";
const READBACK: &str = "proxy/src/backend/iptables/readback.rs";
const SERVICE: &str = "proxy/src/backend/iptables/service.rs";
const STYLE: &str = "proxy/src/backend/iptables/style.rs";
const TRANSACTION: &str = "proxy/src/backend/iptables/transaction.rs";

#[rustfmt::skip]
pub(super) const MUTANTS: &[Mutant] = &[
    mutant("family-split", SERVICE, "|ip: &IpAddr| IpFamily::from(*ip) == family;", "|ip: &IpAddr| IpFamily::from(*ip) == family || true;"),
    mutant("internal-policy-local", SERVICE, "            let kind = pool(internal_policy);\n", "            let kind = pool(TrafficPolicy::Cluster);\n            self.pool(kind, &endpoints.cluster);\n"),
    mutant("external-policy-local", SERVICE, "[format!(\"-g {local}\")]", "[format!(\"-g {cluster}\")]"),
    mutant("external-local-shortcut", SERVICE, "let pods = style.local_pods().into_iter().map(", "let pods = style.local_pods().into_iter().filter(|_| false).map("),
    mutant("external-local-shortcut", SERVICE, "[format!(\"{NODE} {}\", style.mark()), format!(\"{NODE} -g {cluster}\")]", "[format!(\"{NODE} -g {cluster}\")]"),
    mutant("external-local-shortcut", SERVICE, "[format!(\"{NODE} {}\", style.mark()), format!(\"{NODE} -g {cluster}\")]", "[format!(\"{NODE} {}\", style.mark())]"),
    mutant("no-endpoints-reject", STYLE, "\"-p tcp -j REJECT --reject-with tcp-reset\".to_owned(), format!(\"-j REJECT --reject-with {unreachable}\")", "format!(\"-m comment --comment {unreachable} -j DROP\")"),
    mutant("no-endpoints-reject", STYLE, "            refuse(SetName::Reject),\n", ""),
    mutant("no-endpoints-reject", SERVICE, "            self.element(SetName::Reject, ip, Some(port));\n", ""),
    mutant("no-local-drop", STYLE, "            format!(\"{} -j DROP\", self.matches(SetName::Drop)),\n", ""),
    mutant("no-local-drop", SERVICE, "            self.element(SetName::Drop, ip, Some(port));\n        }\n", "        }\n"),
    mutant("no-local-drop", SERVICE, "                self.element(SetName::Drop, frontend.ip, Some(frontend.port));\n", ""),
    mutant("unknown-port-on-vip", STYLE, "            refuse(SetName::ClusterIps),\n", ""),
    mutant("unallocated-vip-drop", STYLE, "_ => format!(\"-d {cidr} -j DROP\"),", "_ => format!(\"-d {cidr} -j RETURN\"),"),
    mutant("even-spread", SERVICE, "let share = share(1, rest);", "let share = share(1, rest.min(2));"),
    mutant("affinity-client-ip", SERVICE, "format!(\"-m set --match-set {set} src -g {chain}\")", "format!(\"-m set --match-set {set} dst -g {chain}\")"),
    mutant("affinity-client-ip-clock", SERVICE, "--add-set {set} src --exist --timeout {timeout}\")", "--add-set {set} src --timeout {timeout}\")"),
    mutant("affinity-client-ip-timeout", SERVICE, "--add-set {set} src --exist --timeout {timeout}\")", "--add-set {set} src --exist --timeout {timeout}0\")"),
    mutant("affinity-dead-endpoint", PLAN, "    changes.destroyed.extend(before.affinity.difference(&after.affinity).cloned());\n", ""),
    mutant("hairpin", STYLE, "            format!(\"-m conntrack --ctstate DNAT -m bpf --bytecode \\\"{program}\\\" -j MASQUERADE --random-fully\"),\n", "            format!(\"-m comment --comment \\\"{program}\\\" -j RETURN\"),\n"),
    mutant("pod-source-kept", STYLE, "local.map(|matches| format!(\"{matches} -j RETURN\"))", "local.map(|matches| format!(\"{matches} -m comment --comment kept\"))"),
    mutant("off-cluster-masquerade", STYLE, "local.map(|matches| format!(\"{matches} -j RETURN\")).chain([self.mark()]).collect()", "local.map(|matches| format!(\"{matches} -j RETURN\")).collect()"),
    mutant("masquerade-all", STYLE, ".filter(|_| !self.masquerade_all);", ".filter(|_| !self.masquerade_all || true);"),
    mutant("external-cluster-masquerade", SERVICE, "TrafficPolicy::Cluster => vec![style.mark(), format!(\"-g {cluster}\")],", "TrafficPolicy::Cluster => vec![format!(\"-g {cluster}\")],"),
    mutant("lb-source-ranges", SERVICE, "let kind = if is_guarded { Kind::SourceRanges } else { Kind::External };", "let kind = Kind::External;"),
    mutant("lb-source-ranges", SERVICE, "        self.element(SetName::Drop, ip, Some(port));\n        if self.has_no_endpoint() {", "        if self.has_no_endpoint() {"),
    mutant("lb-source-ranges", SERVICE, "self.objects.elements.extend(ranges.iter().map(admit));", "drop(ranges.iter().map(admit));"),
    mutant("nodeport-addresses", STYLE, "rules.extend(self.node_addresses.iter().map(|ip| format!(\"-d {} -g {}\", IpNet::from(*ip), name::NODE_PORTS)));", "rules.push(format!(\"-m addrtype --dst-type LOCAL -g {}\", name::NODE_PORTS));"),
    mutant("nodeport-addresses", PLAN, "if *old_style == self.style && old_trees.external.range() == self.trees.external.range() {", "if !old_style.node_addresses.is_empty() {"),
    mutant("udp-no-stale-flow", IPTABLES, "conntrack::stale_flows(before, &synced)).unwrap_or_default();", "conntrack::stale_flows(before, &synced)).filter(|_| false).unwrap_or_default();"),
    mutant("no-gap-on-restart", IPTABLES, "        let saved = self.save()?;\n        let mut repaired", "        if self.synced.is_none() {\n            let kernel = self.kernel()?;\n            for family in IpFamily::ALL {\n                transaction::commit(&[leftovers(kernel, family)?], kernel.batch_size(), |step| kernel.run(&step))?;\n            }\n        }\n        let saved = self.save()?;\n        let mut repaired"),
    mutant("removed-frontend-closes", PLAN, "            self.trees.of_mut(*dispatch).remove(key);\n", ""),
    mutant("no-gap-on-update", TRANSACTION, "        self.write(table, name, rules);\n        self.count(1)\n", "        self.write(table, name, &[]);\n        self.flush()?;\n        self.write(table, name, rules);\n        self.count(1)\n"),
    mutant("no-gap-on-update", TRANSACTION, "            for (name, rules) in &own.chains {\n", "            for name in own.chains.keys() {\n                self.write(Table::Nat, name, &[]);\n            }\n            self.flush()?;\n            for (name, rules) in &own.chains {\n"),
    mutant("foreign-rules-untouched", NAME, "    if FIXED.contains(&name) {\n", "    if FIXED.contains(&name) || name.starts_with(\"TOLLGATE-\") {\n"),
    mutant("foreign-rules-untouched", NAME, "        _ => false,\n    }\n}\n\n/// Whether a set", "        _ => true,\n    }\n}\n\n/// Whether a set"),
    mutant("foreign-rules-untouched", NAME, "        .any(|family| is_affinity_set(name, family) || SetName::ALL.iter().any(|set| set.text(family) == name))", "        .any(|_| name.starts_with(\"TG-A\") || name.starts_with(\"TOLLGATE-\"))"),
    mutant("cleanup-complete", IPTABLES, "errors.extend(ours.filter_map(|set| kernel.destroy(set).err()));", "drop(ours);"),
    mutant("cleanup-complete", IPTABLES, "    changes.deleted = listing.chains.keys().map(|(table, chain)| (*table, (*chain).to_owned())).collect();\n", ""),
    mutant("drift-repaired", READBACK, "            if wanted.len() == found.len() && wanted.iter().zip(&found)", "            if wanted.iter().zip(&found)"),
    mutant("drift-repaired", READBACK, "wanted.len() == found.len() && wanted.iter().zip(found)", "wanted.iter().zip(found)"),
    mutant("kill-then-start-converges", READBACK, "                self.changes.deleted.insert((table, chain));\n", ""),
    mutant("same-bridge-reply", IPTABLES, "        bridge::ensure_calls_netfilter(&config.families)?;\n", ""),
    mutant("forward-policy-drop", STYLE, "                format!(\"-m mark --mark {0:#x}/{0:#x} -j ACCEPT\", self.mark),\n", ""),
    mutant("forward-policy-drop", STYLE, "                \"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\".to_owned(),\n", ""),
    mutant("forward-policy-drop", STYLE, "cidrs.map(|cidr| format!(\"-m conntrack --ctstate DNAT --ctorigdst {cidr} -j ACCEPT\")).collect()", "cidrs.map(|cidr| format!(\"-m conntrack --ctstate DNAT --ctorigdst {cidr} -j RETURN\")).collect()"),
    mutant("invalid-dropped", STYLE, "\"-m conntrack --ctstate INVALID -j DROP\"", "\"-m conntrack --ctstate INVALID -j RETURN\""),
    mutant("invalid-dropped", IPTABLES, "let drops_invalid = !is_tcp_liberal();", "let drops_invalid = is_tcp_liberal();"),
    mutant("invalid-dropped", IPTABLES, "let drops_invalid = !is_tcp_liberal();", "let drops_invalid = true;"),
];
