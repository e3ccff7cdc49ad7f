//! Host ports: ports of the node that lead to a container.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A port of the node that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// On which of the node's addresses: on that one, or on all.
    pub host_ip: HostIp,
    /// The node's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// On which addresses of the node a host port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostIp {
    /// On all.
    Any,
    /// On all of IPv4.
    AnyV4,
    /// On all of IPv6.
    AnyV6,
    /// On one.
    #[serde(untagged)]
    One(IpAddr),
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A mapping, as the capability `portMappings` has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawMapping {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

impl HostPort {
    /// Reads the mapping at that place of the configuration.
    pub(super) fn read(raw: &RawMapping, place: &str) -> Result<Self, Error> {
        let port = |name: &str, number: i64| {
            let port = u16::try_from(number).ok().filter(|port| *port > 0);
            port.ok_or_else(|| Error::field(format!("{place}.{name}"), format!("{number} is no port (1 to 65535)")))
        };
        let protocol = match raw.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => {
                let problem = format!("{other:?} is none of tcp, udp, sctp");
                return Err(Error::field(format!("{place}.protocol"), problem));
            }
        };
        Ok(Self {
            host_ip: HostIp::read(&raw.host_ip, &format!("{place}.hostIP"))?,
            host_port: port("hostPort", raw.host_port)?,
            container_port: port("containerPort", raw.container_port)?,
            protocol,
        })
    }
}

impl HostIp {
    fn read(text: &str, field: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::Any);
        }
        let ip: IpAddr = text.parse().map_err(|_| Error::field(field, format!("{text:?} is no address")))?;
        match ip {
            IpAddr::V4(ip) if ip.is_unspecified() => Ok(Self::AnyV4),
            IpAddr::V6(ip) if ip.is_unspecified() => Ok(Self::AnyV6),
            // The kernel routes nothing from ::1 to another interface (it has no route_localnet for IPv6).
            IpAddr::V6(ip) if ip.is_loopback() => Err(Error::Unsupported {
                field: field.into(),
                value: text.into(),
                remedy: "the kernel forwards nothing from ::1; use 127.0.0.1 or another address of the node",
            }),
            ip if ip.is_multicast() => Err(Error::field(field, format!("{text} is a group's address"))),
            ip => Ok(Self::One(ip)),
        }
    }

    /// Whether it can be dialled at an address of the same family as this one.
    pub fn has_family_of(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::AnyV4 => address.is_ipv4(),
            Self::AnyV6 => address.is_ipv6(),
            Self::One(ip) => ip.is_ipv4() == address.is_ipv4(),
        }
    }
}

impl Protocol {
    /// As a configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (port, protocol) = (self.host_port, self.protocol.as_str());
        match self.host_ip {
            HostIp::One(IpAddr::V6(ip)) => write!(f, "[{ip}]:{port}/{protocol}"),
            HostIp::One(ip) => write!(f, "{ip}:{port}/{protocol}"),
            HostIp::Any | HostIp::AnyV4 | HostIp::AnyV6 => write!(f, "{port}/{protocol}"),
        }
    }
}
