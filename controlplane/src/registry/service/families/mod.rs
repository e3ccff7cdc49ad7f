//! Which IP families a Service has, and which addresses it asks for, from what its manifest says and what it had.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ServiceSpec;
use serde_json::Value;

use super::service_type::EXTERNAL_NAME;
use super::validate::is_headless;
use crate::registry::invalid::Findings;
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

/// Checks the fields about families and ClusterIPs in themselves.
pub(super) fn validate(spec: &ServiceSpec, findings: &mut Findings) {
    let addresses = addresses_of(spec);
    if spec.type_.as_deref() == Some(EXTERNAL_NAME) {
        if let Some(address) = addresses.first() {
            findings.wrong("spec.clusterIP", address.as_str(), "must be absent for a Service of type ExternalName");
        }
        return;
    }
    if let (Some(first), Some(single)) = (spec.cluster_ips.iter().flatten().next(), &spec.cluster_ip)
        && first != single
        && !single.is_empty()
    {
        findings.wrong("spec.clusterIPs[0]", first.as_str(), format!("must be the same as spec.clusterIP, {single}"));
    }
    if let Some(policy) = spec.ip_family_policy.as_deref() {
        let known = [SINGLE_STACK, PREFER_DUAL_STACK, REQUIRE_DUAL_STACK];
        if !known.contains(&policy) {
            findings.wrong("spec.ipFamilyPolicy", policy, format!("must be one of {}", known.join(", ")));
        }
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        if family.parse::<IpFamily>().is_err() {
            findings.wrong(field, family.as_str(), "must be IPv4 or IPv6");
        } else if families[..index].contains(family) {
            findings.wrong(field, family.as_str(), "must be unique");
        }
    }
    validate_addresses(&addresses, families, findings);
    if spec.ip_family_policy.as_deref() == Some(SINGLE_STACK) {
        for (field, list) in [("spec.ipFamilies", families), ("spec.clusterIPs", &addresses)] {
            if list.len() > 1 {
                findings.wrong(field, list.to_vec(), "must have one entry only where ipFamilyPolicy is SingleStack");
            }
        }
    }
}

fn validate_addresses(addresses: &[String], families: &[String], findings: &mut Findings) {
    let field =
        |index: usize| if addresses.len() > 1 { format!("spec.clusterIPs[{index}]") } else { "spec.clusterIP".into() };
    let mut seen = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        if address == "None" {
            if addresses.len() > 1 {
                findings.wrong(field(index), address.as_str(), "must stand alone");
            }
            continue;
        }
        let Ok(parsed) = address.parse::<IpAddr>() else {
            findings.wrong(field(index), address.as_str(), "must be an IP address, \"None\", or absent");
            continue;
        };
        let family = IpFamily::of(parsed);
        if seen.contains(&family) {
            findings.wrong(field(index), address.as_str(), "must be of another family than the first");
        }
        seen.push(family);
        if let Some(asked) = families.get(index).filter(|asked| *asked != family.name()) {
            findings.wrong(
                field(index),
                address.as_str(),
                format!("must be {asked}, as spec.ipFamilies[{index}] says"),
            );
        }
    }
    if addresses.len() > 2 {
        findings.wrong("spec.clusterIPs", addresses.to_vec(), "must be at most one of each family");
    }
}

/// Decides what a Service is to have. `old` is its stored spec, where it had an address or was headless; what the
/// manifest does not mention stays as it was.
pub(super) fn resolve(
    spec: &ServiceSpec,
    old: Option<&ServiceSpec>,
    cidrs: &ServiceCidrs,
) -> Result<Resolved, Findings> {
    let mut findings = Findings::default();
    let given = addresses_of(spec);
    let had = old.map(addresses_of).unwrap_or_default();
    if let (Some(given), Some(had)) = (given.first(), had.first())
        && given != had
    {
        let reason = format!("must stay {had}: it can't be changed, delete the Service first");
        findings.wrong("spec.clusterIP", given.as_str(), reason);
        return Err(findings);
    }
    let policy = resolve_policy(spec, old, given.len());
    let is_headless = if given.is_empty() { old.is_some_and(is_headless) } else { is_headless(spec) };
    // A manifest with `clusterIP` alone does not take the other family's address away.
    let names_all = spec.cluster_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let wanted = if given.is_empty() || (!names_all && !had.is_empty()) { &had } else { &given };
    let mut wanted: Vec<IpAddr> = wanted.iter().filter_map(|address| address.parse().ok()).collect();
    let families = resolve_families(spec, old, &wanted, &policy, is_headless, cidrs, &mut findings);
    if let (Some(address), Some(family)) = (wanted.first(), families.first())
        && IpFamily::of(*address) != *family
    {
        let reason = format!("must be {}, the family of the ClusterIP {address}", IpFamily::of(*address).name());
        findings.wrong("spec.ipFamilies[0]", family.name(), reason);
    }
    wanted.retain(|address| families.contains(&IpFamily::of(*address)));
    let addresses = (0..families.len()).map(|index| wanted.get(index).copied()).collect();
    if findings.is_empty() { Ok(Resolved { policy, families, is_headless, addresses }) } else { Err(findings) }
}

fn resolve_policy(spec: &ServiceSpec, old: Option<&ServiceSpec>, given_addresses: usize) -> String {
    let given_families = spec.ip_families.as_ref().map_or(0, Vec::len);
    let inherited = || old.and_then(|old| old.ip_family_policy.clone());
    match &spec.ip_family_policy {
        Some(policy) => policy.clone(),
        None if given_families > 1 || given_addresses > 1 => REQUIRE_DUAL_STACK.to_owned(),
        None => inherited().unwrap_or_else(|| SINGLE_STACK.to_owned()),
    }
}

fn resolve_families(
    spec: &ServiceSpec,
    old: Option<&ServiceSpec>,
    wanted: &[IpAddr],
    policy: &str,
    is_headless: bool,
    cidrs: &ServiceCidrs,
    findings: &mut Findings,
) -> Vec<IpFamily> {
    // Endpoints of a headless Service without a selector are written by hand and may be of any family.
    let is_free = is_headless && spec.selector.as_ref().is_none_or(BTreeMap::is_empty);
    let parse = |list: &Option<Vec<String>>| -> Vec<IpFamily> {
        list.iter().flatten().filter_map(|family| family.parse().ok()).collect()
    };
    let mut families = parse(&spec.ip_families);
    if families.is_empty() {
        families = old.map(|old| parse(&old.ip_families)).unwrap_or_default();
    }
    if families.is_empty() {
        families = wanted.iter().map(|address| IpFamily::of(*address)).collect();
    }
    if families.is_empty() {
        families.extend(cidrs.families().next());
    }
    for (index, family) in families.iter().enumerate() {
        if !is_free && cidrs.net(*family).is_none() {
            let reason = format!("must be a family of the service CIDRs {cidrs}");
            findings.wrong(format!("spec.ipFamilies[{index}]"), family.name(), reason);
        }
    }
    if policy == SINGLE_STACK {
        families.truncate(1);
    } else if let [first] = families[..] {
        if is_free || cidrs.net(first.other()).is_some() {
            families.push(first.other());
        } else if policy == REQUIRE_DUAL_STACK {
            let reason =
                format!("must be {SINGLE_STACK} or {PREFER_DUAL_STACK}: the service CIDR {cidrs} has one family");
            findings.wrong("spec.ipFamilyPolicy", policy, reason);
        }
    }
    families
}

/// The ClusterIPs that a spec gives, in one list.
pub(super) fn addresses_of(spec: &ServiceSpec) -> Vec<String> {
    match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(list), _) if !list.is_empty() => list.clone(),
        (_, Some(single)) if !single.is_empty() => vec![single.clone()],
        _ => Vec::new(),
    }
}

impl Resolved {
    /// `spec.ipFamilies` as JSON.
    pub(super) fn families_json(&self) -> Value {
        self.families.iter().map(|family| family.name()).collect()
    }
}

#[cfg(test)]
mod tests;
