//! Checks of Nodes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use super::invalid::Findings;
use super::name;

const ADDRESS_TYPES: [&str; 5] = ["InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS"];

/// Checks a Node in itself.
pub(crate) fn validate(node: &Node, findings: &mut Findings) {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    for (index, address) in addresses.iter().enumerate() {
        let field = format!("status.addresses[{index}]");
        if !ADDRESS_TYPES.contains(&address.type_.as_str()) {
            let reason = format!("must be one of {}", ADDRESS_TYPES.join(", "));
            findings.wrong(format!("{field}.type"), address.type_.as_str(), reason);
        } else if address.type_.ends_with("IP") {
            match address.address.parse::<IpAddr>() {
                Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
                    findings.wrong(
                        format!("{field}.address"),
                        address.address.as_str(),
                        "must be the address of a host",
                    );
                }
                Ok(_) => {}
                Err(_) => findings.wrong(format!("{field}.address"), address.address.as_str(), "must be an IP address"),
            }
        } else {
            let lower = address.address.to_lowercase();
            findings.check(format!("{field}.address"), &address.address, name::check_dns_1123_subdomain(&lower));
        }
    }
    let Some(spec) = &node.spec else { return };
    let listed = spec.pod_cidrs.iter().flatten().enumerate();
    let fields = listed.map(|(index, cidr)| (format!("spec.podCIDRs[{index}]"), cidr));
    for (field, cidr) in spec.pod_cidr.iter().map(|cidr| ("spec.podCIDR".to_owned(), cidr)).chain(fields) {
        if !cidr.is_empty() && cidr.parse::<IpNet>().is_err() {
            findings.wrong(field, cidr.as_str(), "must be a CIDR such as 10.244.1.0/24");
        }
    }
}
