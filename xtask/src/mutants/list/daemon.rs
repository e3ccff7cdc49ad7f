//! Of the daemon around the modes: source, sync, connection tracking, health.

use super::{Mutant, mutant};

const ADDRESS: &str = "proxy/src/source/address/mod.rs";
const BRIDGE: &str = "proxy/src/backend/bridge.rs";
const CLEANER: &str = "proxy/src/conntrack/cleaner.rs";
const DAEMON: &str = "proxy/src/lib.rs";
const FLOWS: &str = "proxy/src/conntrack/flow/mod.rs";
const GRPC: &str = "proxy/src/source/grpc.rs";
const HEALTH: &str = "proxy/src/health.rs";
const HEALTH_CHECK: &str = "proxy/src/health_check.rs";
const SOURCE_OBJECT: &str = "proxy/src/source/object.rs";
const SYNC: &str = "proxy/src/sync/mod.rs";

#[rustfmt::skip]
pub(super) const MUTANTS: &[Mutant] = &[
    mutant("udp-no-stale-flow", FLOWS, "all.into_iter().map(stale).filter(|stale| !stale.to.is_empty()).collect()", "all.into_iter().map(stale).filter(|stale| stale.to.len() > 100).collect()"),
    mutant("udp-no-stale-flow", FLOWS, "        self.extend_node_ports([service_port], node_addresses.iter());\n", "        let _ = node_addresses;\n"),
    mutant("udp-no-stale-flow", FLOWS, "(led_to.is_empty() && after.is_some()).then_some(dialled)", "(led_to.is_empty() && after.is_none()).then_some(dialled)"),
    mutant("udp-no-stale-flow-serving-left-alone", FLOWS, "after.is_some_and(|after| serves(after, to))", "after.is_some_and(|after| serves(after, to) && false)"),
    mutant("udp-no-stale-flow", SYNC, "self.cleaner.owe(report.stale);", "drop(report.stale);"),
    mutant("udp-no-stale-flow-while-proxy-is-away", CLEANER, "owed: Vec::new(), owes_reconcile: true,", "owed: Vec::new(), owes_reconcile: false,"),
    mutant("tcp-established-survives", DAEMON, r#"tracing::info!("stopping; the rules stay in place");"#, "let _cleaned = backend::open_for_cleanup(mode, &backend::NodeConfig::default()).and_then(|mut it| it.cleanup());"),
    mutant("source-lost-keeps-serving", GRPC, "            self.metrics.source_connected.set(0);\n", "            self.metrics.source_connected.set(0);\n            let nothing = each_kind(Event::Init).into_iter().chain(each_kind(Event::InitDone)).collect();\n            let _sent = self.send(nothing, None).await;\n"),
    mutant("source-lost-keeps-serving", GRPC, "                self.send(each_kind(Event::Init), None).await?;\n", ""),
    mutant("bad-object-isolated", SOURCE_OBJECT, "Err(invalid) => Event::Invalid(invalid),", r#"Err(invalid) => panic!("{invalid}"),"#),
    mutant("bad-object-isolated", SOURCE_OBJECT, "Err(error) => return (Some(Event::Invalid(InvalidObject::undecodable(kind, name(key), error))), None),", r#"Err(error) => panic!("{error}"),"#),
    mutant("nodeport-addresses", ADDRESS, "Message::NewAddress(_) | Message::DelAddress(_) | Message::DelLink(_) => true,", "Message::NewAddress(_) | Message::DelLink(_) => true,"),
    mutant("nodeport-addresses", ADDRESS, "Message::NewAddress(_) | Message::DelAddress(_) | Message::DelLink(_) => true,", "Message::DelAddress(_) | Message::DelLink(_) => true,"),
    mutant("drift-repaired", SYNC, "self.next_full = Instant::now() + self.period.max(", "self.next_full = Instant::now() + 1000 * self.period.max("),
    mutant("mode-switch-clean", SYNC, "            self.leave_others();\n            self.cleaner.owe_reconcile();\n", ""),
    mutant("mode-switch-clean", SYNC, "        let report = match self.backend.sync(", "        self.leave_others();\n        let report = match self.backend.sync("),
    mutant("same-bridge-reply", BRIDGE, "    fs::write(path, \"1\")?;\n", ""),
    mutant("healthz", HEALTH, "let is_ok = !is_stuck && (question", "let is_ok = (question"),
    mutant("healthz", HEALTH, "self.pending_since.is_some_and(|since| since.elapsed() > timeout)", "self.pending_since.is_some_and(|since| since.elapsed() < timeout)"),
    mutant("healthz", HEALTH, "(question == Question::Livez || is_eligible)", "(question == Question::Livez || true)"),
    mutant("healthz", HEALTH, "(question == Question::Livez || is_eligible)", "(question != Question::Livez || is_eligible)"),
    mutant("health-node-port", HEALTH_CHECK, "let fits = local_endpoints > 0 && service_proxy_healthy;", "let fits = local_endpoints > 0;"),
    mutant("health-node-port", HEALTH_CHECK, "let fits = local_endpoints > 0 && service_proxy_healthy;", "let fits = service_proxy_healthy;"),
    mutant("health-node-port", HEALTH_CHECK, "let service_proxy_healthy = self.health.is_healthy();", "let service_proxy_healthy = true;"),
];
