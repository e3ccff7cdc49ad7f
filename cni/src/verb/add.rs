//! ADD: attaches a container.
//!
//! In this order, so that a container is never on the bridge without the rules that bind it, and what there may be is always
//! written down: addresses, record, rules, bridge, pair, the container's side, and last the port on the bridge.

use std::path::Path;

use nix::libc;
use serde_json::Value;

use super::detach::{Detach, Why};
use super::plan::{self, Plan};
use crate::conf::NetConf;
use crate::conf::port::{HostIp, Protocol};
use crate::env::{self, Args, Attachment, Variables};
use crate::error::Error;
use crate::flow;
use crate::ipam::delegate::Plugin;
use crate::ipam::store;
use crate::link::{Socket, veth};
use crate::netns::NetNs;
use crate::result::NetResult;
use crate::rules::Rules;
use crate::state::lock::{Lock, What};
use crate::state::record::{Record, State};
use crate::sysctl;

pub(super) fn add(variables: &impl Variables, stdin: &[u8]) -> Result<Value, Error> {
    let attachment = Attachment::read(variables)?;
    let args = Args::read(variables)?;
    let path = env::netns(variables)?;
    let conf = NetConf::parse(stdin, &args)?;
    let own = NetNs::own()?;
    let netns = NetNs::open(&path, &own)?;
    let dirs = if conf.network.ipam_plugin.is_some() { env::plugin_dirs(variables)? } else { Vec::new() };
    let plugin = conf.network.ipam_plugin.as_ref().map(|name| Plugin { name, dirs: &dirs, conf: stdin });

    let _lock = Lock::wait(What::Attachment(&attachment))?;
    let mut route = Socket::open()?;
    let detach = Detach { network: &conf.network.name, attachment: &attachment, plugin: plugin.as_ref() };
    refuse_second(&mut route, &attachment, &detach)?;
    let record = plan::record(&conf, &attachment, &args, &path);
    let attach =
        Attach { conf: &conf, attachment: &attachment, plugin: plugin.as_ref(), path: &path, netns: &netns, own: &own };
    match attach.run(&mut route, record) {
        Ok(result) => Ok(result.after(conf.prev_result.clone()).render(conf.network.version)),
        Err(error) => Err(error.besides(detach.run(&mut route, Why::Failed))),
    }
}

/// Fails where the container is attached already; removes what an ADD that was killed has left.
fn refuse_second(route: &mut Socket, attachment: &Attachment, detach: &Detach<'_>) -> Result<(), Error> {
    let Some(record) = Record::read(detach.network, attachment)? else { return Ok(()) };
    if record.state == State::Added && route.link(&record.host_veth)?.is_some() {
        let found = format!("it was attached to the network {} at {}", record.network, record.since);
        let Attachment { container_id, ifname } = attachment.clone();
        return Err(Error::Exists { container: container_id, ifname, found });
    }
    detach.run(route, Why::Leftover)
}

struct Attach<'a> {
    conf: &'a NetConf,
    attachment: &'a Attachment,
    plugin: Option<&'a Plugin<'a>>,
    path: &'a Path,
    netns: &'a NetNs,
    own: &'a NetNs,
}

impl Attach<'_> {
    fn run(&self, route: &mut Socket, record: Record) -> Result<NetResult, Error> {
        let (conf, network) = (self.conf, &self.conf.network.name);
        let (pool, told) = plan::pool(conf)?;
        let mtu = plan::mtu(conf, told.as_ref(), || route.uplink_mtu())?;
        let addresses = match (&pool, self.plugin) {
            (Some(pool), _) => pool.addresses(&store::take(network, pool, &conf.ips, self.attachment)?),
            (None, Some(plugin)) => {
                // If it isn't there, nothing must seem to be of it.
                plugin.program()?;
                // Nobody else would know that the plugin has given something.
                record.write()?;
                plugin.add()?.into()
            }
            (None, None) => return Err(Error::field("ipam", "is missing")),
        };
        plan::check_mtu(mtu, &addresses)?;
        let plan = Plan::new(conf, record, addresses, told.as_ref())?;
        plan.record.write()?;
        let bridge = route.ensure_bridge(&conf.bridge, &plan.gateways, mtu)?;
        route.ensure_forwarding(&plan.gateways)?;
        self.add_rules(route, &plan)?;
        let host = &plan.record.host_veth;
        self.make_pair(route, &plan, mtu)?;
        let mut pod = self.configure_pod(&plan)?;
        let alias =
            format!("{}{} {}", veth::alias_prefix(network), self.attachment.container_id, self.attachment.ifname);
        let host_link = route.attach(host, bridge.index, conf.port, alias)?;
        pod.socket.wait_until_active(&self.attachment.ifname, pod.index)?;
        let stay = self.netns.enter(self.path, self.own)?;
        Socket::wait_for_groups(&self.attachment.ifname, &plan.addresses)?;
        drop(stay);
        if conf.dad {
            pod.socket.wait_for_dad(&self.attachment.ifname, pod.index)?;
        }
        let record = Record { state: State::Added, ..plan.record.clone() };
        record.write()?;
        Ok(plan.result(self.path, bridge.mac, host_link.mac, mtu, conf.dns.as_ref()))
    }

    fn add_rules(&self, route: &mut Socket, plan: &Plan) -> Result<(), Error> {
        let record = &plan.record;
        Rules::open()?.add(record, &plan.exceptions)?;
        // The rules see to it that only the node's own packets make use of that.
        let is_loopback = |ip: HostIp| match ip {
            HostIp::Any | HostIp::AnyV4 => true,
            HostIp::AnyV6 => false,
            HostIp::One(ip) => ip.is_loopback(),
        };
        let has_ipv4 = record.ips.iter().any(std::net::IpAddr::is_ipv4);
        if has_ipv4 && record.host_ports.iter().any(|port| is_loopback(port.host_ip)) {
            sysctl::set(&format!("ipv4/conf/{}/route_localnet", record.bridge), "1")?;
        }
        if record.host_ports.iter().any(|port| port.protocol == Protocol::Udp) {
            let local = route.local_addresses()?;
            for ip in &record.ips {
                flow::delete_stale(&record.host_ports, *ip, |ip| local.contains(&ip))?;
            }
        }
        Ok(())
    }

    fn make_pair(&self, route: &mut Socket, plan: &Plan, mtu: u32) -> Result<(), Error> {
        let Attachment { container_id, ifname } = self.attachment;
        route.make_veth(&plan.record.host_veth, ifname, plan.mac, mtu, self.netns).map_err(|error| match error {
            Error::Kernel { cause, .. } if is_exist(&cause) => Error::Exists {
                container: container_id.clone(),
                ifname: ifname.clone(),
                found: "some other plugin has made it".into(),
            },
            error => error,
        })
    }

    fn configure_pod(&self, plan: &Plan) -> Result<PodLink, Error> {
        let stay = self.netns.enter(self.path, self.own)?;
        let mut socket = Socket::open()?;
        let link = socket.configure(&self.attachment.ifname, &plan.addresses, &plan.routes, self.conf.dad)?;
        drop(stay);
        Ok(PodLink { socket, index: link.index })
    }
}

/// The container's interface, and a socket of its namespace.
struct PodLink {
    socket: Socket,
    index: u32,
}

fn is_exist(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AlreadyExists || error.raw_os_error() == Some(libc::EEXIST)
}
