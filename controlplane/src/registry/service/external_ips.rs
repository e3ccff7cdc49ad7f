//! Which external IPs Services may have. None unless the operator says so: whoever may write a Service could otherwise
//! name any address there, and every node would bring him the traffic that others send to it (CVE-2020-8554).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;

use crate::registry::invalid::Findings;
use crate::registry::service_cidr::{InvalidCidrs, parse_cidr};

/// The ranges that Services may take external IPs from; by default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalIpCidrs(Arc<[IpNet]>);

// === impl ExternalIpCidrs ===

impl ExternalIpCidrs {
    /// Refuses external IPs outside the ranges that the stored Service does not have already: what was accepted under
    /// other flags goes on working, and its Service can still be changed.
    pub(super) fn check(&self, spec: &ServiceSpec, old: Option<&ServiceSpec>, findings: &mut Findings) {
        let had: Vec<IpAddr> = old.into_iter().flat_map(external_ips).filter_map(|ip| ip.parse().ok()).collect();
        for (index, ip) in external_ips(spec).enumerate() {
            // What is no address is found with the object's other mistakes.
            let Ok(address) = ip.parse::<IpAddr>() else { continue };
            if !self.contains(address) && !had.contains(&address) {
                findings.wrong(format!("spec.externalIPs[{index}]"), ip, self.reason());
            }
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        // An IPv4 address in the clothes of IPv6 is the IPv4 address on the wire.
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    fn reason(&self) -> String {
        if self.0.is_empty() {
            return "is not allowed: the control plane was started without --allow-external-ips".to_owned();
        }
        format!("is not allowed: must be within the control plane's --allow-external-ips {self}")
    }
}

impl FromStr for ExternalIpCidrs {
    type Err = InvalidCidrs;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(str::trim).map(parse_cidr).collect::<Result<_, _>>().map(ExternalIpCidrs)
    }
}

impl fmt::Display for ExternalIpCidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, net) in self.0.iter().enumerate() {
            let separator = if index > 0 { "," } else { "" };
            write!(f, "{separator}{net}")?;
        }
        Ok(())
    }
}

fn external_ips(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    spec.external_ips.iter().flatten().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_refused_with_the_reason() {
        for (text, expected) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.0/24, 2001:db8::/64,198.51.100.7/32", "192.0.2.0/24,2001:db8::/64,198.51.100.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.7", "\"192.0.2.7\" is not a CIDR such as 10.96.0.0/16"),
            ("192.0.2.0/24,", "\"\" is not a CIDR such as 10.96.0.0/16"),
            ("192.0.2.7/24", "192.0.2.7/24 has bits set after its prefix; did you mean 192.0.2.0/24?"),
        ] {
            let shown = match text.parse::<ExternalIpCidrs>() {
                Ok(cidrs) => cidrs.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(shown, expected, "{text}");
        }
    }

    #[test]
    fn an_address_is_within_a_range_of_its_own_family() {
        let cidrs: ExternalIpCidrs = "192.0.2.0/24,2001:db8::/64".parse().unwrap();
        for (address, expected) in [
            ("192.0.2.0", true),
            ("192.0.2.255", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.3.0", false),
            ("2001:db8::9", true),
            ("2001:db8:0:1::9", false),
        ] {
            assert_eq!(cidrs.contains(address.parse().unwrap()), expected, "{address}");
        }
        let any_v6: ExternalIpCidrs = "::/0".parse().unwrap();
        assert!(!any_v6.contains("::ffff:192.0.2.1".parse().unwrap()));
        assert!(!ExternalIpCidrs::default().contains("192.0.2.1".parse().unwrap()));
    }
}
