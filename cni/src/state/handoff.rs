//! What the daemon writes down for the plugin: the node's pod CIDRs.
//!
//! `tollgate-proxy` keeps `/run/tollgate/pod-cidrs.json`, replaced whole (written beside, then renamed), from the moment that
//! it knows them:
//!
//! ```json
//! { "version": 1, "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"], "clusterCIDRs": ["10.244.0.0/16"], "mtu": 1450 }
//! ```
//!
//! Without it, STATUS and ADD of networks with the built-in IPAM and no ranges of their own answer with code 50: plugin not
//! available. What the plugin writes down for the daemon is [`record`](super::record).

use std::path::Path;

use ipnet::IpNet;
use serde::Deserialize;

use crate::error::Error;

/// What the daemon says about the node's pods.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCidrs {
    /// The version of this format; 1.
    pub version: u32,
    /// The ranges that the node's pods get addresses from; at most one of each family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The ranges of all nodes' pods, towards which nothing is masqueraded.
    #[serde(default, rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<IpNet>,
    /// The MTU that pods should have, where that isn't the uplink's: with VXLAN it is less.
    #[serde(default)]
    pub mtu: Option<u32>,
}

/// Where it is.
pub const POD_CIDRS: &str = "/run/tollgate/pod-cidrs.json";

impl PodCidrs {
    /// Reads it, if it is there.
    pub fn read() -> Result<Option<Self>, Error> {
        super::read(Path::new(POD_CIDRS))?.map(|text| Self::parse(&text)).transpose()
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |problem: String| Error::PodCidrsUnknown(format!("{POD_CIDRS}: {problem}"));
        let parsed: Self = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if parsed.version != 1 {
            return Err(wrong(format!("version {} is not known", parsed.version)));
        }
        let count = |is_v4| parsed.pod_cidrs.iter().filter(|net| net.addr().is_ipv4() == is_v4).count();
        if parsed.pod_cidrs.is_empty() || count(true) > 1 || count(false) > 1 {
            return Err(wrong("there must be one podCIDR of each family at most, and one at least".into()));
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_form_is_read() {
        let text = r#"{ "version": 1, "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"],
            "clusterCIDRs": ["10.244.0.0/16"], "mtu": 1450, "later": true }"#;
        let read = PodCidrs::parse(text).unwrap();
        assert_eq!((read.pod_cidrs.len(), read.cluster_cidrs.len(), read.mtu), (2, 1, Some(1450)));
    }

    #[test]
    fn what_is_no_use_is_not_available() {
        for text in [
            "",
            "{}",
            r#"{ "version": 2, "podCIDRs": ["10.244.1.0/24"] }"#,
            r#"{ "version": 1, "podCIDRs": [] }"#,
            r#"{ "version": 1, "podCIDRs": ["10.244.1.0/24", "10.244.2.0/24"] }"#,
        ] {
            assert_eq!(PodCidrs::parse(text).unwrap_err().code(), 50, "{text}");
        }
    }
}
