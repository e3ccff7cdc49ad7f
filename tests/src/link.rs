//! Links, addresses and routes of one namespace, over rtnetlink.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::netns::NetNs;
use crate::runtime::{block_on, runtime};

/// The routing table of a namespace's own addresses (rtnetlink(7)).
const RT_TABLE_LOCAL: u32 = 255;

/// One end of a new veth pair.
#[derive(Debug)]
pub struct VethEnd<'a> {
    /// The device's name.
    pub name: &'a str,
    /// The namespace it appears in.
    pub netns: &'a NetNs,
}

/// An rtnetlink socket of one namespace.
#[derive(Debug)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> std::io::Result<Self> {
        let _guard = runtime().enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        runtime().spawn(connection);
        Ok(Self { handle })
    }

    /// Makes a bridge that forwards at once: no spanning tree, and no multicast snooping, which would hold back
    /// IPv6 neighbour discovery until a querier is heard.
    pub fn add_bridge(&self, name: &str) -> Result<()> {
        let message = LinkBridge::new(name).mcast_snooping(false).build();
        block_on(self.handle.link().add(message).execute()).with_context(|| format!("can't make bridge {name}"))
    }

    /// Makes a veth pair, called in the namespace of the near end. Both ends are still down: the kernel refuses
    /// to bring one up before the other is there.
    pub fn add_veth(&self, near: &str, far: &VethEnd<'_>) -> Result<()> {
        let peer = LinkUnspec::new_with_name(far.name)
            .append_extra_attribute(LinkAttribute::NetNsFd(far.netns.raw_fd()))
            .build();
        let message = LinkVeth::new(near, far.name).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        block_on(self.handle.link().add(message).execute())
            .with_context(|| format!("can't make veth {near} with {} in {}", far.name, far.netns.name()))
    }

    /// Puts a device on a bridge and brings it up; with `hairpin` a frame may leave through the port that it came in by.
    pub fn add_bridge_port(&self, bridge: &str, port: &str, hairpin: bool) -> Result<()> {
        let (bridge_index, port_index) = (self.index(bridge)?, self.index(port)?);
        let join = LinkUnspec::new_with_index(port_index).controller(bridge_index).up().build();
        let set = LinkBridgePort::new(port_index).hairpin(hairpin).build();
        block_on(async {
            self.handle.link().set(join).execute().await?;
            // RTM_NEWLINK: the kernel leaves a port's own settings in an RTM_SETLINK unread, without an error.
            self.handle.link().change(set).execute().await
        })
        .with_context(|| format!("can't put {port} on bridge {bridge}"))
    }

    /// Whether a frame may leave through the bridge port that it came in by.
    pub fn is_hairpin(&self, port: &str) -> Result<bool> {
        let link = self.link(port)?;
        let info = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(info) => Some(info),
            _ => None,
        });
        let is_on = |info: &LinkInfo| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => port.contains(&InfoBridgePort::HairpinMode(true)),
            _ => false,
        };
        Ok(info.is_some_and(|info| info.iter().any(is_on)))
    }

    /// Brings a device up.
    pub fn up(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.index(name)?).up().build();
        block_on(self.handle.link().set(message).execute()).with_context(|| format!("can't bring {name} up"))
    }

    /// Takes a device down.
    pub fn down(&self, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.index(name)?).down().build();
        block_on(self.handle.link().set(message).execute()).with_context(|| format!("can't take {name} down"))
    }

    /// Removes a device, and its peer where it is one end of a pair.
    pub fn delete(&self, name: &str) -> Result<()> {
        block_on(self.handle.link().del(self.index(name)?).execute()).with_context(|| format!("can't remove {name}"))
    }

    /// Gives a device an address that is usable at once.
    pub fn add_address(&self, name: &str, address: IpNet) -> Result<()> {
        let mut request = self.handle.address().add(self.index(name)?, address.addr(), address.prefix_len());
        // Nobody else has the address, so IPv6's duplicate detection would only cost a second.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        block_on(request.execute()).with_context(|| format!("can't give {name} the address {address}"))
    }

    /// Takes an address away from whichever device has it.
    pub fn delete_address(&self, ip: IpAddr) -> Result<()> {
        let what = || format!("can't take the address {ip} away");
        block_on(async {
            let mut found = self.handle.address().get().set_address_filter(ip).execute();
            let message = found.try_next().await?.with_context(|| format!("nobody has {ip}"))?;
            anyhow::Ok(self.handle.address().del(message).execute().await?)
        })
        .with_context(what)
    }

    /// Adds a route through a gateway, or replaces the one that is there.
    pub fn add_route(&self, to: IpNet, via: IpAddr) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .and_then(|route| route.gateway(via))
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("a route to {to} via {via} mixes families"))?
            .build();
        block_on(self.handle.route().add(route).replace().execute())
            .with_context(|| format!("can't add a route to {to} via {via}"))
    }

    /// Makes this namespace take every address of a network for its own: whoever sends to one of them reaches a server here
    /// that listens on all addresses.
    pub fn add_local_route(&self, to: IpNet) -> Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .map_err(|error| anyhow!("{error}"))?
            .output_interface(self.index("lo")?)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .table_id(RT_TABLE_LOCAL)
            .build();
        block_on(self.handle.route().add(route).execute()).with_context(|| format!("can't make {to} local"))
    }

    /// The names of this namespace's devices.
    pub fn names(&self) -> Result<Vec<String>> {
        let links: Vec<_> =
            block_on(self.handle.link().get().execute().try_collect()).context("can't list the devices")?;
        let name = |attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        };
        Ok(links.into_iter().filter_map(|link| link.attributes.into_iter().find_map(name)).collect())
    }

    fn index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name)?.header.index)
    }

    fn link(&self, name: &str) -> Result<LinkMessage> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        block_on(links.try_next())
            .with_context(|| format!("can't look for device {name}"))?
            .with_context(|| format!("there is no device {name}"))
    }
}
