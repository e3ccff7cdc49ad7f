//! CHECK: whether a container is still attached as ADD has answered.

use super::needs;
use super::plan::{self, Plan};
use crate::conf::NetConf;
use crate::env::{self, Args, Attachment, Variables, Verb};
use crate::error::Error;
use crate::ipam::Addresses;
use crate::ipam::delegate::Plugin;
use crate::ipam::store;
use crate::link::Socket;
use crate::netns::NetNs;
use crate::result::{IpConfig, NetResult};
use crate::rules::Rules;
use crate::state::record::{Record, State};
use crate::version::SpecVersion;

pub(super) fn check(variables: &impl Variables, stdin: &[u8]) -> Result<(), Error> {
    let attachment = Attachment::read(variables)?;
    let args = Args::read(variables)?;
    let path = env::netns(variables)?;
    let conf = NetConf::parse(stdin, &args)?;
    needs(Verb::Check, SpecVersion::V0_4_0, conf.network.version)?;
    let result = conf.prev_result.as_ref().ok_or_else(|| Error::field("prevResult", "is missing"))?;
    let own = NetNs::own()?;
    let netns = NetNs::open(&path, &own)?;

    let record = Record::read(&conf.network.name, &attachment)?.filter(|record| record.state == State::Added);
    let record = record.ok_or_else(|| {
        Error::Check(format!(
            "{attachment} is not attached to the network {}: there is no record of it",
            conf.network.name
        ))
    })?;
    let addresses = addresses_of(result, &attachment, &path.display().to_string())?;
    check_addresses(variables, stdin, &conf, &attachment, &record, &addresses)?;
    let told = if plan::asks_daemon(&conf) { plan::pool(&conf)?.1 } else { None };
    let plan = Plan::again(&conf, record, addresses, told.as_ref())?;

    let mut problems = check_node(&conf, &plan)?;
    problems.extend(Rules::open()?.missing(&plan.record, &plan.exceptions)?);
    let stay = netns.enter(&path, &own)?;
    problems.extend(check_pod(&plan, &attachment, result)?);
    drop(stay);
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Check(format!("{attachment} is not as it was made; it lacks {}", problems.join(", "))))
}

/// The addresses that the result has for our interface.
fn addresses_of(result: &NetResult, attachment: &Attachment, sandbox: &str) -> Result<Addresses, Error> {
    let mine = result.interfaces.iter().position(|it| it.name == attachment.ifname && it.sandbox == sandbox);
    let mine = mine.ok_or_else(|| {
        Error::field("prevResult.interfaces", format!("there is no {} in {sandbox} among them", attachment.ifname))
    })?;
    let ips: Vec<IpConfig> = result.ips.iter().filter(|ip| ip.interface == Some(mine)).cloned().collect();
    if ips.is_empty() {
        return Err(Error::field("prevResult.ips", format!("{} has none", attachment.ifname)));
    }
    Ok(Addresses { ips, ..Addresses::default() })
}

fn check_addresses(
    variables: &impl Variables,
    stdin: &[u8],
    conf: &NetConf,
    attachment: &Attachment,
    record: &Record,
    addresses: &Addresses,
) -> Result<(), Error> {
    if let Some(name) = &conf.network.ipam_plugin {
        let dirs = env::plugin_dirs(variables)?;
        return Plugin { name, dirs: &dirs, conf: stdin }.check();
    }
    let held = store::of(&record.network, attachment)?;
    match addresses.ips.iter().find(|ip| !held.contains(&ip.address.addr())) {
        None => Ok(()),
        Some(ip) => Err(Error::Check(format!("{} is not leased to {attachment}", ip.address.addr()))),
    }
}

/// What the node lacks.
fn check_node(conf: &NetConf, plan: &Plan) -> Result<Vec<String>, Error> {
    let mut route = Socket::open()?;
    let (mut problems, name) = (Vec::new(), &conf.bridge.name);
    let Some(bridge) = route.link(name)? else { return Ok(vec![format!("the bridge {name}")]) };
    match route.link(&plan.record.host_veth)? {
        Some(link) if link.controller == Some(bridge.index) => {}
        Some(link) => problems.push(format!("the port of {} on the bridge {name}", link.name)),
        None => problems.push(format!("the link {}", plan.record.host_veth)),
    }
    let present = route.addresses(bridge.index)?;
    let missing = plan.gateways.iter().filter(|gateway| !present.contains(gateway));
    problems.extend(missing.map(|gateway| format!("the address {gateway} of the bridge {name}")));
    Ok(problems)
}

/// What the container lacks.
fn check_pod(plan: &Plan, attachment: &Attachment, result: &NetResult) -> Result<Vec<String>, Error> {
    let mut socket = Socket::open()?;
    let ifname = &attachment.ifname;
    let Some(link) = socket.link(ifname)? else { return Ok(vec![format!("the interface {ifname}")]) };
    let mut problems = Vec::new();
    // A plugin behind this one may have changed it, and then the result says so.
    let told = result.interfaces.iter().find(|it| it.name == *ifname && !it.sandbox.is_empty());
    let told = told.map(|told| told.mac.clone()).filter(|mac| !mac.is_empty());
    if told.is_some() && told != link.mac.map(|mac| mac.to_string()) {
        problems.push(format!("the hardware address {}", told.unwrap_or_default()));
    }
    let present = socket.addresses(link.index)?;
    let missing = plan.addresses.ips.iter().filter(|ip| !present.contains(&ip.address));
    problems.extend(missing.map(|ip| format!("the address {}", ip.address)));
    for route in &plan.routes {
        if !socket.has_route(route, link.index)? {
            problems.push(format!("the route to {}", route.dst));
        }
    }
    Ok(problems)
}
