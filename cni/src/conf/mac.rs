//! Hardware addresses.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The hardware address of one interface; never a group's, and never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Its bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The hardware address of the interface that has this address: `0a:58` and an IPv4 address, or a hash of an IPv6 one.
    ///
    /// It makes neighbours' memories right forever: whoever gets an address next has the same hardware address. `0a` is
    /// locally administered and unicast; `0a:58` is what Kubernetes' plugins have used for this.
    pub fn of_address(address: IpAddr) -> Self {
        let host = match address {
            IpAddr::V4(ip) => ip.octets(),
            IpAddr::V6(ip) => {
                let hash = Sha256::digest(ip.octets());
                [hash[0], hash[1], hash[2], hash[3]]
            }
        };
        Self([0x0a, 0x58, host[0], host[1], host[2], host[3]])
    }

    /// The link-local address that the kernel makes of it (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// From the kernel.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or("not six pairs of hexadecimal digits")?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| "not six pairs of hexadecimal digits")?;
        }
        if parts.next().is_some() {
            return Err("more than six pairs of hexadecimal digits".into());
        }
        if octets[0] & 1 > 0 {
            return Err("the address of a group, not of an interface".into());
        }
        if octets == [0; 6] {
            return Err("no interface has only zeros".into());
        }
        Ok(Self(octets))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_interface_s_address_is_refused() {
        for text in
            ["", "00:00:00:00:00:00", "01:00:5e:00:00:01", "0a:58:0a", "0a:58:0a:01:00:02:03", "+a:58:0a:01:00:0g"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        assert_eq!("0A-58-0a-01-00-02".parse::<Mac>().unwrap().to_string(), "0a:58:0a:01:00:02");
    }

    #[test]
    fn addresses_have_their_own() {
        assert_eq!(Mac::of_address("10.1.0.2".parse().unwrap()).to_string(), "0a:58:0a:01:00:02");
        let mac = Mac::of_address("fd00::1".parse().unwrap());
        assert_eq!(mac, Mac::of_address("fd00::1".parse().unwrap()));
        assert_ne!(mac, Mac::of_address("fd00::2".parse().unwrap()));
        assert_eq!("0a:58:0a:01:00:02".parse::<Mac>().unwrap().link_local().to_string(), "fe80::858:aff:fe01:2");
    }
}
