//! The mutants: for each rule a change that breaks it.

use std::fmt;

use anyhow::{Result, ensure};

/// One change that breaks a rule.
#[derive(Debug)]
pub(super) struct Mutant {
    /// The rule, and the beginning of the names of its cases.
    pub(super) rule: &'static str,
    /// The file, from the root of the tree.
    pub(super) file: &'static str,
    /// What stands in the file once.
    find: &'static str,
    /// What takes its place.
    replace: &'static str,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: `{}` becomes `{}`", self.rule, self.file, self.find, self.replace)
    }
}

impl Mutant {
    /// The file's text with the change.
    pub(super) fn apply(&self, text: &str) -> Result<String> {
        let count = text.matches(self.find).count();
        ensure!(count == 1, "`{}` is {count} times in {}, and it must be there once", self.find, self.file);
        Ok(text.replacen(self.find, self.replace, 1))
    }
}

const fn mutant(rule: &'static str, file: &'static str, find: &'static str, replace: &'static str) -> Mutant {
    Mutant { rule, file, find, replace }
}

const CHAIN: &str = "proxy/src/backend/nftables/chain.rs";
const CLAIMS: &str = "proxy/model/src/store/claims.rs";
const ENDPOINT: &str = "proxy/model/src/endpoint.rs";
const FLOWS: &str = "proxy/src/conntrack/flow/mod.rs";
const NFTABLES: &str = "proxy/src/backend/nftables/mod.rs";
const OBJECT: &str = "proxy/model/src/object.rs";
const OWN: &str = "proxy/model/src/store/own.rs";
const PLAN: &str = "proxy/src/backend/nftables/plan.rs";
const RESOLVE: &str = "proxy/model/src/store/resolve.rs";
const SELECT: &str = "proxy/model/src/select.rs";
const SERVICE: &str = "proxy/model/src/service.rs";
const STORE: &str = "proxy/model/src/store/mod.rs";

#[rustfmt::skip]
pub(super) const MUTANTS: &[Mutant] = &[
    mutant("headless-ignored", SERVICE, "return Ok(Self::without_frontends(reader.name().clone()));", r#"return Err(reader.invalid("spec", Problem::Missing));"#),
    mutant("foreign-proxy-ignored", SERVICE, "_ if is_foreign(&service.metadata) => None,", "_ if false => None,"),
    mutant("foreign-proxy-ignored", ENDPOINT, "owner.filter(|_| !is_foreign(&slice.metadata))", "owner.filter(|_| true || !is_foreign(&slice.metadata))"),
    mutant("slice-owner-label", SELECT, "    candidates.dedup_by_key(|candidate| (candidate.ip, candidate.port));\n", ""),
    mutant("slice-owner-label", SELECT, "    terminating: bool,\n    ready: Reverse<bool>,", "    ready: Reverse<bool>,\n    terminating: bool,"),
    mutant("family-split", SELECT, ".filter(|slice| slice.family == family)", ".filter(|slice| slice.family == family || true)"),
    mutant("bad-object-isolated", STORE, "tracing::warn!(object = %error.name, field = %error.field, \"skipped invalid {error}\");\n                self.delete(error.kind, error.name);", r#"tracing::warn!(object = %error.name, field = %error.field, "skipped invalid {error}");"#),
    mutant("bad-object-isolated", OBJECT, "Some(\"SCTP\") => Ok(Protocol::Sctp),\n            Some(other) => Err(self.invalid(field, Problem::Unknown(other.into()))),", "Some(\"SCTP\") => Ok(Protocol::Sctp),\n            Some(_) => { let _ = field; Ok(Protocol::Tcp) }"),
    mutant("endpoint-address-special", OBJECT, "ip.is_unspecified() || ip.is_loopback() || ip.is_link_local()", "ip.is_unspecified() || ip.is_link_local()"),
    mutant("ready-only", SELECT, "listed(candidates, |candidate| candidate.ready.0 && is_in_set(candidate))", "listed(candidates, |candidate| candidate.serves() && is_in_set(candidate))"),
    mutant("terminating-fallback", SELECT, "self.serving.0 && self.terminating", "self.terminating"),
    mutant("terminating-fallback", SELECT, "listed(candidates, |candidate| candidate.serves_while_terminating() && is_in_set(candidate))", "listed(candidates, |candidate| false && is_in_set(candidate))"),
    mutant("internal-policy-local", RESOLVE, "internal_traffic_policy: service.internal_traffic_policy,", "internal_traffic_policy: crate::service::TrafficPolicy::Cluster,"),
    mutant("external-policy-local", RESOLVE, "external_traffic_policy: service.external_traffic_policy,", "external_traffic_policy: crate::service::TrafficPolicy::Cluster,"),
    mutant("topology-zone", SELECT, "hints.all(|hint| hint != Hint::Absent)", "hints.all(|_| true)"),
    mutant("topology-zone", SELECT, "hints.clone().any(|hint| hint == Hint::Here) && ", ""),
    mutant("topology-node", SELECT, "if holds(|candidate| candidate.node_hint) {", "if false && holds(|candidate| candidate.node_hint) {"),
    mutant("no-local-drop", PLAN, "*kind == PoolKind::Local && has_endpoints_elsewhere", "false && *kind == PoolKind::Local && has_endpoints_elsewhere"),
    mutant("weights-equal", SELECT, "    candidates.dedup_by_key(|candidate| (candidate.ip, candidate.port));\n", "    let first = candidates.first().copied();\n    candidates.extend(first.map(|first| Candidate { port: first.port, ..first }));\n    candidates.sort_unstable();\n"),
    mutant("affinity-client-ip", RESOLVE, "session_affinity: service.session_affinity,", "session_affinity: crate::service::SessionAffinity::None,"),
    mutant("affinity-client-ip-timeout", SERVICE, "SessionAffinity::ClientIp { timeout: Duration::from_secs(timeout) }", "SessionAffinity::ClientIp { timeout: Duration::from_secs(timeout.max(60)) }"),
    mutant("lb-source-ranges", SERVICE, "let admits_all = ranges.is_empty() ||", "let admits_all = !ranges.is_empty() ||"),
    mutant("lb-source-ranges", SERVICE, "value.trim())", "value)"),
    mutant("lb-source-ranges-own-address", RESOLVE, "if !own.is_some_and(|own| ranges.iter().any(|range| range.contains(&own))) {", "if own.is_some() {"),
    mutant("lb-source-ranges-own-address", RESOLVE, "if !own.is_some_and(|own| ranges.iter().any(|range| range.contains(&own))) {", "if own.is_none() {"),
    mutant("lb-ipmode-proxy", SERVICE, r#"None | Some("" | "VIP") =>"#, r#"None | Some("" | "VIP" | "Proxy") =>"#),
    mutant("nodeport-addresses", OWN, "NodePortAddresses::Primary => primary.contains(&Some(*ip)),", "NodePortAddresses::Primary => true || primary.contains(&Some(*ip)),"),
    mutant("nodeport-addresses", OWN, "NodePortAddresses::Within(ranges) => is_in(ranges, ip),", "NodePortAddresses::Within(ranges) => true || is_in(ranges, ip),"),
    mutant("udp-no-stale-flow", FLOWS, "all.into_iter().map(stale).filter(|stale| !stale.to.is_empty()).collect()", "all.into_iter().map(stale).filter(|stale| stale.to.len() > 100).collect()"),
    mutant("udp-no-stale-flow", FLOWS, "        self.extend_node_ports([service_port], node_addresses.iter());\n", "        let _ = node_addresses;\n"),
    mutant("udp-no-stale-flow", FLOWS, "(led_to.is_empty() && after.is_some()).then_some(dialled)", "(led_to.is_empty() && after.is_none()).then_some(dialled)"),
    mutant("udp-no-stale-flow-serving-left-alone", FLOWS, "after.is_some_and(|after| serves(after, to))", "after.is_some_and(|after| serves(after, to) && false)"),
    mutant("tcp-terminating-drains", SELECT, "listed(candidates, |candidate| candidate.ready.0 && is_in_set(candidate))", "listed(candidates, |candidate| candidate.serves() && is_in_set(candidate))"),
    mutant("invalid-dropped", NFTABLES, "let drops_invalid = !is_tcp_liberal();", "let drops_invalid = is_tcp_liberal();"),
    mutant("frontend-conflict", CLAIMS, "    pub(super) created: i64,\n    pub(super) service: NamespacedName,", "    pub(super) service: NamespacedName,\n    pub(super) created: i64,"),
    mutant("external-ip-cidrs", RESOLVE, ".filter(|ip| config.admits_external_ip(**ip))", ".filter(|ip| config.admits_external_ip(**ip) || true)"),
    mutant("health-node-port", SELECT, "candidate.ready.0 && !candidate.terminating && candidate.is_local.0", "candidate.serves() && candidate.is_local.0"),
    mutant("health-node-port", SELECT, "candidate.ready.0 && !candidate.terminating && candidate.is_local.0", "candidate.ready.0 && !candidate.terminating"),
    mutant("external-local-shortcut", CHAIN, "            self.mark(is_node).goto(FixedChain::ExtShortcut.as_str()),\n", "            is_node,\n"),
    mutant("external-local-shortcut", CHAIN, "self.is_local_pod(shortcut()).map(|rule| rule.goto(FixedChain::ExtShortcut.as_str()));", "self.is_local_pod(shortcut());"),
    mutant("no-endpoints-reject", CHAIN, "rule(\"no-endpoints-reject\").protocol(Protocol::Tcp).reset(),\n                rule(\"no-endpoints-reject\").reject(self.family),", "rule(\"no-endpoints-reject\").drop(),"),
    mutant("unknown-port-on-vip", CHAIN, "                .goto(FixedChain::Refuse.as_str()),\n            rule(\"unallocated", "                .drop(),\n            rule(\"unallocated"),
    mutant("unallocated-vip-drop", CHAIN, ".within([self.daddr()], SetName::ServiceCidrs.as_str()).drop(),", ".within([self.daddr()], SetName::ServiceCidrs.as_str()),"),
    mutant("even-spread", CHAIN, "[self.dnat_to_slot(protocol, count), rule(\"no-gap", "[self.dnat_to_slot(protocol, count.next_power_of_two()), rule(\"no-gap"),
    mutant("affinity-client-ip-clock", CHAIN, "            remember(),\n            self.dnat_to_ref(pool, protocol),\n            // Forgotten", "            self.dnat_to_ref(pool, protocol),\n            // Forgotten"),
    mutant("affinity-dead-endpoint", CHAIN, "            known(\"affinity-dead-endpoint\").delete(affinity, client(), word()),\n", ""),
    mutant("hairpin", CHAIN, ".within([self.saddr(), self.daddr()], SetName::Hairpin.as_str())\n                .masquerade(),", ".within([self.saddr(), self.daddr()], SetName::Hairpin.as_str()),"),
    mutant("pod-source-kept", CHAIN, "self.is_local_pod(rule(\"pod-source-kept\")).map(Rule::ret);", "self.is_local_pod(rule(\"pod-source-kept\"));"),
    mutant("off-cluster-masquerade", CHAIN, ".then(|| self.mark(rule(\"off-cluster-masquerade\")));", ".then(|| rule(\"off-cluster-masquerade\"));"),
    mutant("masquerade-all", CHAIN, "return vec![self.mark(rule(\"masquerade-all\"))];", "return vec![rule(\"masquerade-all\")];"),
    mutant("external-cluster-masquerade", CHAIN, "self.mark(rule(\"external-cluster-masquerade\")),", "rule(\"external-cluster-masquerade\"),"),
    mutant("external-policy-local", CHAIN, "rule(\"external-policy-local\").set(Meta::Priority, pool_word(PoolKind::Local)),", "rule(\"external-policy-local\").set(Meta::Priority, pool_word(PoolKind::Cluster)),"),
    mutant("lb-source-ranges", CHAIN, ".outside([word().big_endian(), self.saddr()], SetName::LbRanges.as_str())\n                    .drop(),", ".outside([word().big_endian(), self.saddr()], SetName::LbRanges.as_str()),"),
    mutant("invalid-dropped", CHAIN, ".unequal(Term::from(Ct::State) & CT_STATE_INVALID, 0).drop()]", ".unequal(Term::from(Ct::State) & CT_STATE_INVALID, 0)]"),
];

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn every_mutant_fits_the_tree() {
        for mutant in MUTANTS {
            let text = tree::read(mutant.file).unwrap();
            assert_ne!(mutant.apply(&text).unwrap(), text, "{mutant}");
        }
    }
}
