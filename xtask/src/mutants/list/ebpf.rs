//! Of the ebpf mode's socket layer. Packets are the nftables mode's.

use super::{Mutant, mutant};

const EBPF: &str = "proxy/src/backend/ebpf/mod.rs";
const KERNEL: &str = "proxy/src/backend/ebpf/kernel.rs";
const PLACEMENT: &str = "proxy/src/backend/ebpf/placement.rs";
const PLAN: &str = "proxy/src/backend/ebpf/plan.rs";
const SOCKET: &str = "proxy/src/backend/ebpf/socket.rs";

#[rustfmt::skip]
pub(super) const MUTANTS: &[Mutant] = &[
    mutant("internal-policy-local", PLACEMENT, "Some(FrontendOrigin::ClusterIp) => service_port.internal_traffic_policy,", "Some(FrontendOrigin::ClusterIp) => TrafficPolicy::Cluster,"),
    mutant("external-local-shortcut", PLACEMENT, "            _ => TrafficPolicy::Cluster,\n", "            _ => service_port.external_traffic_policy,\n"),
    mutant("no-local-drop", PLACEMENT, "(pool::LOCAL, sets.local.is_empty() && !sets.cluster.is_empty())", "(pool::LOCAL, false)"),
    mutant("lb-source-ranges", PLACEMENT, "origin == Some(FrontendOrigin::LoadBalancerIp) && is_guarded;", "origin.is_none() && is_guarded;"),
    mutant("masquerade-all", PLACEMENT, "is_cluster_ip && rules.masquerade_all;", "!is_cluster_ip && rules.masquerade_all;"),
    mutant("affinity-client-ip", PLACEMENT, "            if self.affinity.is_some() {\n", "            if self.affinity.is_some() && self.id == 0 {\n"),
    mutant("unknown-port-on-vip", PLAN, "                value.flags |= address_flags::REFUSE_UNKNOWN;\n", ""),
    mutant("removed-frontend-closes", PLAN, "            edit.services[0].extend(placement.services());\n", ""),
    mutant("udp-no-stale-flow", EBPF, "Stale { udp: udp(&report.stale), ..Stale::default() };", "Stale::default();"),
    mutant("udp-no-stale-flow-while-proxy-is-away", EBPF, "        self.owes_sockets |= !is_settled;\n", "        self.owes_sockets = false;\n"),
    mutant("udp-no-stale-flow", SOCKET, "let was_there = diag.destroy(&socket, protocol)?;", "let was_there = socket.cookie() == 0;"),
    mutant("cleanup-complete", EBPF, "        let left = self.leave();\n", "        let left: Result<(), Error> = Ok(());\n"),
    mutant("kill-then-start-converges", EBPF, "let changes = listed.changes_to(&wanted);", "let changes = wanted.changes_to(&wanted);\n        drop(listed);"),
    mutant("drift-repaired", KERNEL, "            } else if self.ensure_pinned(&link.fd, &self.pins.links().join(name))? {\n", "            } else if found.id == 0 && self.ensure_pinned(&link.fd, &self.pins.links().join(name))? {\n"),
];
