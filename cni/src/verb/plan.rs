//! What an ADD is to make, from the configuration and the addresses. Pure.

use std::path::Path;

use ipnet::IpNet;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tollgate_nftables::IpFamily;

use crate::conf::mac::Mac;
use crate::conf::{Bridge, NetConf};
use crate::env::{Args, Attachment};
use crate::error::Error;
use crate::ipam::{Addresses, Pool};
use crate::link::pod::{self, IPV6_MTU};
use crate::link::veth;
use crate::result::{Dns, Interface, IpConfig, NetResult, Route};
use crate::rules::exception::Exceptions;
use crate::state::handoff::PodCidrs;
use crate::state::record::{Record, State, VERSION};

/// What an ADD is to make.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What is written down of it.
    pub(super) record: Record,
    /// The container's addresses and routes.
    pub(super) addresses: Addresses,
    /// The container's routes, with their gateways.
    pub(super) routes: Vec<Route>,
    /// The container's hardware address.
    pub(super) mac: Mac,
    /// The addresses that the bridge should have.
    pub(super) gateways: Vec<IpNet>,
    /// Towards what nothing is masqueraded, for each family that is.
    pub(super) exceptions: Vec<(IpFamily, Exceptions)>,
}

/// What is written down before any address is had.
pub(super) fn record(conf: &NetConf, attachment: &Attachment, args: &Args, netns: &Path) -> Record {
    let Attachment { container_id, ifname } = attachment.clone();
    let now = OffsetDateTime::now_utc();
    Record {
        version: VERSION,
        state: State::Pending,
        network: conf.network.name.clone(),
        host_veth: veth::host_veth(&conf.network.name, attachment),
        container_id,
        ifname,
        netns: netns.into(),
        pod: args.pod.clone(),
        bridge: conf.bridge.name.clone(),
        port: conf.port,
        mac: None,
        ips: Vec::new(),
        host_ports: conf.host_ports.clone(),
        ip_masq: conf.ip_masq,
        ipam_plugin: conf.network.ipam_plugin.as_ref().map(|plugin| plugin.as_str().into()),
        since: now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default(),
    }
}

impl Plan {
    /// With these addresses.
    pub(super) fn new(
        conf: &NetConf,
        record: Record,
        addresses: Addresses,
        told: Option<&PodCidrs>,
    ) -> Result<Self, Error> {
        let Some(first) = addresses.ips.first() else {
            let plugin = record.ipam_plugin.unwrap_or_default();
            let problem = "its answer has no address".into();
            return Err(Error::Delegate { plugin, verb: "ADD", problem, code: None });
        };
        let mac = conf.mac.unwrap_or_else(|| Mac::of_address(first.address.addr()));
        let ips: Vec<_> = addresses.ips.iter().map(|ip| ip.address.addr()).collect();
        let routes = pod::routes(&addresses, conf.bridge.is_default_gateway);
        let gateways = gateways(&conf.bridge, &addresses.ips);
        let exceptions = if conf.ip_masq { exceptions(conf, &addresses.ips, told) } else { Vec::new() };
        let record = Record { mac: Some(mac), ips, ..record };
        Ok(Self { record, addresses, routes, mac, gateways, exceptions })
    }

    /// What is left to check of an attachment that was made before.
    pub(super) fn again(
        conf: &NetConf,
        record: Record,
        addresses: Addresses,
        told: Option<&PodCidrs>,
    ) -> Result<Self, Error> {
        let mac = record.mac;
        let plan = Self::new(conf, record, addresses, told)?;
        Ok(Self { mac: mac.unwrap_or(plan.mac), record: Record { mac, ..plan.record }, ..plan })
    }

    /// What the runtime is answered.
    pub(super) fn result(
        &self,
        netns: &Path,
        bridge_mac: Option<Mac>,
        host_mac: Option<Mac>,
        mtu: u32,
        dns: Option<&Dns>,
    ) -> NetResult {
        let mac = |mac: Option<Mac>| mac.map(|mac| mac.to_string()).unwrap_or_default();
        let interface = |name: &str, mac: String, sandbox: String| Interface {
            name: name.into(),
            mac,
            mtu: Some(mtu),
            sandbox,
            ..Interface::default()
        };
        let record = &self.record;
        NetResult {
            interfaces: vec![
                interface(&record.bridge, mac(bridge_mac), String::new()),
                interface(&record.host_veth, mac(host_mac), String::new()),
                interface(&record.ifname, self.mac.to_string(), netns.display().to_string()),
            ],
            ips: self.addresses.ips.iter().map(|ip| IpConfig { interface: Some(2), ..ip.clone() }).collect(),
            routes: self.routes.clone(),
            dns: dns.cloned().unwrap_or_else(|| self.addresses.dns.clone()),
        }
    }
}

/// The MTU: the configuration's, or the daemon's word where addresses are by that too, or the uplink's.
pub(super) fn mtu(
    conf: &NetConf,
    told: Option<&PodCidrs>,
    uplink: impl FnOnce() -> Result<u32, Error>,
) -> Result<u32, Error> {
    match conf.mtu.or(told.and_then(|told| told.mtu)) {
        Some(mtu) => Ok(mtu),
        None => uplink(),
    }
}

/// Fails where the kernel would have no IPv6 on the interface.
pub(super) fn check_mtu(mtu: u32, addresses: &Addresses) -> Result<(), Error> {
    let has_ipv6 = addresses.ips.iter().any(|ip| ip.address.addr().is_ipv6());
    if has_ipv6 && mtu < IPV6_MTU {
        return Err(Error::field("mtu", format!("{mtu} is too small for IPv6, which needs {IPV6_MTU}")));
    }
    Ok(())
}

/// Whether the daemon's word is asked for.
pub(super) fn asks_daemon(conf: &NetConf) -> bool {
    matches!(conf.ipam, crate::conf::Ipam::PodCidrs { .. })
}

/// The pool that a configuration stands for, and what the daemon says where that is asked.
pub(super) fn pool(conf: &NetConf) -> Result<(Option<Pool>, Option<PodCidrs>), Error> {
    let told = if asks_daemon(conf) { PodCidrs::read()? } else { None };
    Ok((Pool::of(conf, told.as_ref())?, told))
}

fn gateways(bridge: &Bridge, ips: &[IpConfig]) -> Vec<IpNet> {
    let gateway = |ip: &IpConfig| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok();
    if bridge.is_gateway { ips.iter().filter_map(gateway).collect() } else { Vec::new() }
}

fn exceptions(conf: &NetConf, ips: &[IpConfig], told: Option<&PodCidrs>) -> Vec<(IpFamily, Exceptions)> {
    let own = ips.iter().map(|ip| ip.address.trunc());
    let cluster = told.into_iter().flat_map(|told| told.cluster_cidrs.iter().copied());
    let nets: Vec<IpNet> = own.chain(conf.non_masquerade_cidrs.iter().copied()).chain(cluster).collect();
    let has = |family| ips.iter().any(|ip| crate::rules::element::family(ip.address.addr()) == family);
    [IpFamily::V4, IpFamily::V6]
        .into_iter()
        .filter(|family| has(*family))
        .map(|it| (it, Exceptions::new(it, &nets)))
        .collect()
}
