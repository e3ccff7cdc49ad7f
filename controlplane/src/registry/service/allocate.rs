//! ClusterIPs and node ports: who has which, and what a Service gets when it is written.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use serde_json::{Map, Value, json};
use tollgate_api::v1::Key;

use super::families::{self, Resolved, addresses_of};
use super::service_type::{EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT};
use super::service_type_of;
use crate::metrics::RangeUsage;
use crate::registry::Error;
use crate::registry::invalid::Findings;
use crate::registry::manifest::children;
use crate::registry::pool::{Pool, static_part};
use crate::registry::service_cidr::{IpFamily, ServiceCidrs, number_of};

/// Everything that Services hold exclusively. Cloning costs nothing.
#[derive(Clone, Debug)]
pub(crate) struct Allocations {
    cidrs: ServiceCidrs,
    v4: Option<Pool>,
    v6: Option<Pool>,
    node_ports: Pool,
}

/// The node ports of a Service: those that it asks for or keeps, and whether it gets the others.
struct NodePorts<'a> {
    ports: &'a [ServicePort],
    /// For each port; `None`: any free one, or none.
    wanted: Vec<Option<i32>>,
    /// `spec.healthCheckNodePort`.
    health_check: Option<i32>,
    has_health_check: bool,
    /// All that it had, to whatever end.
    had: BTreeSet<i32>,
    /// Ports without a number get one.
    is_automatic: bool,
}

/// Nothing is left of what a Service needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: no free {what} is left in {range}")]
pub struct Exhausted {
    /// The Service that was to get one.
    pub key: Key,
    /// `IPv4 ClusterIP`, `node port`.
    pub what: String,
    /// The range that is used up.
    pub range: String,
}

// === impl Allocations ===

impl Allocations {
    /// Nobody holds anything yet.
    pub(crate) fn new(cidrs: ServiceCidrs, node_ports: RangeInclusive<u16>) -> Self {
        let seed = || uuid::Uuid::new_v4().as_u128();
        Allocations {
            v4: cidrs.pool(IpFamily::V4, seed()),
            v6: cidrs.pool(IpFamily::V6, seed()),
            node_ports: node_port_pool(node_ports, seed()),
            cidrs,
        }
    }

    /// Takes up what a stored Service holds. Returns what another holds already: the store was written by something
    /// else than this.
    pub(crate) fn restore(&mut self, key: &Arc<Key>, service: &Service) -> Vec<(String, Arc<Key>)> {
        let Some(spec) = &service.spec else { return Vec::new() };
        let mut conflicts = Vec::new();
        for address in held_addresses(spec) {
            if let Some(pool) = self.pool(IpFamily::of(address))
                && let Err(holder) = pool.claim(number_of(address), key)
            {
                conflicts.push((address.to_string(), holder));
            }
        }
        for port in held_node_ports(spec) {
            if let Err(holder) = self.node_ports.claim(port, key) {
                conflicts.push((format!("node port {port}"), holder));
            }
        }
        conflicts
    }

    /// How the ranges are used.
    pub(crate) fn usage(&self) -> Vec<RangeUsage> {
        let addresses =
            [(IpFamily::V4, &self.v4), (IpFamily::V6, &self.v6)].into_iter().filter_map(|(family, pool)| {
                let (used, total) = pool.as_ref()?.usage();
                Some(RangeUsage { cidr: Some(self.cidrs.net(family)?.to_string()), used, total })
            });
        let (used, total) = self.node_ports.usage();
        addresses.chain([RangeUsage { cidr: None, used, total }]).collect()
    }

    /// Takes back what a Service holds.
    pub(crate) fn release(&mut self, key: &Key, service: &Service) {
        let Some(spec) = &service.spec else { return };
        for address in held_addresses(spec) {
            if let Some(pool) = self.pool(IpFamily::of(address)) {
                pool.release(number_of(address), key);
            }
        }
        for port in held_node_ports(spec) {
            self.node_ports.release(port, key);
        }
    }

    /// Which families and addresses a Service is to have; `None` where it has none, or findings.
    pub(super) fn resolve(
        &self,
        spec: &ServiceSpec,
        old: Option<&ServiceSpec>,
        findings: &mut Findings,
    ) -> Option<Resolved> {
        if service_type_of(spec) == EXTERNAL_NAME {
            return None;
        }
        let old = old.filter(|old| service_type_of(old) != EXTERNAL_NAME);
        families::resolve(spec, old, &self.cidrs).map_err(|found| findings.extend(found)).ok()
    }

    /// Gives a Service that is about to be written what it needs, and writes it into the object; takes back what the
    /// Service held before and no longer has. `resolved` are its families, `findings` what is wrong with it already; with
    /// any, also here, nothing is handed out. After an error the allocations are to be thrown away.
    pub(super) fn settle(
        &mut self,
        key: &Arc<Key>,
        object: &mut Map<String, Value>,
        spec: &ServiceSpec,
        old: Option<&Service>,
        resolved: Option<Resolved>,
        mut findings: Findings,
    ) -> Result<(), Error> {
        if let Some(old) = old {
            self.release(key, old);
        }
        let old = old.and_then(|old| old.spec.as_ref());
        // All that is asked for comes before any number is handed out, or that one could be the very number that is asked
        // for next.
        if let Some(resolved) = &resolved {
            self.claim_addresses(key, resolved, old, &mut findings);
        }
        let ports = NodePorts::new(spec, old);
        self.claim_node_ports(key, &ports, &mut findings);
        findings.into_result(key)?;
        let Some(json) = object.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
        if let Some(resolved) = resolved {
            self.settle_addresses(key, &resolved, json)?;
        }
        self.settle_node_ports(key, &ports, json)
    }

    /// Claims the addresses that are asked for or were there before.
    fn claim_addresses(
        &mut self,
        key: &Arc<Key>,
        resolved: &Resolved,
        old: Option<&ServiceSpec>,
        findings: &mut Findings,
    ) {
        let had: Vec<IpAddr> = old.map(held_addresses).unwrap_or_default();
        for (index, (family, wanted)) in resolved.families.iter().zip(&resolved.addresses).enumerate() {
            let (Some(address), Some(net)) = (*wanted, self.cidrs.net(*family)) else { continue };
            // Where the range is gone since, an address that the Service has already stays.
            let Some(pool) = self.pool(*family) else { continue };
            let field = format!("spec.clusterIPs[{index}]");
            // The same when the CIDR has changed since.
            if !had.contains(&address) && !pool.contains(number_of(address)) {
                findings.wrong(field, address.to_string(), format!("must be an address for Services in {net}"));
            } else if let Err(holder) = pool.claim(number_of(address), key) {
                findings.wrong(field, address.to_string(), format!("is held by {holder}"));
            }
        }
    }

    /// Hands out the addresses that are missing, and writes all into the object.
    fn settle_addresses(
        &mut self,
        key: &Arc<Key>,
        resolved: &Resolved,
        json: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        let mut addresses = Vec::new();
        if resolved.is_headless {
            addresses.push("None".to_owned());
        } else {
            for (family, wanted) in resolved.families.iter().zip(&resolved.addresses) {
                let address = wanted.map_or_else(|| self.take_address(key, *family), |wanted| Ok(Some(wanted)))?;
                addresses.extend(address.map(|address| address.to_string()));
            }
        }
        if let Some(first) = addresses.first() {
            json.insert("clusterIP".to_owned(), first.clone().into());
        }
        json.insert("clusterIPs".to_owned(), addresses.into());
        json.insert("ipFamilies".to_owned(), resolved.families_json());
        json.insert("ipFamilyPolicy".to_owned(), resolved.policy.clone().into());
        Ok(())
    }

    /// A free address of a family; `None` where it has no range.
    fn take_address(&mut self, key: &Arc<Key>, family: IpFamily) -> Result<Option<IpAddr>, Error> {
        let Some(net) = self.cidrs.net(family) else { return Ok(None) };
        let taken = self.pool(family).and_then(|pool| pool.take(key)).and_then(|number| family.address(number));
        let exhausted =
            || Exhausted { key: (**key).clone(), what: format!("{} ClusterIP", family.name()), range: net.to_string() };
        Ok(Some(taken.ok_or_else(exhausted)?))
    }

    /// Claims the numbers that are asked for or were there before.
    fn claim_node_ports(&mut self, key: &Arc<Key>, ports: &NodePorts<'_>, findings: &mut Findings) {
        let numbers = ports.wanted.iter().enumerate();
        let numbers = numbers.filter_map(|(index, number)| Some((format!("spec.ports[{index}].nodePort"), (*number)?)));
        let health = ports.health_check.map(|number| ("spec.healthCheckNodePort".to_owned(), number));
        for (field, number) in numbers.chain(health) {
            let port = u128::try_from(number).unwrap_or(0);
            // What the Service has already stays, also when the range has changed since.
            if !ports.had.contains(&number) && !self.node_ports.contains(port) {
                findings.wrong(field, number, format!("must be in the node port range {}", self.node_ports));
            } else if let Err(holder) = self.node_ports.claim(port, key) {
                findings.wrong(field, number, format!("is held by {holder}"));
            }
        }
        if let Some(number) = ports.health_check
            && let Some(index) = ports.wanted.iter().position(|wanted| *wanted == Some(number))
        {
            let reason = format!("must be another number than spec.ports[{index}].nodePort");
            findings.wrong("spec.healthCheckNodePort", number, reason);
        }
    }

    /// Hands out the numbers that are missing, and writes all into the object.
    fn settle_node_ports(
        &mut self,
        key: &Arc<Key>,
        ports: &NodePorts<'_>,
        json: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        let mut numbers = ports.wanted.clone();
        for index in 0..numbers.len() {
            if numbers[index].is_none() && ports.is_automatic {
                numbers[index] = Some(match ports.shared(index, &numbers) {
                    Some(number) => number,
                    None => self.take_node_port(key)?,
                });
            }
        }
        for (number, port) in numbers.into_iter().zip(children(json, "ports")) {
            match number {
                Some(number) => drop(port.insert("nodePort".to_owned(), json!(number))),
                None => drop(port.shift_remove("nodePort")),
            }
        }
        let field = "healthCheckNodePort".to_owned();
        if !ports.has_health_check {
            json.shift_remove(&field);
        } else {
            let number = ports.health_check.map_or_else(|| self.take_node_port(key), Ok)?;
            json.insert(field, json!(number));
        }
        Ok(())
    }

    fn take_node_port(&mut self, key: &Arc<Key>) -> Result<i32, Error> {
        let taken = self.node_ports.take(key).and_then(|number| i32::try_from(number).ok());
        let exhausted =
            || Exhausted { key: (**key).clone(), what: "node port".into(), range: self.node_ports.to_string() };
        Ok(taken.ok_or_else(exhausted)?)
    }

    fn pool(&mut self, family: IpFamily) -> Option<&mut Pool> {
        match family {
            IpFamily::V4 => self.v4.as_mut(),
            IpFamily::V6 => self.v6.as_mut(),
        }
    }
}

// === impl NodePorts ===

impl<'a> NodePorts<'a> {
    fn new(spec: &'a ServiceSpec, old: Option<&ServiceSpec>) -> Self {
        let service_type = service_type_of(spec);
        let has_any = [NODE_PORT, LOAD_BALANCER].contains(&service_type);
        let has_health_check =
            service_type == LOAD_BALANCER && spec.external_traffic_policy.as_deref() == Some("Local");
        let given = |number: Option<i32>| number.filter(|number| *number != 0);
        let old_health = old.and_then(|old| given(old.health_check_node_port)).filter(|_| has_health_check);
        let old_ports = old.and_then(|old| old.ports.as_deref()).unwrap_or_default();
        let mut ports = NodePorts {
            ports: spec.ports.as_deref().unwrap_or_default(),
            wanted: Vec::new(),
            health_check: given(spec.health_check_node_port).or(old_health).filter(|_| has_health_check),
            has_health_check,
            had: old_ports.iter().filter_map(|port| given(port.node_port)).chain(old_health).collect(),
            is_automatic: service_type == NODE_PORT
                || (service_type == LOAD_BALANCER && spec.allocate_load_balancer_node_ports != Some(false)),
        };
        ports.wanted = ports.ports.iter().map(|port| given(port.node_port).filter(|_| has_any)).collect();
        if ports.is_automatic {
            ports.keep(old_ports);
        }
        ports
    }

    /// Ports without a number keep the one that they had: known by name, as in Kubernetes, or else by protocol and
    /// port.
    fn keep(&mut self, old: &[ServicePort]) {
        for index in 0..self.ports.len() {
            if self.wanted[index].is_some() {
                continue;
            }
            let port = &self.ports[index];
            let name = |port: &ServicePort| port.name.clone().unwrap_or_default();
            let by_name = old.iter().filter(|old| name(old) == name(port));
            let by_port = old.iter().filter(|old| old.protocol == port.protocol && old.port == port.port);
            let kept = by_name.chain(by_port).filter_map(|old| old.node_port.filter(|number| *number != 0));
            self.wanted[index] = kept.into_iter().find(|number| self.is_free(index, *number, &self.wanted));
        }
    }

    /// The number of another protocol on the same port, as Kubernetes does it for DNS over TCP and UDP.
    fn shared(&self, index: usize, numbers: &[Option<i32>]) -> Option<i32> {
        let same_port = self.ports.iter().zip(numbers).filter(|(port, _)| port.port == self.ports[index].port);
        same_port.filter_map(|(_, number)| *number).find(|number| self.is_free(index, *number, numbers))
    }

    /// Whether no other port of this protocol has the number.
    fn is_free(&self, index: usize, number: i32, numbers: &[Option<i32>]) -> bool {
        let same_protocol =
            self.ports.iter().zip(numbers).filter(|(port, _)| port.protocol == self.ports[index].protocol);
        !same_protocol.map(|(_, taken)| *taken).any(|taken| taken == Some(number)) && self.health_check != Some(number)
    }
}

fn node_port_pool(range: RangeInclusive<u16>, seed: u128) -> Pool {
    let (first, last) = (u128::from(*range.start()), u128::from(*range.end()));
    let size = (last + 1).saturating_sub(first);
    Pool::new(first, last, static_part(size, 32, 128), seed)
}

fn held_addresses(spec: &ServiceSpec) -> Vec<IpAddr> {
    addresses_of(spec).iter().filter_map(|address| address.parse().ok()).collect()
}

fn held_node_ports(spec: &ServiceSpec) -> Vec<u128> {
    let ports = spec.ports.iter().flatten().filter_map(|port| port.node_port);
    ports
        .chain(spec.health_check_node_port)
        .filter_map(|port| u128::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_ports_are_left_to_those_who_ask() {
        for (range, first_dynamic) in [
            (30_000..=30_015, 30_000),
            (30_000..=30_016, 30_016),
            (30_000..=30_127, 30_016),
            // The example of KEP-3668.
            (30_000..=32_767, 30_086),
            (1..=65_535, 129),
            (7..=7, 7),
        ] {
            assert_eq!(node_port_pool(range.clone(), 0).first_dynamic(), first_dynamic, "{range:?}");
        }
    }
}
