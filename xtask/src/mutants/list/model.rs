//! Of the decisions that every mode shares.

use super::{Mutant, mutant};

const CLAIMS: &str = "proxy/model/src/store/claims.rs";
const ENDPOINT: &str = "proxy/model/src/endpoint.rs";
const KEPT: &str = "proxy/model/src/store/kept.rs";
const NODE: &str = "proxy/model/src/node.rs";
const OBJECT: &str = "proxy/model/src/object.rs";
const OWN: &str = "proxy/model/src/store/own.rs";
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
    mutant("tcp-terminating-drains", SELECT, "listed(candidates, |candidate| candidate.ready.0 && is_in_set(candidate))", "listed(candidates, |candidate| candidate.serves() && is_in_set(candidate))"),
    mutant("frontend-conflict", CLAIMS, "    pub(super) created: i64,\n    pub(super) service: NamespacedName,", "    pub(super) service: NamespacedName,\n    pub(super) created: i64,"),
    mutant("external-ip-cidrs", RESOLVE, ".filter(|ip| config.admits_external_ip(**ip))", ".filter(|ip| config.admits_external_ip(**ip) || true)"),
    mutant("health-node-port", SELECT, "candidate.ready.0 && !candidate.terminating && candidate.is_local.0", "candidate.serves() && candidate.is_local.0"),
    mutant("health-node-port", SELECT, "candidate.ready.0 && !candidate.terminating && candidate.is_local.0", "candidate.ready.0 && !candidate.terminating"),
    mutant("terminating-fallback", SELECT, "    if !ready.is_empty() {\n        return ready;", "    if !ready.is_empty() || candidates.iter().any(|candidate| candidate.ready.0) {\n        return ready;"),
    mutant("topology-zone", SELECT, "chosen(&candidates, |candidate| candidate.is_local.0)", "chosen(&candidates, |candidate| candidate.is_local.0 && candidate.is_within(narrowing))"),
    mutant("topology-zone", SELECT, "candidates.iter().filter(|candidate| candidate.ready.0).map(hint)", "candidates.iter().map(hint)"),
    mutant("topology-node", SELECT, "    } else if holds(|candidate| candidate.zone_hint) {", "    } else if candidates.iter().all(|it| it.node_hint == Hint::Absent) && holds(|candidate| candidate.zone_hint) {"),
    mutant("frontend-conflict", CLAIMS, "    pub(super) ground: Ground,\n    pub(super) created: i64,\n", "    pub(super) created: i64,\n    pub(super) ground: Ground,\n"),
    mutant("frontend-conflict", CLAIMS, "claimants.first().filter(|_| at == 0).map(|heir| heir.service.clone())", "claimants.first().filter(|_| at > 0).map(|heir| heir.service.clone())"),
    mutant("removed-frontend-closes", STORE, "            service_ports.remove(&key);\n", "            let _ = key;\n"),
    mutant("source-lost-keeps-serving", STORE, "        if self.waits_for().next().is_some() {\n            return None;\n        }\n", ""),
    mutant("source-lost-keeps-serving", KEPT, "self.held.keys().filter(|name| !incoming.contains_key(name))", "self.held.keys().filter(|name| !incoming.contains_key(name) && false)"),
    mutant("health-node-port", RESOLVE, "ready.collect::<BTreeSet<_>>().len()", "ready.count()"),
    mutant("healthz", NODE, "taints.any(|taint| taint.key == TO_BE_DELETED_TAINT)", "taints.any(|taint| taint.key.is_empty())"),
];
