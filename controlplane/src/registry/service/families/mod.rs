//! Which IP families a Service has, and which addresses it asks for, from what its manifest says and what it had.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ServiceSpec;
use serde_json::Value;

use super::service_type::EXTERNAL_NAME;
use super::service_type_of;
use super::validate::is_headless;
use crate::registry::invalid::Findings;
use crate::registry::name;
use crate::registry::service_cidr::{IpFamily, ServiceCidrs};

const SINGLE_STACK: &str = "SingleStack";
const PREFER_DUAL_STACK: &str = "PreferDualStack";
const REQUIRE_DUAL_STACK: &str = "RequireDualStack";

/// What a Service is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// `spec.ipFamilyPolicy`.
    pub(super) policy: String,
    /// `spec.ipFamilies`, one or two.
    pub(super) families: Vec<IpFamily>,
    /// No address on purpose.
    pub(super) is_headless: bool,
    /// For each family the address that is asked for or was there before; `None`: any free one.
    pub(super) addresses: Vec<Option<IpAddr>>,
}

/// Checks the families against those that the Service had.
pub(super) fn validate_update(spec: &ServiceSpec, old: &ServiceSpec, findings: &mut Findings) {
    // Those of a headless Service say only which endpoints are wanted.
    let is_free = |spec: &ServiceSpec| service_type_of(spec) == EXTERNAL_NAME || is_headless(spec);
    if is_free(spec) || is_free(old) {
        return;
    }
    let families = spec.ip_families.iter().flatten().zip(old.ip_families.iter().flatten());
    for (index, (family, had)) in families.enumerate() {
        if family != had {
            let reason = format!("must stay {had}: it can't be changed, delete the Service first");
            findings.wrong(format!("spec.ipFamilies[{index}]"), family.as_str(), reason);
        }
    }
}

/// Checks the fields about families and ClusterIPs in themselves.
pub(super) fn validate(spec: &ServiceSpec, findings: &mut Findings) {
    let addresses = addresses_of(spec);
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if service_type_of(spec) == EXTERNAL_NAME {
        let reason = "must be absent for a Service of type ExternalName";
        for (field, list) in [("spec.clusterIPs", &addresses[..]), ("spec.ipFamilies", families)] {
            if !list.is_empty() {
                findings.wrong(field, list.to_vec(), reason);
            }
        }
        if let Some(policy) = spec.ip_family_policy.as_deref() {
            findings.wrong("spec.ipFamilyPolicy", policy, reason);
        }
        return;
    }
    if let (Some(first), Some(single)) = (addresses.first(), spec.cluster_ip.as_deref())
        && first != single
    {
        findings.wrong("spec.clusterIPs[0]", first.as_str(), format!("must be the same as spec.clusterIP, {single}"));
    }
    let policies = [SINGLE_STACK, PREFER_DUAL_STACK, REQUIRE_DUAL_STACK];
    findings.one_of("spec.ipFamilyPolicy", spec.ip_family_policy.as_deref(), &policies);
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        if family.parse::<IpFamily>().is_err() {
            findings.wrong(field, family.as_str(), "must be IPv4 or IPv6");
        } else if families[..index].contains(family) {
            findings.wrong(field, family.as_str(), "must be unique");
        }
    }
    validate_addresses(&addresses, families, findings);
}

fn validate_addresses(addresses: &[String], families: &[String], findings: &mut Findings) {
    let mut seen = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let field = format!("spec.clusterIPs[{index}]");
        if address == "None" {
            if addresses.len() > 1 {
                findings.wrong(field, address.as_str(), "must stand alone");
            }
            continue;
        }
        let family = match name::parse_ip(address) {
            Ok(parsed) => IpFamily::of(parsed),
            Err(reason) => {
                let reason = format!("{reason}; or \"None\", or absent");
                findings.wrong(field, address.as_str(), reason);
                continue;
            }
        };
        if seen.contains(&family) {
            findings.wrong(&field, address.as_str(), "must be of another family than the first");
        }
        seen.push(family);
        if let Some(asked) = families.get(index).filter(|asked| *asked != family.name()) {
            findings.wrong(field, address.as_str(), format!("must be {asked}, as spec.ipFamilies[{index}] says"));
        }
    }
    if addresses.len() > 2 {
        findings.wrong("spec.clusterIPs", addresses.to_vec(), "must be at most one of each family");
    }
}

/// Decides what a Service is to have. `old` is its stored spec, where it had an address or was headless; the ClusterIPs
/// that the manifest does not mention have been carried over from there. Families that it does not mention stay.
pub(super) fn resolve(
    spec: &ServiceSpec,
    old: Option<&ServiceSpec>,
    cidrs: &ServiceCidrs,
) -> Result<Resolved, Findings> {
    let mut findings = Findings::default();
    let is_headless = is_headless(spec);
    // Endpoints of a headless Service without a selector are written by hand and may be of any family.
    let is_free = is_headless && spec.selector.as_ref().is_none_or(BTreeMap::is_empty);
    let policy = resolve_policy(spec, old, is_free);
    let mut addresses = addresses_of(spec);
    let mut families = families_of(spec);
    if families.is_empty() {
        families = old.map(families_of).unwrap_or_default();
    }
    if let Some(old) = old {
        // A cluster that has got a second range later does not change Services that nobody touches.
        let is_untouched = old.ip_family_policy.as_deref() == Some(PREFER_DUAL_STACK)
            && policy == PREFER_DUAL_STACK
            && addresses == addresses_of(old)
            && families == families_of(old);
        if is_untouched {
            return Ok(Resolved::new(policy, families, is_headless, &addresses));
        }
        change(&policy, &mut addresses, &mut families, old, &mut findings);
    }
    if policy == SINGLE_STACK {
        for (what, count) in [("clusterIPs", addresses.len()), ("ipFamilies", families.len())] {
            if count > 1 {
                let reason =
                    format!("must be {PREFER_DUAL_STACK} or {REQUIRE_DUAL_STACK} where spec.{what} has two entries");
                findings.wrong("spec.ipFamilyPolicy", policy.as_str(), reason);
            }
        }
    }
    for (index, address) in addresses.iter().enumerate().skip(families.len()) {
        let Ok(address) = address.parse::<IpAddr>() else { continue };
        let family = IpFamily::of(address);
        if cidrs.net(family).is_none() {
            let reason = format!("must be of a family of the service CIDRs {cidrs}");
            findings.wrong(format!("spec.clusterIPs[{index}]"), address.to_string(), reason);
        }
        families.push(family);
    }
    if findings.is_empty() {
        complete_families(&mut families, &policy, is_free, cidrs, &mut findings);
    }
    if findings.is_empty() { Ok(Resolved::new(policy, families, is_headless, &addresses)) } else { Err(findings) }
}

fn resolve_policy(spec: &ServiceSpec, old: Option<&ServiceSpec>, is_free: bool) -> String {
    let given = spec.ip_family_policy.clone();
    let inherited = || old.and_then(|old| old.ip_family_policy.clone());
    given.or_else(inherited).unwrap_or_else(|| if is_free { REQUIRE_DUAL_STACK } else { SINGLE_STACK }.to_owned())
}

/// Checks what became of the families and addresses that the Service had; takes the second ones away where the policy
/// says so.
fn change(
    policy: &str,
    addresses: &mut Vec<String>,
    families: &mut Vec<IpFamily>,
    old: &ServiceSpec,
    findings: &mut Findings,
) {
    let (had_addresses, had_families) = (addresses_of(old), families_of(old));
    if policy == SINGLE_STACK {
        if *addresses == had_addresses {
            addresses.truncate(1);
        }
        if *families == had_families {
            families.truncate(1);
        }
    } else if addresses.len() < had_addresses.len() || families.len() < had_families.len() {
        let reason = format!("must be {SINGLE_STACK} to give up the second family");
        findings.wrong("spec.ipFamilyPolicy", policy, reason);
    }
    for (index, (address, had)) in addresses.iter().zip(&had_addresses).enumerate() {
        if address != had {
            let reason = format!("must stay {had}: it can't be changed, delete the Service first");
            findings.wrong(format!("spec.clusterIPs[{index}]"), address.as_str(), reason);
        }
    }
}

/// Adds the families that the policy asks for, and checks that there are ranges for all.
fn complete_families(
    families: &mut Vec<IpFamily>,
    policy: &str,
    is_free: bool,
    cidrs: &ServiceCidrs,
    findings: &mut Findings,
) {
    let is_dual = cidrs.families().count() > 1;
    if !is_free {
        if policy == REQUIRE_DUAL_STACK && !is_dual {
            let reason =
                format!("must be {SINGLE_STACK} or {PREFER_DUAL_STACK}: the service CIDR {cidrs} has one family");
            findings.wrong("spec.ipFamilyPolicy", policy, reason);
        }
        for (index, family) in families.iter().enumerate().filter(|(_, family)| cidrs.net(**family).is_none()) {
            let reason = format!("must be a family of the service CIDRs {cidrs}");
            findings.wrong(format!("spec.ipFamilies[{index}]"), family.name(), reason);
        }
    }
    if families.is_empty() {
        families.extend(cidrs.families().next());
    }
    if let [first] = families[..]
        && policy != SINGLE_STACK
        && (is_free || is_dual)
    {
        families.push(first.other());
    }
}

/// The ClusterIPs that a spec gives, in one list.
pub(super) fn addresses_of(spec: &ServiceSpec) -> Vec<String> {
    match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(list), _) if !list.is_empty() => list.clone(),
        (_, Some(single)) if !single.is_empty() => vec![single.clone()],
        _ => Vec::new(),
    }
}

fn families_of(spec: &ServiceSpec) -> Vec<IpFamily> {
    spec.ip_families.iter().flatten().filter_map(|family| family.parse().ok()).collect()
}

// === impl Resolved ===

impl Resolved {
    fn new(policy: String, families: Vec<IpFamily>, is_headless: bool, addresses: &[String]) -> Self {
        let address = |index: usize| addresses.get(index)?.parse().ok();
        let addresses = (0..families.len()).map(address).collect();
        Resolved { policy, families, is_headless, addresses }
    }

    /// `spec.ipFamilies` as JSON.
    pub(super) fn families_json(&self) -> Value {
        self.families.iter().map(|family| family.name()).collect()
    }
}

#[cfg(test)]
mod tests;
