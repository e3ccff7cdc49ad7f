//! The pair between the bridge and a container: the node's end, and the way in for the other.

use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage, State,
};
use sha2::{Digest, Sha256};

use super::Socket;
use super::bridge::Link;
use super::message;
use crate::conf::Port;
use crate::conf::mac::Mac;
use crate::env::Attachment;
use crate::error::Error;
use crate::netns::NetNs;
use crate::sysctl;

/// How the names of the node's ends begin.
const PREFIX: &str = "veth";
/// How many letters of a name are a hash: 44 bits, and 15 letters in all, which is what a name may have.
const HASH: usize = 11;
/// How long a link is waited for until it is ready. Nearly always it is at once, and after a second where the kernel takes its
/// time (`linkwatch_urgent_event`, if both ends happen to have the same number).
const PATIENCE: Duration = Duration::from_secs(5);
/// Each look takes the lock that the kernel needs to get on with it: a hundred calls at once must not only look.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// The name of the node's end of an attachment's pair in a network.
///
/// The network counts too: where ADD has failed because a container has such an interface from another network, the DEL that
/// follows must not hit that one.
pub fn host_veth(network: &str, attachment: &Attachment) -> String {
    let Attachment { container_id, ifname } = attachment;
    let hash = Sha256::digest(format!("{network} {container_id} {ifname}"));
    let hex: String = hash.iter().take(HASH.div_ceil(2)).map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{}", &hex[..HASH])
}

/// How the alias begins that the node's end has in a network.
pub fn alias_prefix(network: &str) -> String {
    format!("tollgate-cni {network} ")
}

impl Socket {
    /// Makes the pair. Both ends are down, and the node's end is on no bridge.
    pub fn make_veth(&mut self, host: &str, ifname: &str, mac: Mac, mtu: u32, netns: &NetNs) -> Result<(), Error> {
        let what = format!("make the pair {host} and, in the container, {ifname}");
        self.execute(vec![message::make(what, message::veth(host, ifname, mac, mtu, netns.raw_fd()))])
    }

    /// Puts the node's end on the bridge and waits until it forwards. Returns the node's end.
    pub fn attach(&mut self, host: &str, bridge: u32, port: Port, alias: String) -> Result<Link, Error> {
        // The node has no address there, and needs none.
        sysctl::set_new(&format!("ipv6/conf/{host}/addr_gen_mode"), "1")?;
        sysctl::set_new(&format!("ipv6/conf/{host}/accept_ra"), "0")?;
        let mut on_bridge = message::link(host);
        on_bridge.attributes.push(LinkAttribute::Controller(bridge));
        on_bridge.attributes.push(LinkAttribute::IfAlias(alias));
        let mut requests = vec![message::change(format!("put {host} on the bridge"), on_bridge)];
        let mut settings = Vec::new();
        settings.extend(port.hairpin.then_some(InfoBridgePort::HairpinMode(true)));
        settings.extend(port.isolated.then_some(InfoBridgePort::Isolated(true)));
        if !settings.is_empty() {
            requests.push(message::change(format!("set up the port {host}"), message::port(host, settings)));
        }
        requests.push(message::change(format!("set {host} up"), message::up(message::link(host))));
        self.execute(requests)?;
        self.wait_for_port(host)
    }

    /// Waits until a port forwards: the kernel looks at its carrier a little later than that is there.
    fn wait_for_port(&mut self, host: &str) -> Result<Link, Error> {
        if let Some(link) = self.wait_for_link(message::link(host), |link| is_active(link) && forwards(link))? {
            return Ok(link);
        }
        let problem = "does not forward; does it run the spanning tree protocol, or is it down?";
        Err(Error::Conflict(format!("the port {host} of the bridge {problem}")))
    }

    /// Waits until the container's end sends: until the kernel has looked at its carrier, it drops what is to be sent.
    ///
    /// The socket is one of the container's namespace.
    pub fn wait_until_active(&mut self, ifname: &str, index: u32) -> Result<(), Error> {
        if self.wait_for_link(message::link_at(index), is_active)?.is_some() {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "the container's interface {ifname} has no carrier: has somebody set its peer down?"
        )))
    }

    fn wait_for_link(
        &mut self,
        link: LinkMessage,
        is_ready: impl Fn(&LinkMessage) -> bool,
    ) -> Result<Option<Link>, Error> {
        let (start, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            if let Some(RouteNetlinkMessage::NewLink(found)) =
                self.get("look at a link", message::get(link.clone()), &[])?
                && is_ready(&found)
            {
                return Ok(Link::read(RouteNetlinkMessage::NewLink(found)));
            }
            if start.elapsed() > PATIENCE {
                return Ok(None);
            }
            thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Deletes the pair, by the node's end.
    pub fn delete_veth(&mut self, host: &str) -> Result<(), Error> {
        self.execute(vec![message::delete(host)])
    }
}

/// Whether the kernel has seen the carrier and made the queue for sending (`linkwatch_do_dev`).
fn is_active(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::OperState(State::Up))
}

fn forwards(link: &LinkMessage) -> bool {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().any(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
            settings.contains(&InfoBridgePort::State(BridgePortState::Forwarding))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_each_time_and_fit() {
        let attachment = |ifname: &str| Attachment { container_id: "3f2a".into(), ifname: ifname.into() };
        let name = host_veth("pods", &attachment("eth0"));
        assert_eq!(name, host_veth("pods", &attachment("eth0")));
        assert_ne!(name, host_veth("pods", &attachment("eth1")));
        assert_ne!(name, host_veth("others", &attachment("eth0")));
        assert_eq!(name.len(), 15);
        assert!(name.starts_with("veth"));
    }
}
