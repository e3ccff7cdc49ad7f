//! Sets and maps: how they are declared, and the user data by which nft prints their keys and values.

use std::fmt;

use crate::IpFamily;
use crate::attribute::{Writer, attributes, read_text, read_u32, read_u64};
use crate::expression::{Expression, write_list};
use crate::term::Term;

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: Box<str>,
    /// What the kernel makes of it.
    pub shape: Shape,
    /// What nft prints of it, as nft writes it.
    pub userdata: Vec<u8>,
}

/// What tells one set from another in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    flags: u32,
    key_type: u32,
    key_length: u32,
    data_type: u32,
    data_length: u32,
    /// The lengths of a concatenation's parts, where ranges are to be looked up in it.
    parts: Vec<u32>,
    size: u32,
    milliseconds: u64,
    /// What each element does when it is met.
    expressions: Vec<Expression>,
}

/// A declaration.
#[derive(Debug)]
pub struct Declaration {
    key: Fields,
    data: Option<Data>,
    flags: u32,
    size: u32,
    is_counted: bool,
    comment: String,
}

/// The parts of a key or of a value.
#[derive(Clone, Debug)]
pub enum Fields {
    /// `type`: by the names of types.
    Type(Vec<DataType>),
    /// `typeof`: by what is looked up.
    Typeof(Vec<Term>),
}

/// What a map leads to.
#[derive(Clone, Debug)]
enum Data {
    Fields(Fields),
    Verdict,
}

/// nft's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they have nft's names")]
pub enum DataType {
    Integer,
    Ipv4Addr,
    Ipv6Addr,
    EtherAddr,
    InetProto,
    InetService,
    Mark,
    Classid,
    Ifname,
}

/// User data of sets: kinds, lengths and values, one within the other.
#[derive(Debug, Default)]
pub struct Userdata(Vec<u8>);

/// `enum nft_set_flags`.
const ANONYMOUS: u32 = 0x1;
const INTERVAL: u32 = 0x4;
const MAP: u32 = 0x8;
const TIMEOUT: u32 = 0x10;
const DYNAMIC: u32 = 0x20;
const CONCAT: u32 = 0x80;
/// `NFT_DATA_VERDICT`.
const VERDICT: u32 = 0xffff_ff00;

const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_TIMEOUT: u16 = 11;
const NFTA_SET_USERDATA: u16 = 13;
const NFTA_SET_EXPR: u16 = 17;
const NFTA_SET_EXPRESSIONS: u16 = 18;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFTA_SET_DESC_CONCAT: u16 = 2;
const NFTA_SET_FIELD_LEN: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;

/// Parts of a set's user data.
const KEY_BYTE_ORDER: u8 = 0;
const DATA_BYTE_ORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
const DATA_INTERVAL: u8 = 6;
const COMMENT: u8 = 7;
/// Parts of what `typeof` says.
const TYPEOF_EXPRESSION: u8 = 0;
const TYPEOF_DATA: u8 = 1;
/// nft's number of a concatenation, and of a verdict.
const CONCATENATION: u32 = 13;
const VERDICT_EXPRESSION: u32 = 1;
/// How many bits a type has in the number of a concatenation's type.
const TYPE_BITS: u32 = 6;

impl Declaration {
    /// A set.
    pub fn set(key: Fields) -> Self {
        Self { key, data: None, flags: 0, size: 0, is_counted: false, comment: String::new() }
    }

    /// A map.
    pub fn map(key: Fields, data: Fields) -> Self {
        Self { data: Some(Data::Fields(data)), flags: MAP, ..Self::set(key) }
    }

    /// A map to verdicts.
    pub fn vmap(key: Fields) -> Self {
        Self { data: Some(Data::Verdict), flags: MAP, ..Self::set(key) }
    }

    /// `flags interval`: elements may be ranges.
    pub fn interval(mut self) -> Self {
        self.flags |= INTERVAL;
        // Ranges in a concatenation are another sort of set.
        if self.key.count() > 1 {
            self.flags |= CONCAT;
        }
        self
    }

    /// `flags dynamic,timeout; size N`: packets write it.
    pub fn dynamic(mut self, size: u32) -> Self {
        self.flags |= DYNAMIC | TIMEOUT;
        self.size = size;
        self
    }

    /// `counter`: each element counts the packets that meet it.
    pub fn counter(mut self) -> Self {
        self.is_counted = true;
        self
    }

    /// With a comment.
    pub fn comment(mut self, comment: &str) -> Self {
        comment.clone_into(&mut self.comment);
        self
    }

    /// By a name.
    pub fn named(&self, name: &str) -> Set {
        let (data_type, data_length) = match &self.data {
            None => (0, 0),
            Some(Data::Verdict) => (VERDICT, 0),
            Some(Data::Fields(fields)) => (fields.type_number(), fields.length()),
        };
        let shape = Shape {
            flags: self.flags,
            key_type: self.key.type_number(),
            key_length: self.key.length(),
            data_type,
            data_length,
            parts: if self.flags & CONCAT > 0 { self.key.lengths() } else { Vec::new() },
            size: self.size,
            milliseconds: 0,
            expressions: if self.is_counted { vec![Expression::Counter] } else { Vec::new() },
        };
        Set { name: name.into(), shape, userdata: self.userdata() }
    }

    fn userdata(&self) -> Vec<u8> {
        let mut userdata = Userdata::default();
        userdata.put_u32(KEY_BYTE_ORDER, self.key.byte_order());
        if let Some(data) = &self.data {
            userdata.put_u32(DATA_BYTE_ORDER, data.byte_order());
        }
        self.key.write_typeof(&mut userdata, KEY_TYPEOF);
        match &self.data {
            None => {}
            Some(data) => {
                match data {
                    Data::Fields(fields) => fields.write_typeof(&mut userdata, DATA_TYPEOF),
                    Data::Verdict => userdata.nest(DATA_TYPEOF, |it| it.expression(VERDICT_EXPRESSION, |_| {})),
                }
                userdata.put_u32(DATA_INTERVAL, 0);
            }
        }
        if !self.comment.is_empty() {
            userdata.put_text(COMMENT, &self.comment);
        }
        userdata.0
    }
}

impl Fields {
    fn types(&self) -> Vec<DataType> {
        match self {
            Self::Type(types) => types.clone(),
            Self::Typeof(terms) => terms.iter().map(Term::data_type).collect(),
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Type(types) => types.len(),
            Self::Typeof(terms) => terms.len(),
        }
    }

    fn type_number(&self) -> u32 {
        self.types().into_iter().fold(0, |number, part| number << TYPE_BITS | part.number())
    }

    fn lengths(&self) -> Vec<u32> {
        match self {
            Self::Type(types) => types.iter().map(|it| it.length()).collect(),
            Self::Typeof(terms) => terms.iter().map(|it| u32::try_from(it.length()).unwrap_or(u32::MAX)).collect(),
        }
    }

    /// The length of all parts, each of which fills whole 32-bit registers if there are several.
    fn length(&self) -> u32 {
        match self.lengths()[..] {
            [length] => length,
            ref lengths => lengths.iter().map(|length| length.next_multiple_of(4)).sum(),
        }
    }

    /// 1 for the machine's, 2 for the network's, 0 for none in particular.
    fn byte_order(&self) -> u32 {
        match self.types()[..] {
            [DataType::Mark | DataType::Classid | DataType::Integer | DataType::Ifname] => 1,
            [
                DataType::Ipv4Addr
                | DataType::Ipv6Addr
                | DataType::EtherAddr
                | DataType::InetProto
                | DataType::InetService,
            ] => 2,
            _ => 0,
        }
    }

    fn write_typeof(&self, userdata: &mut Userdata, kind: u8) {
        match self {
            Self::Type(types) if types.len() == 1 => {}
            // nft says that much of any concatenation.
            Self::Type(_) => userdata.nest(kind, |it| it.expression(CONCATENATION, |_| {})),
            Self::Typeof(terms) => userdata.nest(kind, |it| match &terms[..] {
                [term] => term.write_typeof(it),
                terms => it.expression(CONCATENATION, |it| {
                    for (index, term) in (0..).zip(terms) {
                        it.nest(index, |it| term.write_typeof(it));
                    }
                }),
            }),
        }
    }
}

impl Data {
    fn byte_order(&self) -> u32 {
        match self {
            Self::Fields(fields) => fields.byte_order(),
            Self::Verdict => 0,
        }
    }
}

impl DataType {
    /// The type of a family's addresses.
    pub fn address(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self::Ipv4Addr,
            IpFamily::V6 => Self::Ipv6Addr,
        }
    }

    /// nft's number of it.
    fn number(self) -> u32 {
        match self {
            Self::Integer => 4,
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::EtherAddr => 9,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::Classid => 23,
            Self::Ifname => 41,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Integer | Self::Ipv4Addr | Self::Mark | Self::Classid => 4,
            Self::EtherAddr => 6,
            Self::Ipv6Addr | Self::Ifname => 16,
        }
    }
}

impl Userdata {
    fn put(&mut self, kind: u8, value: &[u8]) {
        self.0.push(kind);
        self.0.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(value);
    }

    /// A number, in the machine's byte order.
    pub fn put_u32(&mut self, kind: u8, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    fn put_text(&mut self, kind: u8, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    fn nest(&mut self, kind: u8, parts: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        parts(&mut inner);
        self.put(kind, &inner.0);
    }

    /// What stands for one of nft's expressions.
    pub fn expression(&mut self, number: u32, parts: impl FnOnce(&mut Self)) {
        self.put_u32(TYPEOF_EXPRESSION, number);
        self.nest(TYPEOF_DATA, parts);
    }
}

// === on the wire ===

impl Shape {
    /// Whether elements may be ranges, each of which is two elements: where it begins and where it is over.
    pub fn has_ends(&self) -> bool {
        self.flags & (INTERVAL | CONCAT) == INTERVAL
    }

    /// Whether packets write its elements.
    pub fn is_dynamic(&self) -> bool {
        self.flags & DYNAMIC > 0
    }

    /// Whether it is a part of a rule, and comes and goes with it.
    pub fn is_anonymous(&self) -> bool {
        self.flags & ANONYMOUS > 0
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of keys of {} bytes", self.key_length)?;
        match (self.flags & MAP > 0, self.data_type) {
            (false, _) => Ok(()),
            (true, VERDICT) => f.write_str(" to verdicts"),
            (true, _) => write!(f, " to values of {} bytes", self.data_length),
        }
    }
}

impl Set {
    /// The attributes of a message that adds it; `id` is another for each set in a transaction.
    pub fn write(&self, writer: &mut Writer, table: &str, id: u32) {
        let shape = &self.shape;
        writer.put_text(NFTA_SET_TABLE, table);
        writer.put_text(NFTA_SET_NAME, &self.name);
        writer.put_u32(NFTA_SET_FLAGS, shape.flags);
        writer.put_u32(NFTA_SET_KEY_TYPE, shape.key_type);
        writer.put_u32(NFTA_SET_KEY_LEN, shape.key_length);
        if shape.flags & MAP > 0 {
            writer.put_u32(NFTA_SET_DATA_TYPE, shape.data_type);
            writer.put_u32(NFTA_SET_DATA_LEN, shape.data_length);
        }
        writer.put_u32(NFTA_SET_ID, id);
        if shape.size > 0 || !shape.parts.is_empty() {
            writer.nest(NFTA_SET_DESC, |description| shape.write_description(description));
        }
        if shape.milliseconds > 0 {
            writer.put_u64(NFTA_SET_TIMEOUT, shape.milliseconds);
        }
        writer.put(NFTA_SET_USERDATA, &self.userdata);
        match &shape.expressions[..] {
            [] => {}
            [expression] => writer.nest(NFTA_SET_EXPR, |it| expression.write(it)),
            expressions => write_list(writer, NFTA_SET_EXPRESSIONS, expressions),
        }
    }

    /// Reads one.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (mut name, mut shape, mut userdata) = (None, Shape::default(), Vec::new());
        for (kind, value) in attributes(bytes) {
            match kind {
                NFTA_SET_NAME => name = read_text(value),
                NFTA_SET_FLAGS => shape.flags = read_u32(value)?,
                NFTA_SET_KEY_TYPE => shape.key_type = read_u32(value)?,
                NFTA_SET_KEY_LEN => shape.key_length = read_u32(value)?,
                NFTA_SET_DATA_TYPE => shape.data_type = read_u32(value)?,
                NFTA_SET_DATA_LEN => shape.data_length = read_u32(value)?,
                NFTA_SET_TIMEOUT => shape.milliseconds = read_u64(value)?,
                NFTA_SET_DESC => shape.read_description(value)?,
                NFTA_SET_USERDATA => userdata = value.to_vec(),
                NFTA_SET_EXPR => shape.expressions = vec![Expression::read(value)],
                NFTA_SET_EXPRESSIONS => shape.expressions = crate::expression::read_list(value),
                _ => {}
            }
        }
        if shape.data_type == VERDICT {
            // The size of the kernel's own structure, which nobody asked for.
            shape.data_length = 0;
        }
        Some(Self { name: name?.into(), shape, userdata })
    }
}

impl Shape {
    fn write_description(&self, description: &mut Writer) {
        if self.size > 0 {
            description.put_u32(NFTA_SET_DESC_SIZE, self.size);
        }
        if !self.parts.is_empty() {
            description.nest(NFTA_SET_DESC_CONCAT, |parts| {
                for length in &self.parts {
                    parts.nest(NFTA_LIST_ELEM, |part| part.put_u32(NFTA_SET_FIELD_LEN, *length));
                }
            });
        }
    }

    fn read_description(&mut self, value: &[u8]) -> Option<()> {
        for (kind, value) in attributes(value) {
            match kind {
                NFTA_SET_DESC_SIZE => self.size = read_u32(value)?,
                NFTA_SET_DESC_CONCAT => {
                    let parts = attributes(value).flat_map(|(_, part)| attributes(part));
                    self.parts = parts.filter_map(|(_, length)| read_u32(length)).collect();
                }
                _ => {}
            }
        }
        Some(())
    }
}
