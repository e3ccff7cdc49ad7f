//! What ADD answers, and what the plugins before in a chain have answered, in each version's shape.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::version::SpecVersion;

/// The result of an ADD.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetResult {
    /// Interfaces that were made: of the node, and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses that the container has.
    pub ips: Vec<IpConfig>,
    /// Routes that the container has.
    pub routes: Vec<Route>,
    /// What is known about DNS.
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU; only since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's network namespace; empty for one of the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// What other plugins say of it.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct IpConfig {
    /// With the length of its subnet's prefix.
    pub address: IpNet,
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The index of its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// Through whom; nothing means the gateway of the address of that family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// What other plugins say of it.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// What a container should know about DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Dns {
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The domain for short names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains to look in for short names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

#[derive(Deserialize)]
struct RawResult {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<IpConfig>>,
    #[serde(default)]
    routes: Option<Vec<Route>>,
    #[serde(default)]
    dns: Option<Dns>,
}

impl Route {
    /// A route that this plugin makes.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, rest: Map::new() }
    }
}

impl NetResult {
    /// Reads one of any of our versions: they differ in what may be missing or is told twice. `field` is where it is.
    pub fn parse(value: &Value, field: &str) -> Result<Self, Error> {
        let raw: RawResult = serde_path_to_error::deserialize(value)
            .map_err(|error| Error::field(format!("{field}.{}", error.path()), error.inner().to_string()))?;
        let result = Self {
            interfaces: raw.interfaces.unwrap_or_default(),
            ips: raw.ips.unwrap_or_default(),
            routes: raw.routes.unwrap_or_default(),
            dns: raw.dns.unwrap_or_default(),
        };
        let count = result.interfaces.len();
        for (index, ip) in result.ips.iter().enumerate() {
            // IPAM plugins leave it out or, in old versions, say that it is the first of none.
            if let Some(interface) = ip.interface.filter(|interface| count > 0 && *interface >= count) {
                let problem = format!("{interface}, but there are {count} interfaces");
                return Err(Error::field(format!("{field}.ips[{index}].interface"), problem));
            }
        }
        Ok(result)
    }

    /// As JSON in a version's shape.
    pub fn render(&self, version: SpecVersion) -> Value {
        let ip = |ip: &IpConfig| {
            let mut value = json!(ip);
            if version < SpecVersion::V1_0_0 {
                value["version"] = if ip.address.addr().is_ipv4() { "4" } else { "6" }.into();
            }
            value
        };
        let interface = |interface: &Interface| {
            let mut interface = interface.clone();
            if version < SpecVersion::V1_1_0 {
                interface.mtu = None;
            }
            json!(interface)
        };
        let mut value = json!({ "cniVersion": version.as_str() });
        // Old libraries read a missing list as none, and some read `null` as a fault.
        for (name, list) in [
            ("interfaces", self.interfaces.iter().map(interface).collect::<Vec<_>>()),
            ("ips", self.ips.iter().map(ip).collect()),
            ("routes", self.routes.iter().map(|route| json!(route)).collect()),
        ] {
            if !list.is_empty() {
                value[name] = list.into();
            }
        }
        value["dns"] = json!(self.dns);
        value
    }

    /// Adds what this plugin has made behind what those before it have.
    #[must_use]
    pub fn after(self, before: Option<Self>) -> Self {
        let Some(mut all) = before else { return self };
        let offset = all.interfaces.len();
        all.interfaces.extend(self.interfaces);
        let shift = |ip: IpConfig| IpConfig { interface: ip.interface.map(|index| index + offset), ..ip };
        all.ips.extend(self.ips.into_iter().map(shift));
        all.routes.extend(self.routes);
        if self.dns != Dns::default() {
            all.dns = self.dns;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NetResult {
        NetResult {
            interfaces: vec![
                Interface {
                    name: "cni0".into(),
                    mac: "0a:58:0a:01:00:01".into(),
                    mtu: Some(1500),
                    ..Interface::default()
                },
                Interface { name: "eth0".into(), sandbox: "/run/netns/a".into(), ..Interface::default() },
            ],
            ips: vec![
                IpConfig {
                    address: "10.1.0.2/24".parse().unwrap(),
                    gateway: "10.1.0.1".parse().ok(),
                    interface: Some(1),
                },
                IpConfig { address: "fd00::2/64".parse().unwrap(), gateway: None, interface: Some(1) },
            ],
            routes: vec![Route::new("0.0.0.0/0".parse().unwrap(), None)],
            dns: Dns::default(),
        }
    }

    #[test]
    fn each_version_has_its_shape() {
        let old = sample().render(SpecVersion::V0_4_0);
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert_eq!(old["interfaces"][0].get("mtu"), None);
        let middle = sample().render(SpecVersion::V1_0_0);
        assert_eq!(middle["ips"][0].get("version"), None);
        assert_eq!(middle["interfaces"][0].get("mtu"), None);
        let new = sample().render(SpecVersion::V1_1_0);
        assert_eq!(new["interfaces"][0]["mtu"], 1500);
        assert_eq!(new["cniVersion"], "1.1.0");
    }

    #[test]
    fn what_is_rendered_is_read_again() {
        for version in SpecVersion::ALL {
            let mut expected = sample();
            if version < SpecVersion::V1_1_0 {
                expected.interfaces[0].mtu = None;
            }
            assert_eq!(NetResult::parse(&sample().render(version), "prevResult").unwrap(), expected, "{version}");
        }
    }

    #[test]
    fn a_chain_s_interfaces_keep_their_addresses() {
        let all = sample().after(Some(sample()));
        let indexes: Vec<Option<usize>> = all.ips.iter().map(|ip| ip.interface).collect();
        assert_eq!(indexes, [Some(1), Some(1), Some(3), Some(3)]);
        assert_eq!(all.interfaces.len(), 4);
    }

    #[test]
    fn what_others_say_is_kept() {
        let value = json!({ "interfaces": [{ "name": "a", "pciID": "0000:00:1f.6" }],
            "routes": [{ "dst": "10.0.0.0/8", "priority": 7 }] });
        let again = NetResult::parse(&value, "prevResult").unwrap().render(SpecVersion::V1_1_0);
        assert_eq!(again["interfaces"][0]["pciID"], "0000:00:1f.6");
        assert_eq!(again["routes"][0]["priority"], 7);
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (value, field) in [
            (json!({ "ips": [{ "address": "10.1.0.300/24" }] }), "prevResult.ips[0].address"),
            (
                json!({ "interfaces": [{ "name": "a" }], "ips": [{ "address": "10.1.0.3/24", "interface": 4 }] }),
                "prevResult.ips[0].interface",
            ),
            (json!([1]), "prevResult"),
        ] {
            let error = NetResult::parse(&value, "prevResult").unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }
}
