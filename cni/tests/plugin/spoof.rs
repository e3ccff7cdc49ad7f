//! What a pod sends in another's name goes nowhere; each case has a control without the check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use nix::libc;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tollgate_lab::{NetNs, Probe, TCP_PORT};

use crate::Case;
use crate::node::{Node, Pod, addresses, conf, conf_with, sockets};

pub(crate) const CASES: &[Case] = &[
    ("spoofed_frames_are_dropped", spoofed_frames_are_dropped),
    ("without_checks_they_pass", without_checks_they_pass),
    ("checks_of_hardware_addresses_alone", checks_of_hardware_addresses_alone),
    ("the_node_believes_no_pod_s_arp", the_node_believes_no_pods_arp),
];

type Mac = [u8; 6];

/// Where a frame goes from and what is in it.
struct Frame {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether checks of hardware addresses alone drop it too.
    is_by_mac: bool,
}

/// A pod that sends, and another whom it sends to.
struct Scene {
    node: Node,
    sender: Pod,
    receiver: Pod,
    /// The sender's, the receiver's.
    macs: [Mac; 2],
    v4: [Ipv4Addr; 2],
    v6: [Ipv6Addr; 2],
}

impl Scene {
    fn new(conf: &Value) -> Result<Self> {
        let node = Node::new("node")?;
        // Or the bridge would cut frames to what their IP headers say, and with that their names.
        for family in ["ip", "ip6", "arp"] {
            node.netns.sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), "0")?;
        }
        let (sender, receiver) = (node.pod("sender")?, node.pod("receiver")?);
        let results = [node.add(&sender, conf)?, node.add(&receiver, conf)?];
        let mac = |result: &Value| -> Result<Mac> {
            let text = result["interfaces"][2]["mac"].as_str().context("no mac")?;
            let octets: Vec<u8> = text.split(':').map(|pair| u8::from_str_radix(pair, 16)).collect::<Result<_, _>>()?;
            octets.try_into().ok().context("not six octets")
        };
        let v4 = |result: &Value| match addresses(result)[..] {
            [IpAddr::V4(ip), _] => Ok(ip),
            _ => anyhow::bail!("no IPv4 address"),
        };
        let v6 = |result: &Value| match addresses(result)[..] {
            [_, IpAddr::V6(ip)] => Ok(ip),
            _ => anyhow::bail!("no IPv6 address"),
        };
        let [a, b] = &results;
        Ok(Self { macs: [mac(a)?, mac(b)?], v4: [v4(a)?, v4(b)?], v6: [v6(a)?, v6(b)?], node, sender, receiver })
    }

    /// What a well-behaved pod sends.
    fn honest(&self) -> Vec<Frame> {
        let [own, other] = self.macs;
        let frame = |name, bytes| Frame { name, bytes, is_by_mac: false };
        vec![
            frame("IPv4", ethernet(other, own, 0x0800, &ipv4(self.v4[0], self.v4[1], 9))),
            frame("IPv6", ethernet(other, own, 0x86dd, &ipv6(self.v6[0], self.v6[1], 59, &[]))),
            frame("an ARP reply", ethernet(other, own, 0x0806, &arp(2, own, self.v4[0], self.v4[1]))),
            frame("an ARP probe", ethernet(other, own, 0x0806, &arp(1, own, Ipv4Addr::UNSPECIFIED, self.v4[1]))),
            frame(
                "a neighbour advertisement",
                ethernet(other, own, 0x86dd, &icmpv6(self.v6[0], self.v6[1], 136, self.v6[0])),
            ),
            frame(
                "IPv6 of its link-local address",
                ethernet(other, own, 0x86dd, &ipv6(link_local(own), self.v6[1], 59, &[])),
            ),
            frame("a DHCP request", ethernet(other, own, 0x0800, &udp(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 67))),
            frame(
                "duplicate address detection",
                ethernet(other, own, 0x86dd, &icmpv6(Ipv6Addr::UNSPECIFIED, self.v6[1], 135, self.v6[0])),
            ),
        ]
    }

    /// What a pod might send in another's name.
    fn spoofed(&self) -> Result<Vec<Frame>> {
        let [own, other] = self.macs;
        let foreign: Mac = [2, 0, 0, 0, 0, 9];
        let (gateway4, gateway6) = ("10.1.0.1".parse::<Ipv4Addr>()?, "fd00:1::1".parse::<Ipv6Addr>()?);
        let frame = |name, bytes| Frame { name, bytes, is_by_mac: false };
        let by_mac = |name, bytes| Frame { name, bytes, is_by_mac: true };
        let ip4 = ipv4(self.v4[0], self.v4[1], 9);
        let tagged = [&[0, 7, 0x08, 0x00][..], &ipv4(gateway4, self.v4[1], 9)].concat();
        Ok(vec![
            by_mac("another's hardware address", ethernet(other, foreign, 0x0800, &ip4)),
            frame("the gateway's IPv4 address", ethernet(other, own, 0x0800, &ipv4(gateway4, self.v4[1], 9))),
            frame("no IPv4 address", ethernet(other, own, 0x0800, &ipv4(Ipv4Addr::UNSPECIFIED, self.v4[1], 9))),
            frame("the gateway's IPv6 address", ethernet(other, own, 0x86dd, &ipv6(gateway6, self.v6[1], 59, &[]))),
            frame("no IPv6 address", ethernet(other, own, 0x86dd, &ipv6(Ipv6Addr::UNSPECIFIED, self.v6[1], 59, &[]))),
            frame(
                "another's link-local address",
                ethernet(other, own, 0x86dd, &ipv6(link_local(foreign), self.v6[1], 59, &[])),
            ),
            frame("the gateway's ARP", ethernet(other, own, 0x0806, &arp(2, own, gateway4, self.v4[1]))),
            frame(
                "another's hardware address within ARP",
                ethernet(other, own, 0x0806, &arp(2, foreign, self.v4[0], self.v4[1])),
            ),
            frame(
                "the gateway's neighbour advertisement",
                ethernet(other, own, 0x86dd, &icmpv6(self.v6[0], self.v6[1], 136, gateway6)),
            ),
            by_mac(
                "a router advertisement",
                ethernet(other, own, 0x86dd, &icmpv6(link_local(own), self.v6[1], 134, gateway6)),
            ),
            by_mac("a redirect", ethernet(other, own, 0x86dd, &icmpv6(link_local(own), self.v6[1], 137, gateway6))),
            frame("a VLAN tag before another's address", ethernet(other, own, 0x8100, &tagged)),
            frame("some other protocol", ethernet(other, own, 0x88cc, &[0; 46])),
        ])
    }

    /// The names of the frames that the receiver sees.
    fn seen(&self, frames: &[Frame]) -> Result<Vec<&'static str>> {
        let sniffer = Sniffer::open(&self.receiver.netns)?;
        let socket = packet_socket(&self.sender.netns)?;
        // Each is told from all others by its last octets; the mark at the end is one that always passes.
        let end = ethernet(self.macs[1], self.macs[0], 0x0800, &ipv4(self.v4[0], self.v4[1], 10));
        let mut sent: Vec<(&'static str, Vec<u8>)> =
            frames.iter().map(|it| (it.name, marked(&it.bytes, it.name))).collect();
        sent.push(("end", marked(&end, "end")));
        for (name, bytes) in &sent {
            socket.send(bytes).with_context(|| format!("can't send {name}"))?;
        }
        let mut seen = Vec::new();
        loop {
            let frame = sniffer.next()?;
            let found = sent.iter().find(|(name, _)| frame.ends_with(name.as_bytes()));
            match found {
                Some(("end", _)) => return Ok(seen),
                Some((name, _)) => seen.push(*name),
                None => {}
            }
        }
    }
}

fn spoofed_frames_are_dropped() -> Result<()> {
    let scene = Scene::new(&conf())?;
    let honest = scene.honest();
    ensure!(scene.seen(&honest)? == honest.iter().map(|frame| frame.name).collect::<Vec<_>>(), "honest frames pass");
    let seen = scene.seen(&scene.spoofed()?)?;
    ensure!(seen.is_empty(), "passed: {seen:?}");
    ensure!(scene.node.command("nft list chain bridge tollgate-cni check-arp")?.contains("counter packets 1"));
    Ok(())
}

fn without_checks_they_pass() -> Result<()> {
    let scene = Scene::new(&conf_with(|conf| conf["macspoofchk"] = false.into()))?;
    let spoofed = scene.spoofed()?;
    let seen = scene.seen(&spoofed)?;
    ensure!(seen == spoofed.iter().map(|frame| frame.name).collect::<Vec<_>>(), "passed: {seen:?}");
    Ok(())
}

fn checks_of_hardware_addresses_alone() -> Result<()> {
    let scene = Scene::new(&conf_with(|conf| conf["ipspoofchk"] = false.into()))?;
    let spoofed = scene.spoofed()?;
    let expected: Vec<&str> = spoofed.iter().filter(|frame| !frame.is_by_mac).map(|frame| frame.name).collect();
    let seen = scene.seen(&spoofed)?;
    ensure!(seen == expected, "passed: {seen:?}");
    Ok(())
}

/// The other way round: what is meant for a pod still reaches it after another has claimed its address.
fn the_node_believes_no_pods_arp() -> Result<()> {
    let scene = Scene::new(&conf())?;
    let _servers = tollgate_lab::Servers::start(&scene.receiver.netns)?;
    let broadcast = [0xff; 6];
    let own = scene.macs[0];
    let socket = packet_socket(&scene.sender.netns)?;
    socket.send(&ethernet(broadcast, own, 0x0806, &arp(2, own, scene.v4[1], scene.v4[1])))?;
    let receiver = serde_json::json!({ "ips": [{ "address": format!("{}/16", scene.v4[1]) }] });
    let to = sockets(&receiver, TCP_PORT)[0];
    ensure!(Probe::from(&scene.node.netns).tcp(to).answer()?.by == "receiver");
    Ok(())
}

// === frames ===

fn ethernet(to: Mac, from: Mac, kind: u16, content: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &kind.to_be_bytes(), content].concat()
}

/// With a name at its end.
fn marked(frame: &[u8], name: &str) -> Vec<u8> {
    [frame, &[0; 46], name.as_bytes()].concat()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Vec<u8> {
    let mut header = [&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, protocol, 0, 0][..], &from.octets(), &to.octets()].concat();
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(folded).unwrap_or_default();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn udp(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut packet = ipv4(from, to, 17);
    packet[3] = 28;
    let sum = u16::from_be_bytes([packet[10], packet[11]]);
    packet[10..12].copy_from_slice(&(sum - 8).to_be_bytes());
    [&packet[..], &68u16.to_be_bytes(), &port.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or_default().to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[next, 255], &from.octets(), &to.octets(), content].concat()
}

/// With a target, as neighbour discovery has it; nobody looks at the checksum here.
fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, target: Ipv6Addr) -> Vec<u8> {
    ipv6(from, to, 58, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat())
}

fn arp(operation: u8, mac: Mac, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &from.octets(), &[0; 6], &to.octets()].concat()
}

fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// A socket for whole frames of `eth0`.
fn packet_socket(netns: &NetNs) -> Result<Socket> {
    netns.run(|| {
        let all = i32::from(u16::try_from(libc::ETH_P_ALL)?.to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)))?;
        // SAFETY: all zeros are a valid address of this kind.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_protocol = u16::try_from(all)?;
        address.sll_ifindex = i32::try_from(nix::net::if_::if_nametoindex("eth0")?)?;
        let length = u32::try_from(size_of_val(&address))?;
        // SAFETY: an address of this kind, with its own length.
        let ((), address) = unsafe {
            socket2::SockAddr::try_init(|storage, size| {
                storage.cast::<libc::sockaddr_ll>().write(address);
                *size = length;
                Ok(())
            })?
        };
        socket.bind(&address)?;
        Ok(socket)
    })
}

struct Sniffer(Socket);

impl Sniffer {
    fn open(netns: &NetNs) -> Result<Self> {
        let socket = packet_socket(netns)?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        Ok(Self(socket))
    }

    fn next(&self) -> Result<Vec<u8>> {
        use std::io::Read as _;
        let mut buffer = [0; 2048];
        let length = (&self.0).read(&mut buffer).context("the frame at the end does not arrive")?;
        Ok(buffer[..length].to_vec())
    }
}
