//! What rules are made of: the expressions of nf_tables' virtual machine, as they are sent and as they are dumped.
//!
//! Both directions speak [`Expression`], which leaves out what the kernel fills in by itself, so that a rule read back
//! equals the rule that was written. Numbers: `linux/netfilter/nf_tables.h`.

use crate::attribute::{Bytes, Writer, attributes, read_text, read_u32, read_u64};

/// A register, by the number of its first 32 bits: 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u32);

/// One step of a rule.
#[expect(missing_docs, reason = "each variant says what its fields are")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads something about the packet.
    Meta { key: u32, to: Register },
    /// Sets something about the packet.
    SetMeta { key: u32, from: Register },
    /// Loads bytes of a header.
    Payload { base: u32, offset: u32, length: u32, to: Register },
    /// Loads something about the connection.
    Ct { key: u32, to: Register },
    /// Asks the routing tables.
    Fib { flags: u32, result: u32, to: Register },
    /// Draws a random number below `modulus`.
    Random { modulus: u32, to: Register },
    /// `to = from & mask ^ xor`.
    Bitwise { from: Register, to: Register, mask: Bytes, xor: Bytes },
    /// Turns a 32-bit number from the machine's into network byte order.
    HostToNetwork { from: Register, to: Register },
    /// Goes on only if the register compares so.
    Compare { register: Register, operator: u32, value: Bytes },
    /// Looks a key up, and goes on only if that succeeds.
    Lookup { set: Box<str>, key: Register, found: Found },
    /// Loads a value.
    Immediate { to: Register, value: Bytes },
    /// Ends the rule.
    Verdict(Verdict),
    /// Adds to a set or deletes from it.
    Dynset { set: Box<str>, operation: u32, key: Register, data: Option<Register>, milliseconds: u64 },
    /// Translates the destination.
    Dnat { family: u32, address: Register, port: Option<Register>, flags: u32 },
    /// Translates the source to the address of the interface that the packet leaves by.
    Masquerade { flags: u32 },
    /// Answers that there is nobody.
    Reject { kind: u32, code: u8 },
    /// Counts; how far is not part of it.
    Counter,
    /// Something that no rule of ours has.
    Foreign { name: Box<str>, attributes: Box<[u8]> },
}

/// What a lookup does with what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A set: nothing.
    Present,
    /// A set: the lookup is to fail.
    Absent,
    /// A map: goes into a register.
    Data(Register),
    /// A map of verdicts: is followed.
    Verdict,
}

/// Where a packet goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hook takes it.
    Accept,
    /// Nowhere.
    Drop,
    /// In another chain, and then here again.
    Jump(Box<str>),
    /// In another chain.
    Goto(Box<str>),
    /// In the chain that jumped here.
    Return,
    /// Some other code.
    Other(i32),
}

/// `NFT_CMP_EQ`.
pub const EQUAL: u32 = 0;
/// `NFT_CMP_NEQ`.
pub const UNEQUAL: u32 = 1;
/// `NFT_DYNSET_OP_UPDATE`.
pub const UPDATE: u32 = 1;
/// `NFT_DYNSET_OP_DELETE`.
pub const DELETE: u32 = 2;
/// `NFT_REJECT_ICMP_UNREACH`.
pub const ICMP_UNREACHABLE: u32 = 0;
/// `NFT_REJECT_TCP_RST`.
pub const TCP_RESET: u32 = 1;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;

const NFT_LOOKUP_F_INV: u32 = 1;
const NFT_NG_RANDOM: u32 = 1;
const NFT_BYTEORDER_HTON: u32 = 1;
const NFT_NAT_DNAT: u32 = 1;
/// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED`: the kernel adds them by itself.
const IMPLIED_BY_REGISTERS: u32 = 0b11;

impl Register {
    /// The register of the first 32 bits after `words` of them.
    pub fn after(words: usize) -> Self {
        Self(u32::try_from(words).unwrap_or(u32::MAX))
    }

    /// As nft and the kernel number them: 1 to 4 where one of the old 128-bit registers begins, and from 8 on the 32-bit
    /// ones.
    fn number(self) -> u32 {
        if self.0.is_multiple_of(4) { 1 + self.0 / 4 } else { 8 + self.0 }
    }

    fn numbered(number: u32) -> Option<Self> {
        match number {
            1..=4 => Some(Self((number - 1) * 4)),
            8..=23 => Some(Self(number - 8)),
            _ => None,
        }
    }
}

// === writing ===

/// A list of expressions.
pub(crate) fn write_list(writer: &mut Writer, kind: u16, expressions: &[Expression]) {
    writer.nest(kind, |list| {
        for expression in expressions {
            list.nest(NFTA_LIST_ELEM, |element| expression.write(element));
        }
    });
}

/// A value, as element keys and data are.
pub(crate) fn write_value(writer: &mut Writer, kind: u16, value: &[u8]) {
    writer.nest(kind, |data| data.put(NFTA_DATA_VALUE, value));
}

impl Verdict {
    /// As an element's data or an immediate's.
    pub fn write(&self, writer: &mut Writer, kind: u16) {
        let (code, chain) = match self {
            Self::Accept => (NF_ACCEPT, None),
            Self::Drop => (NF_DROP, None),
            Self::Jump(chain) => (NFT_JUMP, Some(chain)),
            Self::Goto(chain) => (NFT_GOTO, Some(chain)),
            Self::Return => (NFT_RETURN, None),
            Self::Other(code) => (*code, None),
        };
        writer.nest(kind, |data| {
            data.nest(NFTA_DATA_VERDICT, |verdict| {
                verdict.put(NFTA_VERDICT_CODE, &code.to_be_bytes());
                if let Some(chain) = chain {
                    verdict.put_text(NFTA_VERDICT_CHAIN, chain);
                }
            });
        });
    }
}

impl Expression {
    /// The kernel's name for its kind.
    fn name(&self) -> &str {
        match self {
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::Ct { .. } => "ct",
            Self::Fib { .. } => "fib",
            Self::Random { .. } => "numgen",
            Self::Bitwise { .. } => "bitwise",
            Self::HostToNetwork { .. } => "byteorder",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Dynset { .. } => "dynset",
            Self::Dnat { .. } => "nat",
            Self::Masquerade { .. } => "masq",
            Self::Reject { .. } => "reject",
            Self::Counter => "counter",
            Self::Foreign { name, .. } => name,
        }
    }

    /// Its name and what it says.
    pub fn write(&self, writer: &mut Writer) {
        writer.put_text(NFTA_EXPR_NAME, self.name());
        writer.nest(NFTA_EXPR_DATA, |data| self.write_data(data));
    }

    fn write_data(&self, data: &mut Writer) {
        match self {
            Self::Meta { key, to } => numbers(data, &[(1, to.number()), (2, *key)]),
            Self::SetMeta { key, from } => numbers(data, &[(3, from.number()), (2, *key)]),
            Self::Payload { base, offset, length, to } => {
                numbers(data, &[(1, to.number()), (2, *base), (3, *offset), (4, *length)]);
            }
            Self::Ct { key, to } => numbers(data, &[(1, to.number()), (2, *key)]),
            Self::Fib { flags, result, to } => numbers(data, &[(1, to.number()), (2, *result), (3, *flags)]),
            Self::Random { modulus, to } => {
                numbers(data, &[(1, to.number()), (2, *modulus), (3, NFT_NG_RANDOM), (4, 0)]);
            }
            Self::Bitwise { from, to, mask, xor } => {
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                numbers(data, &[(1, from.number()), (2, to.number()), (3, length)]);
                write_value(data, 4, mask);
                write_value(data, 5, xor);
            }
            Self::HostToNetwork { from, to } => {
                numbers(data, &[(1, from.number()), (2, to.number()), (3, NFT_BYTEORDER_HTON), (4, 4), (5, 4)]);
            }
            Self::Compare { register, operator, value } => {
                numbers(data, &[(1, register.number()), (2, *operator)]);
                write_value(data, 3, value);
            }
            Self::Lookup { set, key, found } => write_lookup(data, set, *key, *found),
            Self::Immediate { to, value } => {
                numbers(data, &[(1, to.number())]);
                write_value(data, 2, value);
            }
            Self::Verdict(verdict) => {
                numbers(data, &[(1, 0)]);
                verdict.write(data, 2);
            }
            Self::Dynset { set, operation, key, data: value, milliseconds } => {
                data.put_text(1, set);
                numbers(data, &[(3, *operation), (4, key.number())]);
                value.iter().for_each(|value| data.put_u32(5, value.number()));
                if *milliseconds > 0 {
                    data.put_u64(6, *milliseconds);
                }
            }
            Self::Dnat { family, address, port, flags } => {
                numbers(data, &[(1, NFT_NAT_DNAT), (2, *family), (3, address.number())]);
                port.iter().for_each(|port| data.put_u32(5, port.number()));
                some_flags(data, 7, *flags);
            }
            Self::Masquerade { flags } => some_flags(data, 1, *flags),
            Self::Reject { kind, code } => {
                numbers(data, &[(1, *kind)]);
                data.put(2, &[*code]);
            }
            Self::Counter => {}
            Self::Foreign { attributes, .. } => data.put_raw(attributes),
        }
    }
}

fn numbers(data: &mut Writer, attributes: &[(u16, u32)]) {
    for (kind, value) in attributes {
        data.put_u32(*kind, *value);
    }
}

fn some_flags(data: &mut Writer, kind: u16, flags: u32) {
    if flags > 0 {
        data.put_u32(kind, flags);
    }
}

fn write_lookup(data: &mut Writer, set: &str, key: Register, found: Found) {
    data.put_text(1, set);
    data.put_u32(2, key.number());
    match found {
        Found::Present => {}
        Found::Absent => data.put_u32(5, NFT_LOOKUP_F_INV),
        Found::Data(to) => data.put_u32(3, to.number()),
        Found::Verdict => data.put_u32(3, 0),
    }
}

// === reading ===

/// The expressions of a list.
pub(crate) fn read_list(value: &[u8]) -> Vec<Expression> {
    attributes(value)
        .filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
        .map(|(_, element)| Expression::read(element))
        .collect()
}

/// What an element's key or data, or an immediate, says.
pub(crate) enum Read<'a> {
    Value(&'a [u8]),
    Verdict(Verdict),
}

/// Reads a value or a verdict.
pub(crate) fn read_data(value: &[u8]) -> Option<Read<'_>> {
    attributes(value).find_map(|(kind, value)| match kind {
        NFTA_DATA_VALUE => Some(Read::Value(value)),
        NFTA_DATA_VERDICT => Some(Read::Verdict(Verdict::read(value)?)),
        _ => None,
    })
}

/// Reads a value.
pub(crate) fn read_value(value: &[u8]) -> Option<&[u8]> {
    match read_data(value)? {
        Read::Value(value) => Some(value),
        Read::Verdict(_) => None,
    }
}

impl Verdict {
    fn read(value: &[u8]) -> Option<Self> {
        let fields = Fields::of(value);
        let code = i32::from_be_bytes(fields.get(NFTA_VERDICT_CODE)?.try_into().ok()?);
        let chain = || fields.text(NFTA_VERDICT_CHAIN);
        Some(match code {
            NF_ACCEPT => Self::Accept,
            NF_DROP => Self::Drop,
            NFT_JUMP => Self::Jump(chain()?),
            NFT_GOTO => Self::Goto(chain()?),
            NFT_RETURN => Self::Return,
            code => Self::Other(code),
        })
    }
}

/// The attributes of one expression, by kind.
struct Fields<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self(attributes(bytes).collect())
    }

    fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
    }

    fn number(&self, kind: u16) -> Option<u32> {
        read_u32(self.get(kind)?)
    }

    /// A number that may be missing.
    fn number_or_zero(&self, kind: u16) -> Option<u32> {
        self.get(kind).map_or(Some(0), read_u32)
    }

    fn register(&self, kind: u16) -> Option<Register> {
        Register::numbered(self.number(kind)?)
    }

    fn value(&self, kind: u16) -> Option<Bytes> {
        read_value(self.get(kind)?).map(Bytes::new)
    }

    fn text(&self, kind: u16) -> Option<Box<str>> {
        read_text(self.get(kind)?).map(Box::from)
    }

    /// Whether there is nothing but these kinds.
    fn are_among(&self, kinds: &[u16]) -> bool {
        self.0.iter().all(|(kind, _)| kinds.contains(kind))
    }
}

impl Expression {
    /// Reads one; what is not exactly what we could have written is [`Foreign`](Self::Foreign).
    pub fn read(bytes: &[u8]) -> Self {
        let (mut name, mut data) = ("", &[][..]);
        for (kind, value) in attributes(bytes) {
            match kind {
                NFTA_EXPR_NAME => name = read_text(value).unwrap_or_default(),
                NFTA_EXPR_DATA => data = value,
                _ => {}
            }
        }
        let foreign = || Self::Foreign { name: name.into(), attributes: data.into() };
        Self::read_data(name, &Fields::of(data)).unwrap_or_else(foreign)
    }

    fn read_data(name: &str, fields: &Fields<'_>) -> Option<Self> {
        match name {
            "meta" if fields.get(3).is_some() => {
                Some(Self::SetMeta { key: fields.number(2)?, from: fields.register(3)? })
            }
            "meta" => Some(Self::Meta { key: fields.number(2)?, to: fields.register(1)? }),
            "payload" if fields.are_among(&[1, 2, 3, 4]) => Some(Self::Payload {
                base: fields.number(2)?,
                offset: fields.number(3)?,
                length: fields.number(4)?,
                to: fields.register(1)?,
            }),
            "ct" if fields.are_among(&[1, 2]) => Some(Self::Ct { key: fields.number(2)?, to: fields.register(1)? }),
            "fib" => Some(Self::Fib { flags: fields.number(3)?, result: fields.number(2)?, to: fields.register(1)? }),
            "numgen" if fields.number(3) == Some(NFT_NG_RANDOM) && fields.number_or_zero(4) == Some(0) => {
                Some(Self::Random { modulus: fields.number(2)?, to: fields.register(1)? })
            }
            // Operation 0: mask and xor.
            "bitwise" if fields.are_among(&[1, 2, 3, 4, 5, 6]) && fields.number_or_zero(6) == Some(0) => {
                Some(Self::Bitwise {
                    from: fields.register(1)?,
                    to: fields.register(2)?,
                    mask: fields.value(4)?,
                    xor: fields.value(5)?,
                })
            }
            "byteorder"
                if [3, 4, 5].map(|kind| fields.number(kind)) == [Some(NFT_BYTEORDER_HTON), Some(4), Some(4)] =>
            {
                Some(Self::HostToNetwork { from: fields.register(1)?, to: fields.register(2)? })
            }
            "cmp" => Some(Self::Compare {
                register: fields.register(1)?,
                operator: fields.number(2)?,
                value: fields.value(3)?,
            }),
            "lookup" => read_lookup(fields),
            "immediate" => match read_data(fields.get(2)?)? {
                Read::Verdict(verdict) => Some(Self::Verdict(verdict)),
                Read::Value(value) => Some(Self::Immediate { to: fields.register(1)?, value: Bytes::new(value) }),
            },
            // No expression of its own in each element, and no flags.
            "dynset" if fields.are_among(&[1, 2, 3, 4, 5, 6, 8, 9]) && fields.number_or_zero(9) == Some(0) => {
                Some(Self::Dynset {
                    set: fields.text(1)?,
                    operation: fields.number(3)?,
                    key: fields.register(4)?,
                    data: match fields.get(5) {
                        Some(_) => Some(fields.register(5)?),
                        None => None,
                    },
                    milliseconds: fields.get(6).map_or(Some(0), read_u64)?,
                })
            }
            "nat" => read_dnat(fields),
            "masq" if fields.are_among(&[1]) => Some(Self::Masquerade { flags: fields.number_or_zero(1)? }),
            "reject" => Some(Self::Reject {
                kind: fields.number(1)?,
                // Resets have none, and the kernel need not dump it.
                code: fields.get(2).and_then(|code| code.first().copied()).unwrap_or_default(),
            }),
            "counter" => Some(Self::Counter),
            _ => None,
        }
    }
}

fn read_lookup(fields: &Fields<'_>) -> Option<Expression> {
    let found = match (fields.number(3), fields.number_or_zero(5)?) {
        (None, 0) => Found::Present,
        (None, NFT_LOOKUP_F_INV) => Found::Absent,
        (Some(0), 0) => Found::Verdict,
        (Some(_), 0) => Found::Data(fields.register(3)?),
        _ => return None,
    };
    Some(Expression::Lookup { set: fields.text(1)?, key: fields.register(2)?, found })
}

fn read_dnat(fields: &Fields<'_>) -> Option<Expression> {
    // No ranges: the kernel dumps their ends also where they are the same.
    let is_single = |from, to| fields.get(to).is_none() || fields.get(to) == fields.get(from);
    (fields.number(1)? == NFT_NAT_DNAT && is_single(3, 4) && is_single(5, 6)).then_some(())?;
    Some(Expression::Dnat {
        family: fields.number(2)?,
        address: fields.register(3)?,
        port: match fields.get(5) {
            Some(_) => Some(fields.register(5)?),
            None => None,
        },
        flags: fields.number_or_zero(7)? & !IMPLIED_BY_REGISTERS,
    })
}

/// How many packets a counter has seen, of an expression as it is dumped.
pub(crate) fn packets(bytes: &[u8]) -> Option<u64> {
    let fields = Fields::of(bytes);
    (read_text(fields.get(NFTA_EXPR_NAME)?)? == "counter").then_some(())?;
    const NFTA_COUNTER_PACKETS: u16 = 2;
    read_u64(Fields::of(fields.get(NFTA_EXPR_DATA)?).get(NFTA_COUNTER_PACKETS)?)
}
