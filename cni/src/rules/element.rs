//! What an attachment adds to the sets.

use std::net::IpAddr;

use tollgate_nftables::attribute::Bytes;
use tollgate_nftables::element::Element;
use tollgate_nftables::expression::Verdict;
use tollgate_nftables::{IpFamily, Table};

use super::exception::Exceptions;
use super::{BRIDGE, table};
use crate::conf::port::{HostIp, HostPort, Protocol};
use crate::state::record::Record;

/// An element and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The table.
    pub table: Table,
    /// The set.
    pub set: &'static str,
    /// The element.
    pub element: Element,
}

/// Sets whose elements are attachments', by table. An element's comment begins with the name of the node's end of its pair.
pub(super) fn sets() -> Vec<(Table, &'static str)> {
    let of_bridge = ["ports", "macs", "addresses4", "addresses6"].map(|set| (BRIDGE, set));
    let of_family = |family| ["sources", "hostports-any", "hostports-at"].map(|set| (table(family), set));
    of_bridge.into_iter().chain(of_family(IpFamily::V4)).chain(of_family(IpFamily::V6)).collect()
}

/// nft shows no more of a comment.
const COMMENT: usize = 127;
/// Enough for an interface's name and the zero after it.
const IFNAMSIZ: usize = 16;

/// The family of an address.
pub fn family(ip: IpAddr) -> IpFamily {
    if ip.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
}

/// The elements of an attachment. `exceptions` are those of the families that it is masqueraded in; for taking elements
/// away, which needs their keys only, there need be none.
pub fn elements(record: &Record, exceptions: &[(IpFamily, Exceptions)]) -> Vec<Placed> {
    let mut all = checks(record);
    for ip in &record.ips {
        let table = table(family(*ip));
        let place = |set: &'static str, element: Element| Placed { table, set, element };
        if record.ip_masq {
            let mine = exceptions.iter().find(|(of, _)| *of == family(*ip));
            let element = Element::new(address(*ip));
            all.push(place(
                "sources",
                match mine {
                    Some((_, exceptions)) => element.verdict(Verdict::Goto(exceptions.chain_name().into())),
                    None => element,
                },
            ));
        }
        for port in record.host_ports.iter().filter(|port| port.host_ip.has_family_of(*ip)) {
            let (set, key) = host_port_key(port);
            all.push(place(set, Element::new(key).value(pod_port(*ip, port.container_port))));
        }
    }
    let comment = comment(record);
    all.iter_mut().for_each(|placed| placed.element.comment = comment.as_str().into());
    all
}

/// The bridges that are to be known as such, where there are host ports.
pub fn bridges(record: &Record) -> Vec<Placed> {
    let with_ports = |ip: &&IpAddr| record.host_ports.iter().any(|port| port.host_ip.has_family_of(**ip));
    let place = |ip: &IpAddr| Placed {
        table: table(family(*ip)),
        set: "bridges",
        element: Element::new(ifname(&record.bridge)),
    };
    record.ips.iter().filter(with_ports).map(place).collect()
}

/// The name of the node's end of the pair that an element belongs to.
pub fn owner(element: &Element) -> &str {
    element.comment.split(' ').next().unwrap_or_default()
}

/// What is checked of what the pod sends.
fn checks(record: &Record) -> Vec<Placed> {
    let place = |set: &'static str, element: Element| Placed { table: BRIDGE, set, element };
    let (Some(mac), true) = (record.mac, record.port.mac_spoof_check) else { return Vec::new() };
    let veth = ifname(&record.host_veth);
    let with = |rest: &[u8]| {
        let mut key = Bytes::EMPTY;
        key.push_part(&veth);
        key.push_part(rest);
        Element::new(key)
    };
    let chain = if record.port.ip_spoof_check { "check" } else { "check-mac" };
    let mut all = vec![
        place("ports", Element::new(veth).verdict(Verdict::Goto(chain.into()))),
        place("macs", with(&mac.octets())),
    ];
    if record.port.ip_spoof_check {
        all.push(place("addresses6", with(&mac.link_local().octets())));
        all.extend(record.ips.iter().map(|ip| match ip {
            IpAddr::V4(ip) => place("addresses4", with(&ip.octets())),
            IpAddr::V6(ip) => place("addresses6", with(&ip.octets())),
        }));
    }
    all
}

/// Whose an element is, for people and for cleaning up.
fn comment(record: &Record) -> String {
    let mut comment = format!("{} {} {}", record.host_veth, record.network, record.container_id);
    // All of it is ASCII.
    comment.truncate(COMMENT);
    comment
}

fn host_port_key(port: &HostPort) -> (&'static str, Bytes) {
    let mut key = Bytes::EMPTY;
    let set = match port.host_ip {
        HostIp::One(ip) => {
            key.push_part(&address(ip));
            "hostports-at"
        }
        HostIp::Any | HostIp::AnyV4 | HostIp::AnyV6 => "hostports-any",
    };
    key.push_part(&[number(port.protocol)]);
    key.push_part(&port.host_port.to_be_bytes());
    (set, key)
}

/// The host port that an element is for, as far as it is one.
pub fn host_port(placed: &Placed) -> Option<String> {
    let key = &placed.element.key;
    let rest = match placed.set {
        "hostports-any" => key.get(..)?,
        "hostports-at" => key.get(key.len().checked_sub(8)?..)?,
        _ => return None,
    };
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|it| number(*it) == rest[0])?;
    Some(format!("{}/{}", u16::from_be_bytes([*rest.get(4)?, *rest.get(5)?]), protocol.as_str()))
}

fn pod_port(ip: IpAddr, port: u16) -> Bytes {
    let mut value = Bytes::EMPTY;
    value.push_part(&address(ip));
    value.push_part(&port.to_be_bytes());
    value
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => tollgate_nftables::Protocol::Tcp.number(),
        Protocol::Udp => tollgate_nftables::Protocol::Udp.number(),
        Protocol::Sctp => tollgate_nftables::Protocol::Sctp.number(),
    }
}

fn address(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::new(&ip.octets()),
        IpAddr::V6(ip) => Bytes::new(&ip.octets()),
    }
}

/// A name with zeros behind it, as the kernel compares them.
fn ifname(name: &str) -> Bytes {
    let mut bytes = [0; IFNAMSIZ];
    let length = name.len().min(IFNAMSIZ - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    Bytes::new(&bytes)
}
