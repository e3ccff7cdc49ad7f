//! What rules load and what sets are keyed by, in nft's words: `meta priority & 0xffffc000`, `ip saddr`.

use std::ops::{BitAnd, BitOr};

use tollgate_model::name::{IpFamily, Protocol};

use super::attribute::Bytes;
use super::expression::{Expression, Found, Register};
use super::set::{DataType, Userdata};

/// Something that a rule can load, and what a listing calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    source: Source,
    bits: Option<Bits>,
    is_big_endian: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Meta(Meta),
    Field(Field),
    Ct(Ct),
    AddressType,
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
pub(crate) enum Meta {
    /// The word that the queueing discipline classifies by.
    Priority,
    /// The mark.
    Mark,
    /// The name of the interface it came in by.
    Iifname,
    /// The protocol above IP.
    L4proto,
}

/// A field of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// `ip saddr` or `ip6 saddr`.
    Saddr(IpFamily),
    /// `ip daddr` or `ip6 daddr`.
    Daddr(IpFamily),
    /// `th dport`: of whatever protocol.
    AnyDport,
    /// `tcp dport` and the like.
    Dport(Protocol),
}

/// What connection tracking knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ct {
    /// `ct state`.
    State,
    /// `ct status`.
    Status,
}

/// Bits of `ct state` and `ct status` (`linux/netfilter/nf_conntrack_common.h`).
pub(crate) const CT_STATE_INVALID: u32 = 1;
pub(crate) const CT_STATUS_DNAT: u32 = 1 << 5;
/// `RTN_LOCAL`: the type of the node's own addresses.
pub(crate) const ADDRESS_LOCAL: u32 = 2;

/// `NFTA_FIB_F_SADDR` and `NFT_FIB_RESULT_ADDRTYPE`.
const FIB_SADDR: u32 = 1;
const FIB_ADDRESS_TYPE: u32 = 3;

/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
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
pub(crate) fn random(modulus: u32) -> Term {
    Source::Random(modulus).into()
}

/// `fib saddr type`.
pub(crate) fn source_address_type() -> Term {
    Source::AddressType.into()
}

/// A value as it is.
pub(crate) fn value(value: impl Into<Bytes>) -> Term {
    Source::Value(value.into()).into()
}

/// `key map @name`.
pub(crate) fn map(key: impl Into<Vec<Term>>, name: &str) -> Term {
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
    pub(crate) fn big_endian(self) -> Self {
        Self { is_big_endian: true, ..self }
    }

    /// How many registers of 32 bits it takes.
    pub(crate) fn words(&self) -> usize {
        self.length().div_ceil(4)
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> usize {
        match &self.source {
            Source::Meta(Meta::L4proto) => 1,
            Source::Meta(Meta::Iifname) => 16,
            Source::Meta(Meta::Priority | Meta::Mark)
            | Source::Ct(_)
            | Source::AddressType
            | Source::Random(_)
            | Source::Map(..) => 4,
            Source::Field(field) => usize::try_from(field.place().2).unwrap_or(usize::MAX),
            Source::Value(value) => value.len(),
        }
    }

    /// The expressions that load it.
    pub(crate) fn load(&self, to: Register, expressions: &mut Vec<Expression>) {
        let loaded = match &self.source {
            Source::Meta(meta) => Expression::Meta { key: meta.key(), to },
            Source::Field(field) => {
                let (base, offset, length) = field.place();
                Expression::Payload { base, offset, length, to }
            }
            Source::Ct(ct) => Expression::Ct { key: ct.key(), to },
            Source::AddressType => Expression::Fib { flags: FIB_SADDR, result: FIB_ADDRESS_TYPE, to },
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
    pub(crate) fn data_type(&self) -> DataType {
        match &self.source {
            Source::Meta(Meta::Priority) => DataType::Classid,
            Source::Meta(Meta::Mark) => DataType::Mark,
            Source::Meta(Meta::Iifname) => DataType::Ifname,
            Source::Meta(Meta::L4proto) => DataType::InetProto,
            Source::Field(Field::Saddr(family) | Field::Daddr(family)) => DataType::address(*family),
            Source::Field(Field::AnyDport | Field::Dport(_)) => DataType::InetService,
            Source::Ct(_) | Source::AddressType | Source::Random(_) | Source::Value(_) | Source::Map(..) => {
                DataType::Integer
            }
        }
    }

    /// What `typeof` says of it: the number of nft's kind of expression, and what that kind adds.
    pub(crate) fn write_typeof(&self, userdata: &mut Userdata) {
        const PAYLOAD: u32 = 7;
        const META: u32 = 9;
        const NUMGEN: u32 = 23;
        match &self.source {
            Source::Meta(meta) => userdata.expression(META, |it| it.put_u32(0, meta.key())),
            Source::Field(field) => userdata.expression(PAYLOAD, |it| {
                let (header, template) = field.template();
                it.put_u32(0, header);
                it.put_u32(1, template);
            }),
            Source::Random(modulus) => userdata.expression(NUMGEN, |it| {
                it.put_u32(0, 1);
                it.put_u32(1, *modulus);
                it.put_u32(2, 0);
            }),
            Source::Ct(_) | Source::AddressType | Source::Value(_) | Source::Map(..) => {}
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
    pub(crate) fn key(self) -> u32 {
        match self {
            Self::Priority => 2,
            Self::Mark => 3,
            Self::Iifname => 6,
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
        }
    }

    /// nft's numbers of the header and of the field in it, as seen in its `--debug=mnl`.
    fn template(self) -> (u32, u32) {
        match self {
            Self::Saddr(IpFamily::V4) => (12, 11),
            Self::Daddr(IpFamily::V4) => (12, 12),
            Self::Saddr(IpFamily::V6) => (13, 8),
            Self::Daddr(IpFamily::V6) => (13, 9),
            Self::AnyDport => (11, 2),
            Self::Dport(Protocol::Tcp) => (8, 2),
            Self::Dport(Protocol::Udp) => (6, 2),
            Self::Dport(Protocol::Sctp) => (10, 2),
        }
    }
}
