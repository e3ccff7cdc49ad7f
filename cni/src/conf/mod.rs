//! The network configuration: what standard input says, parsed and judged once.
//!
//! [`Network`] is what every verb needs and what is asked of DEL and GC alone, so that nothing else of a configuration can
//! keep a container from being cleaned up. [`NetConf`] is all of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use self::mac::Mac;
use self::port::{HostPort, RawMapping};
use self::range::{Range, RangeSet, RawRange};
use crate::env::{Args, Attachment, is_identifier};
use crate::error::Error;
use crate::result::{Dns, NetResult, Route};
use crate::version::SpecVersion;

pub mod mac;
pub mod port;
pub mod range;

/// Which network a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The version that the configuration is in, and that answers are given in.
    pub version: SpecVersion,
    /// Its name.
    pub name: String,
    /// The plugin that gives out addresses, where that isn't the built-in IPAM.
    pub ipam_plugin: Option<PluginName>,
    /// The attachments that there should be, as GC is told; nothing if it isn't.
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// All of a network configuration.
#[derive(Clone, Debug)]
pub struct NetConf {
    /// Which network it is.
    pub network: Network,
    /// The bridge.
    pub bridge: Bridge,
    /// What a container's port on the bridge is like.
    pub port: Port,
    /// Whether traffic from containers to elsewhere gets the node's address.
    pub ip_masq: bool,
    /// Destinations that are not elsewhere: nothing is masqueraded towards them.
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// The MTU; nothing means the uplink's.
    pub mtu: Option<u32>,
    /// Whether duplicate address detection is done and waited for.
    pub dad: bool,
    /// Where addresses come from.
    pub ipam: Ipam,
    /// What is told about DNS, where the configuration has it.
    pub dns: Option<Dns>,
    /// The hardware address that is asked for.
    pub mac: Option<Mac>,
    /// The addresses that are asked for.
    pub ips: Vec<IpAddr>,
    /// Ports of the node that lead to the container.
    pub host_ports: Vec<HostPort>,
    /// What the plugins before this one in the chain have done, or all of them (CHECK).
    pub prev_result: Option<NetResult>,
}

/// The bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Whether it has the gateway's address.
    pub is_gateway: bool,
    /// Whether containers have their default route through it.
    pub is_default_gateway: bool,
    /// Whether an address of the bridge that is in the way is replaced.
    pub force_address: bool,
    /// Whether it takes frames for anybody.
    pub promiscuous: bool,
}

/// What a container's port on the bridge is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Whether frames may go back where they came from.
    pub hairpin: bool,
    /// Whether other isolated ports can't be reached.
    pub isolated: bool,
    /// Whether frames from other hardware addresses than the container's are dropped.
    pub mac_spoof_check: bool,
    /// Whether packets from other addresses than the container's are dropped, and what claims such an address.
    pub ip_spoof_check: bool,
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ipam {
    /// Ranges of the configuration, with routes that containers get.
    Ranges {
        /// A container gets an address from each.
        sets: Vec<RangeSet>,
        /// Routes that containers get.
        routes: Vec<Route>,
    },
    /// The node's pod CIDRs, which the daemon knows.
    PodCidrs {
        /// Routes that containers get.
        routes: Vec<Route>,
    },
    /// Another plugin.
    Plugin(PluginName),
}

/// The name of a plugin's binary: no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginName(String);

/// The name of the built-in IPAM.
pub const BUILT_IN: &str = "tollgate";
const DEFAULT_BRIDGE: &str = "cni0";
/// The network's name is that of a directory and stands in the alias of links.
const NETWORK_NAME: usize = 100;
/// What the kernel allows an Ethernet device that is no real one (`ETH_MIN_MTU`, `ETH_MAX_MTU`).
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawNetwork {
    name: Option<String>,
    #[serde(default)]
    ipam: Option<RawIpamType>,
    #[serde(default, rename = "cni.dev/valid-attachments", deserialize_with = "null_is_empty")]
    valid_attachments: Option<Vec<RawAttachment>>,
}

#[derive(Deserialize)]
struct RawIpamType {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConf {
    bridge: Option<String>,
    is_gateway: Option<bool>,
    is_default_gateway: Option<bool>,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(default, rename = "nonMasqueradeCIDRs")]
    non_masquerade_cidrs: Vec<String>,
    #[serde(default)]
    mtu: u32,
    hairpin_mode: Option<bool>,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    vlan: i64,
    #[serde(default)]
    vlan_trunk: Vec<Value>,
    #[serde(default)]
    disable_container_interface: bool,
    macspoofchk: Option<bool>,
    ipspoofchk: Option<bool>,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    port_isolation: bool,
    /// Another plugin's has whatever fields that likes.
    ipam: Option<Value>,
    dns: Option<Dns>,
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: Option<RawRuntimeConfig>,
    #[serde(default)]
    args: Option<RawArgs>,
    #[serde(default)]
    capabilities: Option<BTreeMap<String, bool>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIpam {
    ranges: Option<Vec<Vec<RawRange>>>,
    #[serde(flatten)]
    single: RawRange,
    #[serde(default)]
    routes: Vec<RawRoute>,
}

#[derive(Deserialize)]
struct RawRoute {
    dst: String,
    gw: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRuntimeConfig {
    mac: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
    #[serde(default)]
    port_mappings: Option<Vec<RawMapping>>,
    #[serde(default)]
    ip_ranges: Option<Vec<Vec<RawRange>>>,
    bandwidth: Option<Value>,
}

#[derive(Default, Deserialize)]
struct RawArgs {
    cni: Option<RawCniArgs>,
}

#[derive(Default, Deserialize)]
struct RawCniArgs {
    mac: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
}

impl PluginName {
    /// Checks that it is no path, so that only plugins in `CNI_PATH` can be run.
    pub fn parse(name: &str) -> Result<Self, Error> {
        if !is_identifier(name) {
            let problem = format!("{name:?} is no plugin's name (letters, digits, `_`, `.` and `-`, and no path)");
            return Err(Error::field("ipam.type", problem));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The version of a configuration, as far as its text allows to tell.
pub fn version_of(stdin: &[u8]) -> Option<SpecVersion> {
    SpecVersion::parse(serde_json::from_slice::<Value>(stdin).ok()?.get("cniVersion")?.as_str()?)
}

impl Network {
    /// Reads and judges it.
    pub fn parse(stdin: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct RawVersion {
            cni_version: Option<String>,
        }
        let json = parse(stdin)?;
        let RawVersion { cni_version } = read(&json)?;
        let version = cni_version.as_deref().unwrap_or("(none)");
        let version = SpecVersion::parse(version).ok_or_else(|| Error::Version(version.into()))?;
        let raw: RawNetwork = read(&json)?;
        let name = raw.name.ok_or_else(|| Error::field("name", "is missing"))?;
        if !is_identifier(&name) {
            let problem = format!("{name:?} must begin with a letter or digit and go on with those, `_`, `.` and `-`");
            return Err(Error::field("name", problem));
        }
        if name.len() > NETWORK_NAME {
            return Err(Error::field("name", format!("has {} bytes, and may have {NETWORK_NAME}", name.len())));
        }
        let ipam = raw.ipam.and_then(|ipam| ipam.kind).filter(|kind| !kind.is_empty() && kind != BUILT_IN);
        let ipam_plugin = ipam.as_deref().map(PluginName::parse).transpose()?;
        let attachment = |raw: RawAttachment| Attachment { container_id: raw.container_id, ifname: raw.ifname };
        let valid_attachments = raw.valid_attachments.map(|all| all.into_iter().map(attachment).collect());
        Ok(Self { version, name, ipam_plugin, valid_attachments })
    }
}

impl NetConf {
    /// Reads and judges it, together with what `CNI_ARGS` asks for.
    pub fn parse(stdin: &[u8], args: &Args) -> Result<Self, Error> {
        let network = Network::parse(stdin)?;
        let raw: RawConf = read(&parse(stdin)?)?;
        raw.refuse_unsupported()?;
        let ipam = raw.ipam(&network)?;
        // With the built-in IPAM nobody else could make the pods' routes.
        let is_built_in = network.ipam_plugin.is_none();
        let is_default_gateway = raw.is_default_gateway.unwrap_or(is_built_in && raw.is_gateway != Some(false));
        let bridge = Bridge {
            name: raw.bridge_name()?,
            is_gateway: raw.is_gateway.unwrap_or_default() || is_default_gateway,
            is_default_gateway,
            force_address: raw.force_address,
            promiscuous: raw.promisc_mode,
        };
        let port = Port {
            // A pod that a Service hands itself would get no answer: where bridged packets meet netfilter, as Services on one
            // bridge need it, a translated packet does not leave the bridge to be routed.
            hairpin: raw.hairpin_mode.unwrap_or(!raw.promisc_mode),
            isolated: raw.port_isolation,
            mac_spoof_check: raw.macspoofchk.unwrap_or(true),
            ip_spoof_check: raw.ipspoofchk.unwrap_or(raw.macspoofchk != Some(false)),
        };
        if port.ip_spoof_check && !port.mac_spoof_check {
            return Err(Error::field("ipspoofchk", "needs macspoofchk: addresses are checked together"));
        }
        Ok(Self {
            bridge,
            port,
            ip_masq: raw.ip_masq,
            non_masquerade_cidrs: raw.non_masquerade_cidrs()?,
            mtu: raw.mtu()?,
            dad: raw.enabledad,
            ipam,
            mac: raw.mac(args)?,
            ips: raw.ips(args)?,
            host_ports: raw.host_ports()?,
            prev_result: raw.prev_result()?,
            dns: raw.dns.filter(|dns| *dns != Dns::default()),
            network,
        })
    }
}

impl RawConf {
    /// What the reference plugin has and this one has not is refused and not passed over.
    fn refuse_unsupported(&self) -> Result<(), Error> {
        let unsupported =
            |field: &str, value: String, remedy| Err(Error::Unsupported { field: field.into(), value, remedy });
        if self.vlan != 0 {
            return unsupported("vlan", self.vlan.to_string(), "this plugin's bridges have no VLANs");
        }
        if !self.vlan_trunk.is_empty() {
            return unsupported(
                "vlanTrunk",
                Value::from(self.vlan_trunk.clone()).to_string(),
                "this plugin's bridges have no VLANs",
            );
        }
        if self.disable_container_interface {
            return unsupported(
                "disableContainerInterface",
                "true".into(),
                "this plugin always configures the interface",
            );
        }
        match self.ip_masq_backend.as_deref() {
            None | Some("" | "nftables") => {}
            Some(other) => {
                let remedy = "nftables is what this plugin masquerades with; its rules work beside those of iptables";
                return unsupported("ipMasqBackend", other.into(), remedy);
            }
        }
        const BANDWIDTH: &str = "this plugin limits no bandwidth; take `bandwidth` out of the plugin's capabilities, or the \
                                 limit from the container, or chain the plugin `bandwidth` behind this one";
        if self.capabilities.as_ref().is_some_and(|all| all.get("bandwidth") == Some(&true)) {
            return unsupported("capabilities.bandwidth", "true".into(), BANDWIDTH);
        }
        let bandwidth = self.runtime_config.as_ref().and_then(|config| config.bandwidth.as_ref());
        if let Some(limits) = bandwidth.filter(|limits| limits_something(limits)) {
            return unsupported("runtimeConfig.bandwidth", limits.to_string(), BANDWIDTH);
        }
        Ok(())
    }

    fn bridge_name(&self) -> Result<String, Error> {
        let name = self.bridge.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_BRIDGE);
        if self.hairpin_mode == Some(true) && self.promisc_mode {
            let problem = "not together with promiscMode: each packet to oneself would come twice";
            return Err(Error::field("hairpinMode", problem));
        }
        match crate::env::ifname_problem(name) {
            Some(problem) => Err(Error::field("bridge", format!("{name:?} {problem}"))),
            None => Ok(name.into()),
        }
    }

    fn mtu(&self) -> Result<Option<u32>, Error> {
        if self.mtu > 0 && !MTU.contains(&self.mtu) {
            let problem = format!("{} is not within {} to {}", self.mtu, MTU.start(), MTU.end());
            return Err(Error::field("mtu", problem));
        }
        Ok(Some(self.mtu).filter(|mtu| *mtu > 0))
    }

    fn non_masquerade_cidrs(&self) -> Result<Vec<IpNet>, Error> {
        let read = |(index, text): (usize, &String)| {
            let field = || format!("nonMasqueradeCIDRs[{index}]");
            let net: Result<IpNet, _> = text.parse();
            net.map(|net| net.trunc()).map_err(|_| Error::field(field(), format!("{text:?} is no CIDR")))
        };
        self.non_masquerade_cidrs.iter().enumerate().map(read).collect()
    }

    /// The runtime's word counts more than the configuration's, and that more than the environment's.
    fn mac(&self, args: &Args) -> Result<Option<Mac>, Error> {
        let runtime = self.runtime_config.as_ref().and_then(|config| config.mac.as_ref());
        let cni = self.args.as_ref().and_then(|args| args.cni.as_ref()).and_then(|cni| cni.mac.as_ref());
        for (field, mac) in [("runtimeConfig.mac", runtime), ("args.cni.mac", cni)] {
            if let Some(text) = mac.filter(|text| !text.is_empty()) {
                let mac = text.parse().map_err(|problem| Error::field(field, format!("{text:?}: {problem}")))?;
                return Ok(Some(mac));
            }
        }
        Ok(args.mac)
    }

    fn ips(&self, args: &Args) -> Result<Vec<IpAddr>, Error> {
        let runtime = self.runtime_config.as_ref().map(|config| &config.ips);
        let cni = self.args.as_ref().and_then(|args| args.cni.as_ref()).map(|cni| &cni.ips);
        for (field, ips) in [("runtimeConfig.ips", runtime), ("args.cni.ips", cni)] {
            let Some(ips) = ips.filter(|ips| !ips.is_empty()) else { continue };
            let read = |(index, text): (usize, &String)| {
                let wrong = || Error::field(format!("{field}[{index}]"), format!("{text:?} is no address"));
                crate::env::parse_ip(text).ok_or_else(wrong)
            };
            return ips.iter().enumerate().map(read).collect();
        }
        Ok(args.ips.clone())
    }

    fn host_ports(&self) -> Result<Vec<HostPort>, Error> {
        let mappings = self.runtime_config.as_ref().and_then(|config| config.port_mappings.as_deref());
        let read = |(index, raw)| HostPort::read(raw, &format!("runtimeConfig.portMappings[{index}]"));
        mappings.unwrap_or_default().iter().enumerate().map(read).collect()
    }

    fn prev_result(&self) -> Result<Option<NetResult>, Error> {
        self.prev_result.as_ref().map(|value| NetResult::parse(value, "prevResult")).transpose()
    }

    fn ipam(&self, network: &Network) -> Result<Ipam, Error> {
        if let Some(plugin) = &network.ipam_plugin {
            return Ok(Ipam::Plugin(plugin.clone()));
        }
        let ipam: Option<RawIpam> = match &self.ipam {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                serde_path_to_error::deserialize(value)
                    .map_err(|error| Error::field(format!("ipam.{}", error.path()), error.inner().to_string()))?,
            ),
        };
        let routes = ipam.as_ref().map_or(Ok(Vec::new()), RawIpam::routes)?;
        let asked = self.runtime_config.as_ref().and_then(|config| config.ip_ranges.as_ref());
        let (ranges, field) = match (asked.filter(|ranges| !ranges.is_empty()), &ipam) {
            (Some(ranges), _) => (Some(ranges), "runtimeConfig.ipRanges"),
            (None, Some(ipam)) => (ipam.ranges.as_ref(), "ipam.ranges"),
            (None, None) => (None, ""),
        };
        let single = ipam.as_ref().map(|ipam| &ipam.single).filter(|single| single.subnet.is_some());
        let sets = match (ranges, single) {
            (Some(ranges), _) => read_sets(ranges, field)?,
            (None, Some(single)) => vec![vec![Range::read(single, "ipam")?]],
            (None, None) => return Ok(Ipam::PodCidrs { routes }),
        };
        range::check_sets(&sets, field)?;
        Ok(Ipam::Ranges { sets, routes })
    }
}

fn read_sets(raw: &[Vec<RawRange>], field: &str) -> Result<Vec<RangeSet>, Error> {
    let set = |(outer, ranges): (usize, &Vec<RawRange>)| {
        let range = |(inner, raw)| Range::read(raw, &format!("{field}[{outer}][{inner}]"));
        ranges.iter().enumerate().map(range).collect()
    };
    raw.iter().enumerate().map(set).collect()
}

impl RawIpam {
    fn routes(&self) -> Result<Vec<Route>, Error> {
        let read = |(index, raw): (usize, &RawRoute)| {
            let field = |name: &str| format!("ipam.routes[{index}].{name}");
            let dst: IpNet =
                raw.dst.parse().map_err(|_| Error::field(field("dst"), format!("{:?} is no CIDR", raw.dst)))?;
            let gw = raw.gw.as_deref().filter(|gw| !gw.is_empty());
            let gw: Option<IpAddr> = gw
                .map(|gw| gw.parse().map_err(|_| Error::field(field("gw"), format!("{gw:?} is no address"))))
                .transpose()?;
            if gw.is_some_and(|gw| gw.is_ipv4() != dst.addr().is_ipv4()) {
                return Err(Error::field(field("gw"), "is not of the destination's family"));
            }
            Ok(Route::new(dst.trunc(), gw))
        };
        self.routes.iter().enumerate().map(read).collect()
    }
}

/// libcni writes a list without elements as null; that nothing is written at all is something else.
fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<RawAttachment>>, D::Error> {
    Option::deserialize(deserializer).map(|list| Some(list.unwrap_or_default()))
}

/// Whether a bandwidth that is asked for has any number but 0.
fn limits_something(limits: &Value) -> bool {
    match limits {
        Value::Object(fields) => fields.values().any(|value| value.as_f64().is_none_or(|number| number != 0.0)),
        other => !other.is_null(),
    }
}

/// The configuration as JSON.
fn parse(stdin: &[u8]) -> Result<Value, Error> {
    let wrong = |problem: String| Error::Syntax(problem);
    if stdin.iter().all(u8::is_ascii_whitespace) {
        return Err(wrong("there is nothing".into()));
    }
    let json: Value = serde_json::from_slice(stdin).map_err(|error| wrong(error.to_string()))?;
    if json.is_object() { Ok(json) } else { Err(wrong("it is no object".into())) }
}

/// Reads a part of the configuration; errors name the field.
fn read<T: DeserializeOwned>(json: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(json)
        .map_err(|error| Error::field(error.path().to_string(), error.inner().to_string()))
}

#[cfg(test)]
mod tests;
