//! What rules load and what sets are keyed by, in nft's words: `meta priority & 0xffffc000`, `ip saddr`.

use std::ops::{BitAnd, BitOr};

use crate::attribute::Bytes;
use crate::expression::{Expression, Found, Register};
use crate::set::{DataType, Userdata};
use crate::{IpFamily, Protocol};

/// Something that a rule can load, and what a listing calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    source: Source,
    bits: Option<Bits>,
    is_big_endian: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Meta(Meta),
    Field(Field),
    Ct(Ct),
    AddressType(u32),
    Random(u32),
    Value(Bytes),
    Map(Vec<Term>, Box<str>),
}

/// `value & mask ^ xor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits {
    mask: u32,
    xor: u32,
}

/// What is known about a packet besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// The word that the queueing discipline classifies by.
    Priority,
    /// The mark.
    Mark,
    /// The name of the interface it came in by.
    Iifname,
    /// The name of the interface it goes out by.
    Oifname,
    /// The protocol above IP.
    L4proto,
}

/// A field of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ip saddr` or `ip6 saddr`.
    Saddr(IpFamily),
    /// `ip daddr` or `ip6 daddr`.
    Daddr(IpFamily),
    /// `th dport`: of whatever protocol.
    AnyDport,
    /// `tcp dport` and the like.
    Dport(Protocol),
    /// `ether saddr`.
    EtherSaddr,
    /// `ether type`: what the frame says of its content, also where that is a VLAN's tag.
    EtherType,
    /// The first octet of the IPv4 destination, by which nft writes `ip daddr 127.0.0.0/8`.
    DaddrOctet,
    /// The fixed part of an ARP packet but for its operation: the types and lengths of both sorts of addresses.
    ArpForm,
    /// `arp saddr ether`.
    ArpEtherSaddr,
    /// `arp saddr ip`.
    ArpSaddr,
    /// `icmpv6 type`.
    Icmpv6Type,
    /// The address that a neighbour solicitation or advertisement is about.
    NeighbourTarget,
}

/// What connection tracking knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ct {
    /// `ct state`.
    State,
    /// `ct status`.
    Status,
}

/// A bit of `ct state` (`linux/netfilter/nf_conntrack_common.h`): it fits no connection.
pub const CT_STATE_INVALID: u32 = 1;
/// A bit of `ct status`: the destination is translated.
pub const CT_STATUS_DNAT: u32 = 1 << 5;
/// `RTN_LOCAL`: the type of the node's own addresses.
pub const ADDRESS_LOCAL: u32 = 2;

/// `NFTA_FIB_F_SADDR`, `NFTA_FIB_F_DADDR` and `NFT_FIB_RESULT_ADDRTYPE`.
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const FIB_ADDRESS_TYPE: u32 = 3;

/// `NFT_PAYLOAD_LL_HEADER`, `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

impl From<Source> for Term {
    fn from(source: Source) -> Self {
        Self { source, bits: None, is_big_endian: false }
    }
}

impl From<Meta> for Term {
    fn from(meta: Meta) -> Self {
        Source::Meta(meta).into()
    }
}

impl From<Field> for Term {
    fn from(field: Field) -> Self {
        Source::Field(field).into()
    }
}

impl From<Ct> for Term {
    fn from(ct: Ct) -> Self {
        Source::Ct(ct).into()
    }
}

/// `numgen random mod N`.
pub fn random(modulus: u32) -> Term {
    Source::Random(modulus).into()
}

/// `fib saddr type`.
pub fn source_address_type() -> Term {
    Source::AddressType(FIB_SADDR).into()
}

/// `fib daddr type`.
pub fn destination_address_type() -> Term {
    Source::AddressType(FIB_DADDR).into()
}

/// A value as it is.
pub fn value(value: impl Into<Bytes>) -> Term {
    Source::Value(value.into()).into()
}

/// `key map @name`.
pub fn map(key: impl Into<Vec<Term>>, name: &str) -> Term {
    Source::Map(key.into(), name.into()).into()
}

impl BitAnd<u32> for Term {
    type Output = Self;

    fn bitand(self, mask: u32) -> Self {
        let bits = self.bits.unwrap_or(Bits { mask: u32::MAX, xor: 0 });
        Self { bits: Some(Bits { mask: bits.mask & mask, xor: bits.xor & mask }), ..self }
    }
}

impl BitOr<u32> for Term {
    type Output = Self;

    fn bitor(self, set: u32) -> Self {
        let bits = self.bits.unwrap_or(Bits { mask: u32::MAX, xor: 0 });
        Self { bits: Some(Bits { mask: bits.mask & !set, xor: bits.xor | set }), ..self }
    }
}

impl Term {
    /// In network byte order, as ranges of a concatenation want numbers.
    pub fn big_endian(self) -> Self {
        Self { is_big_endian: true, ..self }
    }

    /// How many registers of 32 bits it takes.
    pub fn words(&self) -> usize {
        self.length().div_ceil(4)
    }

    /// Its length in bytes.
    pub fn length(&self) -> usize {
        match &self.source {
            Source::Meta(Meta::L4proto) => 1,
            Source::Meta(Meta::Iifname | Meta::Oifname) => 16,
            Source::Meta(Meta::Priority | Meta::Mark)
            | Source::Ct(_)
            | Source::AddressType(_)
            | Source::Random(_)
            | Source::Map(..) => 4,
            Source::Field(field) => usize::try_from(field.place().2).unwrap_or(usize::MAX),
            Source::Value(value) => value.len(),
        }
    }

    /// The expressions that load it.
    pub fn load(&self, to: Register, expressions: &mut Vec<Expression>) {
        let loaded = match &self.source {
            Source::Meta(meta) => Expression::Meta { key: meta.key(), to },
            Source::Field(field) => {
                let (base, offset, length) = field.place();
                Expression::Payload { base, offset, length, to }
            }
            Source::Ct(ct) => Expression::Ct { key: ct.key(), to },
            Source::AddressType(flags) => Expression::Fib { flags: *flags, result: FIB_ADDRESS_TYPE, to },
            Source::Random(modulus) => Expression::Random { modulus: *modulus, to },
            Source::Value(value) => Expression::Immediate { to, value: *value },
            Source::Map(key, set) => {
                load_all(key, expressions);
                Expression::Lookup { set: set.clone(), key: Register::after(0), found: Found::Data(to) }
            }
        };
        expressions.push(loaded);
        if let Some(Bits { mask, xor }) = self.bits {
            expressions.push(Expression::Bitwise { from: to, to, mask: mask.into(), xor: xor.into() });
        }
        if self.is_big_endian {
            expressions.push(Expression::HostToNetwork { from: to, to });
        }
    }

    /// What a listing calls the type of it.
    pub fn data_type(&self) -> DataType {
        match &self.source {
            Source::Meta(Meta::Priority) => DataType::Classid,
            Source::Meta(Meta::Mark) => DataType::Mark,
            Source::Meta(Meta::Iifname | Meta::Oifname) => DataType::Ifname,
            Source::Meta(Meta::L4proto) => DataType::InetProto,
            Source::Field(Field::Saddr(family) | Field::Daddr(family)) => DataType::address(*family),
            Source::Field(Field::AnyDport | Field::Dport(_)) => DataType::InetService,
            Source::Field(Field::EtherSaddr | Field::ArpEtherSaddr) => DataType::EtherAddr,
            Source::Field(Field::ArpSaddr) => DataType::Ipv4Addr,
            Source::Field(Field::NeighbourTarget) => DataType::Ipv6Addr,
            Source::Field(Field::EtherType | Field::DaddrOctet | Field::ArpForm | Field::Icmpv6Type) => {
                DataType::Integer
            }
            Source::Ct(_) | Source::AddressType(_) | Source::Random(_) | Source::Value(_) | Source::Map(..) => {
                DataType::Integer
            }
        }
    }

    /// What `typeof` says of it: the number of nft's kind of expression, and what that kind adds.
    pub fn write_typeof(&self, userdata: &mut Userdata) {
        const PAYLOAD: u32 = 7;
        const META: u32 = 9;
        const NUMGEN: u32 = 23;
        match &self.source {
            Source::Meta(meta) => userdata.expression(META, |it| it.put_u32(0, meta.key())),
            Source::Field(field) => {
                let Some((header, template)) = field.template() else { return };
                userdata.expression(PAYLOAD, |it| {
                    it.put_u32(0, header);
                    it.put_u32(1, template);
                });
            }
            Source::Random(modulus) => userdata.expression(NUMGEN, |it| {
                it.put_u32(0, 1);
                it.put_u32(1, *modulus);
                it.put_u32(2, 0);
            }),
            Source::Ct(_) | Source::AddressType(_) | Source::Value(_) | Source::Map(..) => {}
        }
    }
}

/// Loads the parts of a key into registers that follow each other, from the first on.
pub(crate) fn load_all(key: &[Term], expressions: &mut Vec<Expression>) {
    let mut words = 0;
    for part in key {
        part.load(Register::after(words), expressions);
        words += part.words();
    }
}

impl Meta {
    /// `enum nft_meta_keys`.
    pub fn key(self) -> u32 {
        match self {
            Self::Priority => 2,
            Self::Mark => 3,
            Self::Iifname => 6,
            Self::Oifname => 7,
            Self::L4proto => 16,
        }
    }
}

impl Ct {
    /// `enum nft_ct_keys`.
    fn key(self) -> u32 {
        match self {
            Self::State => 0,
            Self::Status => 2,
        }
    }
}

impl Field {
    /// Which header, and offset and length in it.
    fn place(self) -> (u32, u32, u32) {
        match self {
            Self::Saddr(IpFamily::V4) => (NETWORK_HEADER, 12, 4),
            Self::Daddr(IpFamily::V4) => (NETWORK_HEADER, 16, 4),
            Self::Saddr(IpFamily::V6) => (NETWORK_HEADER, 8, 16),
            Self::Daddr(IpFamily::V6) => (NETWORK_HEADER, 24, 16),
            Self::AnyDport | Self::Dport(_) => (TRANSPORT_HEADER, 2, 2),
            Self::EtherSaddr => (LINK_HEADER, 6, 6),
            Self::EtherType => (LINK_HEADER, 12, 2),
            Self::DaddrOctet => (NETWORK_HEADER, 16, 1),
            Self::ArpForm => (NETWORK_HEADER, 0, 6),
            Self::ArpEtherSaddr => (NETWORK_HEADER, 8, 6),
            Self::ArpSaddr => (NETWORK_HEADER, 14, 4),
            Self::Icmpv6Type => (TRANSPORT_HEADER, 0, 1),
            Self::NeighbourTarget => (TRANSPORT_HEADER, 8, 16),
        }
    }

    /// nft's numbers of the header and of the field in it, as seen in its `--debug=mnl`; of those that sets are declared by
    /// with `typeof`.
    fn template(self) -> Option<(u32, u32)> {
        Some(match self {
            Self::Saddr(IpFamily::V4) => (12, 11),
            Self::Daddr(IpFamily::V4) => (12, 12),
            Self::Saddr(IpFamily::V6) => (13, 8),
            Self::Daddr(IpFamily::V6) => (13, 9),
            Self::AnyDport => (11, 2),
            Self::Dport(Protocol::Tcp) => (8, 2),
            Self::Dport(Protocol::Udp) => (6, 2),
            Self::Dport(Protocol::Sctp) => (10, 2),
            Self::EtherSaddr
            | Self::EtherType
            | Self::DaddrOctet
            | Self::ArpForm
            | Self::ArpEtherSaddr
            | Self::ArpSaddr
            | Self::Icmpv6Type
            | Self::NeighbourTarget => return None,
        })
    }
}
