//! Virtual services and destinations, over generic netlink (`include/uapi/linux/ip_vs.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tollgate_model::name::{IpFamily, Protocol};

use super::super::object::{Scheduler, ServiceChange, ServiceKey, ServiceSpec, ServiceStep};
use super::socket::Messages;
use tollgate_nftables::attribute::{Writer, attributes, read_text};

/// The name that the kernel gives the number of the family for.
pub(crate) const FAMILY_NAME: &str = "IPVS";

/// The family of families (`include/uapi/linux/genetlink.h`).
pub(crate) const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const IPVS_CMD_NEW_SERVICE: u8 = 1;
const IPVS_CMD_SET_SERVICE: u8 = 2;
const IPVS_CMD_DEL_SERVICE: u8 = 3;
const IPVS_CMD_GET_SERVICE: u8 = 4;
const IPVS_CMD_NEW_DEST: u8 = 5;
const IPVS_CMD_SET_DEST: u8 = 6;
const IPVS_CMD_DEL_DEST: u8 = 7;
const IPVS_CMD_GET_DEST: u8 = 8;
const IPVS_CMD_SET_CONFIG: u8 = 12;

const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_CMD_ATTR_DEST: u16 = 2;
const IPVS_CMD_ATTR_TIMEOUT_TCP: u16 = 4;
const IPVS_CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const IPVS_CMD_ATTR_TIMEOUT_UDP: u16 = 6;

const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;
const IPVS_SVC_ATTR_FWMARK: u16 = 5;
const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
const IPVS_SVC_ATTR_FLAGS: u16 = 7;
const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
const IPVS_SVC_ATTR_NETMASK: u16 = 9;
const IPVS_SVC_ATTR_STATS: u16 = 10;

const IPVS_DEST_ATTR_ADDR: u16 = 1;
const IPVS_DEST_ATTR_PORT: u16 = 2;
const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
const IPVS_DEST_ATTR_U_THRESH: u16 = 5;
const IPVS_DEST_ATTR_L_THRESH: u16 = 6;
const IPVS_DEST_ATTR_ACTIVE_CONNS: u16 = 7;
const IPVS_DEST_ATTR_INACT_CONNS: u16 = 8;
const IPVS_DEST_ATTR_STATS: u16 = 10;

const IPVS_STATS_ATTR_CONNS: u16 = 1;

/// A client stays with its destination.
const IP_VS_SVC_F_PERSISTENT: u32 = 1 << 0;
/// What a scheduler that hashes does where it comes upon a destination that takes no connections: it looks for another
/// (`IP_VS_SVC_F_SCHED_SH_FALLBACK` and `IP_VS_SVC_F_SCHED_MH_FALLBACK`, the same bit). Others don't know it.
const FALLBACK: u32 = 1 << 3;
/// No scheduler of the kernel's knows this flag (`IP_VS_SVC_F_SCHED3`): it says whose the virtual service is.
const OURS: u32 = 1 << 5;
const KNOWN_FLAGS: u32 = IP_VS_SVC_F_PERSISTENT | FALLBACK | OURS;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A virtual service, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedService {
    pub(crate) family: IpFamily,
    pub(crate) key: ServiceKey,
    /// `None`: it is not as this program makes one.
    pub(crate) spec: Option<ServiceSpec>,
    /// Whether it has the flag that this program gives its own.
    pub(crate) is_ours: bool,
    /// Connections that it has scheduled.
    pub(crate) connections: u64,
}

/// A destination, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListedDestination {
    pub(crate) to: SocketAddr,
    pub(crate) weight: u32,
    /// Connections that are there now, those that are about to end included.
    pub(crate) open: u32,
    /// Connections that it has been given.
    pub(crate) connections: u64,
}

/// Timeouts of connections, in whole seconds; 0: as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Of a TCP connection that is idle.
    pub tcp: u32,
    /// Of one that is being closed.
    pub tcp_fin: u32,
    /// Of a UDP flow that is idle.
    pub udp: u32,
}

/// Asks for the number of the family of that name.
pub(crate) fn write_family_request(writer: &mut Writer) {
    header(writer, CTRL_CMD_GETFAMILY);
    writer.put_text(CTRL_ATTR_FAMILY_NAME, FAMILY_NAME);
}

/// Its answer.
pub(crate) fn read_family(body: &[u8]) -> Option<u16> {
    let (_, id) = of(body).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)?;
    Some(u16::from_ne_bytes(id.try_into().ok()?))
}

/// Asks for all virtual services.
pub(crate) fn write_services_request(writer: &mut Writer) {
    header(writer, IPVS_CMD_GET_SERVICE);
}

/// Asks for all destinations of one.
pub(crate) fn write_destinations_request(writer: &mut Writer, family: IpFamily, key: ServiceKey) {
    header(writer, IPVS_CMD_GET_DEST);
    writer.nest(IPVS_CMD_ATTR_SERVICE, |it| write_key(it, family, key));
}

/// Sets the timeouts of connections.
pub(crate) fn push_timeouts(messages: &mut Messages, id: u16, timeouts: Timeouts) {
    messages.push(id, 0, |it| {
        header(it, IPVS_CMD_SET_CONFIG);
        for (kind, seconds) in [
            (IPVS_CMD_ATTR_TIMEOUT_TCP, timeouts.tcp),
            (IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, timeouts.tcp_fin),
            (IPVS_CMD_ATTR_TIMEOUT_UDP, timeouts.udp),
        ] {
            if seconds > 0 {
                it.put(kind, &seconds.to_ne_bytes());
            }
        }
    });
}

/// One change.
pub(crate) fn push_step(messages: &mut Messages, id: u16, family: IpFamily, step: &ServiceStep) {
    let (command, spec, destination) = match step.change {
        ServiceChange::Add(spec) => (IPVS_CMD_NEW_SERVICE, Some(spec), None),
        ServiceChange::Set(spec) => (IPVS_CMD_SET_SERVICE, Some(spec), None),
        ServiceChange::Delete => (IPVS_CMD_DEL_SERVICE, None, None),
        ServiceChange::AddDestination(to, weight) => (IPVS_CMD_NEW_DEST, None, Some((to, Some(weight)))),
        ServiceChange::SetDestination(to, weight) => (IPVS_CMD_SET_DEST, None, Some((to, Some(weight)))),
        ServiceChange::DeleteDestination(to) => (IPVS_CMD_DEL_DEST, None, Some((to, None))),
    };
    messages.push(id, 0, |it| {
        header(it, command);
        it.nest(IPVS_CMD_ATTR_SERVICE, |it| {
            write_key(it, family, step.key);
            if let Some(spec) = spec {
                write_spec(it, family, spec);
            }
        });
        if let Some((to, weight)) = destination {
            it.nest(IPVS_CMD_ATTR_DEST, |it| write_destination(it, to, weight));
        }
    });
}

fn header(writer: &mut Writer, command: u8) {
    const VERSION: u8 = 1;
    writer.put_raw(&[command, VERSION, 0, 0]);
}

/// The attributes after a message's own header.
fn of(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(body.get(4..).unwrap_or_default())
}

fn write_key(writer: &mut Writer, family: IpFamily, key: ServiceKey) {
    writer.put(IPVS_SVC_ATTR_AF, &af(family).to_ne_bytes());
    match key {
        ServiceKey::Address { ip, protocol, port } => {
            writer.put(IPVS_SVC_ATTR_PROTOCOL, &u16::from(protocol.number()).to_ne_bytes());
            writer.put(IPVS_SVC_ATTR_ADDR, &octets(ip));
            writer.put(IPVS_SVC_ATTR_PORT, &port.to_be_bytes());
        }
        ServiceKey::Mark(mark) => writer.put(IPVS_SVC_ATTR_FWMARK, &mark.to_ne_bytes()),
    }
}

fn write_spec(writer: &mut Writer, family: IpFamily, spec: ServiceSpec) {
    let persistent = if spec.affinity.is_some() { IP_VS_SVC_F_PERSISTENT } else { 0 };
    let fallback = if spec.scheduler.hashes() { FALLBACK } else { 0 };
    writer.put_text(IPVS_SVC_ATTR_SCHED_NAME, spec.scheduler.as_str());
    // `struct ip_vs_flags`: the flags, and which of them are meant.
    let flags = [(OURS | persistent | fallback).to_ne_bytes(), KNOWN_FLAGS.to_ne_bytes()];
    writer.put(IPVS_SVC_ATTR_FLAGS, flags.as_flattened());
    writer.put(IPVS_SVC_ATTR_TIMEOUT, &spec.affinity.unwrap_or(0).to_ne_bytes());
    // A client is one address: of IPv4 a mask in network byte order, of IPv6 a prefix's length.
    let mask = match family {
        IpFamily::V4 => u32::MAX,
        IpFamily::V6 => 128,
    };
    writer.put(IPVS_SVC_ATTR_NETMASK, &mask.to_ne_bytes());
}

fn write_destination(writer: &mut Writer, to: SocketAddr, weight: Option<u32>) {
    writer.put(IPVS_DEST_ATTR_ADDR, &octets(to.ip()));
    writer.put(IPVS_DEST_ATTR_PORT, &to.port().to_be_bytes());
    let Some(weight) = weight else { return };
    /// Translate addresses (`IP_VS_CONN_F_MASQ`).
    const NAT: u32 = 0;
    let numbers = [
        (IPVS_DEST_ATTR_FWD_METHOD, NAT),
        (IPVS_DEST_ATTR_WEIGHT, weight),
        (IPVS_DEST_ATTR_U_THRESH, 0),
        (IPVS_DEST_ATTR_L_THRESH, 0),
    ];
    numbers.into_iter().for_each(|(kind, value)| writer.put(kind, &value.to_ne_bytes()));
}

fn af(family: IpFamily) -> u16 {
    match family {
        IpFamily::V4 => AF_INET,
        IpFamily::V6 => AF_INET6,
    }
}

/// `union nf_inet_addr`, which is 16 bytes for both families.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn read_ip(family: IpFamily, value: &[u8]) -> Option<IpAddr> {
    Some(match family {
        IpFamily::V4 => Ipv4Addr::from(*value.first_chunk::<4>()?).into(),
        IpFamily::V6 => Ipv6Addr::from(*value.first_chunk::<16>()?).into(),
    })
}

/// What a listing says of a virtual service; `None` where it makes no sense.
pub(crate) fn read_service(body: &[u8]) -> Option<ListedService> {
    let (_, service) = of(body).find(|(kind, _)| *kind == IPVS_CMD_ATTR_SERVICE)?;
    let find = |wanted| attributes(service).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let family = match u16::from_ne_bytes(find(IPVS_SVC_ATTR_AF)?.try_into().ok()?) {
        AF_INET => IpFamily::V4,
        AF_INET6 => IpFamily::V6,
        _ => return None,
    };
    let key = match find(IPVS_SVC_ATTR_FWMARK) {
        Some(mark) => ServiceKey::Mark(number(mark)?),
        None => ServiceKey::Address {
            ip: read_ip(family, find(IPVS_SVC_ATTR_ADDR)?)?,
            protocol: protocol(u16::from_ne_bytes(find(IPVS_SVC_ATTR_PROTOCOL)?.try_into().ok()?))?,
            port: u16::from_be_bytes(find(IPVS_SVC_ATTR_PORT)?.try_into().ok()?),
        },
    };
    let flags = number(find(IPVS_SVC_ATTR_FLAGS)?.get(..4)?)?;
    let timeout = number(find(IPVS_SVC_ATTR_TIMEOUT)?)?;
    let scheduler: Option<Scheduler> = read_text(find(IPVS_SVC_ATTR_SCHED_NAME)?)?.parse().ok();
    let is_usual = |scheduler: &Scheduler| flags & FALLBACK > 0 || !scheduler.hashes();
    let spec = scheduler
        .filter(is_usual)
        .map(|scheduler| ServiceSpec { scheduler, affinity: (flags & IP_VS_SVC_F_PERSISTENT > 0).then_some(timeout) });
    let connections = u64::from(find(IPVS_SVC_ATTR_STATS).and_then(read_connections).unwrap_or(0));
    Some(ListedService { family, key, spec, is_ours: flags & OURS > 0, connections })
}

/// What a listing says of a destination.
pub(crate) fn read_destination(family: IpFamily, body: &[u8]) -> Option<ListedDestination> {
    let (_, destination) = of(body).find(|(kind, _)| *kind == IPVS_CMD_ATTR_DEST)?;
    let find = |wanted| attributes(destination).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let ip = read_ip(family, find(IPVS_DEST_ATTR_ADDR)?)?;
    let port = u16::from_be_bytes(find(IPVS_DEST_ATTR_PORT)?.try_into().ok()?);
    let count = |kind| find(kind).and_then(number).unwrap_or(0);
    Some(ListedDestination {
        to: SocketAddr::new(ip, port),
        weight: count(IPVS_DEST_ATTR_WEIGHT),
        open: count(IPVS_DEST_ATTR_ACTIVE_CONNS).saturating_add(count(IPVS_DEST_ATTR_INACT_CONNS)),
        connections: u64::from(find(IPVS_DEST_ATTR_STATS).and_then(read_connections).unwrap_or(0)),
    })
}

fn read_connections(stats: &[u8]) -> Option<u32> {
    attributes(stats).find(|(kind, _)| *kind == IPVS_STATS_ATTR_CONNS).and_then(|(_, value)| number(value))
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

fn protocol(number: u16) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|it| u16::from(it.number()) == number)
}
