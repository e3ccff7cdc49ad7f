//! ClusterIPs and node ports: who has which, and what a Service gets when it is written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde_json::{Map, Value, json};
use tollgate_api::v1::Key;

use super::families::{self, Resolved, addresses_of};
use super::service_type::{EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT};
use super::service_type_of;
use crate::registry::Error;
use crate::registry::invalid::Findings;
use crate::registry::manifest::{children, typed};
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

    /// Gives a Service that is about to be written what it needs, and writes it into the object; takes back what the
    /// Service held before and no longer has. After an error the allocations are to be thrown away.
    pub(crate) fn settle(
        &mut self,
        key: &Arc<Key>,
        object: &mut Map<String, Value>,
        old: Option<&Map<String, Value>>,
    ) -> Result<(), Error> {
        let service: Service = typed(key, object)?;
        let old: Option<Service> = old.map(|old| typed(key, old)).transpose()?;
        if let Some(old) = &old {
            self.release(key, old);
        }
        let old = old.as_ref().and_then(|old| old.spec.as_ref());
        let (Some(spec), Some(json)) = (&service.spec, object.get_mut("spec").and_then(Value::as_object_mut)) else {
            return Ok(());
        };
        let mut findings = Findings::default();
        self.settle_addresses(key, spec, old, json, &mut findings)?;
        self.settle_node_ports(key, spec, old, json, &mut findings)?;
        self.settle_health_check(key, spec, old, json, &mut findings)?;
        Ok(findings.into_result(key)?)
    }

    fn settle_addresses(
        &mut self,
        key: &Arc<Key>,
        spec: &ServiceSpec,
        old: Option<&ServiceSpec>,
        json: &mut Map<String, Value>,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        if service_type_of(spec) == EXTERNAL_NAME {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                json.shift_remove(field);
            }
            return Ok(());
        }
        let old = old.filter(|old| service_type_of(old) != EXTERNAL_NAME);
        let resolved = match families::resolve(spec, old, &self.cidrs) {
            Ok(resolved) => resolved,
            Err(found) => return Ok(found.into_result(key)?),
        };
        let addresses: Vec<String> = if resolved.is_headless {
            vec!["None".to_owned()]
        } else {
            self.claim_addresses(key, &resolved, old, findings)?.iter().map(ToString::to_string).collect()
        };
        if let Some(first) = addresses.first() {
            json.insert("clusterIP".to_owned(), first.clone().into());
        }
        json.insert("clusterIPs".to_owned(), addresses.into());
        json.insert("ipFamilies".to_owned(), resolved.families_json());
        json.insert("ipFamilyPolicy".to_owned(), resolved.policy.into());
        Ok(())
    }

    fn claim_addresses(
        &mut self,
        key: &Arc<Key>,
        resolved: &Resolved,
        old: Option<&ServiceSpec>,
        findings: &mut Findings,
    ) -> Result<Vec<IpAddr>, Error> {
        let had: Vec<IpAddr> = old.map(held_addresses).unwrap_or_default();
        let mut addresses = Vec::new();
        for (index, (family, wanted)) in resolved.families.iter().zip(&resolved.addresses).enumerate() {
            let net = self.cidrs.net(*family).map(|net| net.to_string()).unwrap_or_default();
            // `resolve` lets only configured families through.
            let Some(pool) = self.pool(*family) else { continue };
            let Some(address) = *wanted else {
                let taken = pool.take(key).and_then(|number| family.address(number));
                let what = || format!("{} ClusterIP", family.name());
                addresses.push(taken.ok_or_else(|| Exhausted { key: (**key).clone(), what: what(), range: net })?);
                continue;
            };
            let field = if index == 0 { "spec.clusterIP".to_owned() } else { format!("spec.clusterIPs[{index}]") };
            // An address that the Service has already stays, also when the CIDR has changed since.
            if !had.contains(&address) && !pool.contains(number_of(address)) {
                findings.wrong(field, address.to_string(), format!("must be an address for Services in {net}"));
            } else if let Err(holder) = pool.claim(number_of(address), key) {
                findings.wrong(field, address.to_string(), format!("is held by {holder}"));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }

    fn settle_node_ports(
        &mut self,
        key: &Arc<Key>,
        spec: &ServiceSpec,
        old: Option<&ServiceSpec>,
        json: &mut Map<String, Value>,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let service_type = service_type_of(spec);
        if ![NODE_PORT, LOAD_BALANCER].contains(&service_type) {
            children(json, "ports").for_each(|port| drop(port.shift_remove("nodePort")));
            return Ok(());
        }
        let is_automatic = service_type == NODE_PORT || spec.allocate_load_balancer_node_ports != Some(false);
        let had: BTreeMap<(Option<&str>, i32), i32> = old
            .into_iter()
            .flat_map(|old| old.ports.iter().flatten())
            .filter_map(|port| Some(((port.protocol.as_deref(), port.port), port.node_port?)))
            .collect();
        // One number serves the same port of several protocols (DNS over TCP and UDP), as in Kubernetes.
        let mut by_port: BTreeMap<i32, i32> = BTreeMap::new();
        let ports = spec.ports.as_deref().unwrap_or_default();
        for (index, (port, json)) in ports.iter().zip(children(json, "ports")).enumerate() {
            let given = port.node_port.filter(|number| *number != 0);
            let kept = || had.get(&(port.protocol.as_deref(), port.port)).copied();
            let wanted = given.or_else(kept).or_else(|| by_port.get(&port.port).copied());
            let number = match wanted {
                Some(number) => {
                    let is_kept = kept() == Some(number);
                    self.claim_node_port(key, &format!("spec.ports[{index}].nodePort"), number, is_kept, findings);
                    number
                }
                None if is_automatic => self.take_node_port(key)?,
                None => continue,
            };
            by_port.insert(port.port, number);
            json.insert("nodePort".to_owned(), json!(number));
        }
        Ok(())
    }

    fn settle_health_check(
        &mut self,
        key: &Arc<Key>,
        spec: &ServiceSpec,
        old: Option<&ServiceSpec>,
        json: &mut Map<String, Value>,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let field = "healthCheckNodePort";
        if service_type_of(spec) != LOAD_BALANCER || spec.external_traffic_policy.as_deref() != Some("Local") {
            json.shift_remove(field);
            return Ok(());
        }
        let kept = old.and_then(|old| old.health_check_node_port).filter(|number| *number != 0);
        let given = spec.health_check_node_port.filter(|number| *number != 0);
        let number = match given.or(kept) {
            Some(number) => {
                self.claim_node_port(key, &format!("spec.{field}"), number, kept == Some(number), findings);
                number
            }
            None => self.take_node_port(key)?,
        };
        json.insert(field.to_owned(), json!(number));
        Ok(())
    }

    fn claim_node_port(&mut self, key: &Arc<Key>, field: &str, number: i32, is_kept: bool, findings: &mut Findings) {
        let port = u128::try_from(number).unwrap_or(0);
        if !is_kept && !self.node_ports.contains(port) {
            findings.wrong(field, number, format!("must be in the node port range {}", self.node_ports));
        } else if let Err(holder) = self.node_ports.claim(port, key) {
            findings.wrong(field, number, format!("is held by {holder}"));
        }
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
