//! Elements of sets and maps.

use crate::attribute::{Bytes, Writer, attributes, read_u32};
use crate::expression::{Read, Verdict, packets, read_data, read_value, write_value};
use crate::rule::{read_comment, write_comment};

/// An element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The key, or where a range begins or is over.
    pub key: Bytes,
    /// The last key of a range of a concatenation.
    pub last: Option<Bytes>,
    /// Whether the range that began before this key is over at it.
    pub is_end: bool,
    /// What a map leads to.
    pub data: Option<Data>,
    /// How many packets met it, where that is counted.
    pub packets: Option<u64>,
    /// For readers.
    pub comment: Box<str>,
}

/// What a map leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// A value.
    Value(Bytes),
    /// A verdict.
    Verdict(Verdict),
}

const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_SET_ELEM_EXPR: u16 = 7;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_SET_ELEM_EXPRESSIONS: u16 = 11;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
/// Parts of an element's user data.
const COMMENT: u8 = 0;

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
/// The attribute of a message that lists elements.
pub(crate) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(crate) const NFTA_LIST_ELEM: u16 = 1;

impl Element {
    /// An element of a set.
    pub fn new(key: Bytes) -> Self {
        Self { key, last: None, is_end: false, data: None, packets: None, comment: Box::default() }
    }

    /// As one that leads to a value.
    pub fn value(self, value: Bytes) -> Self {
        Self { data: Some(Data::Value(value)), ..self }
    }

    /// As one that leads to a verdict.
    pub fn verdict(self, verdict: Verdict) -> Self {
        Self { data: Some(Data::Verdict(verdict)), ..self }
    }

    /// With a comment.
    pub fn comment(self, comment: &str) -> Self {
        Self { comment: comment.into(), ..self }
    }

    /// Up to and with that key, in a concatenation.
    pub fn up_to(self, last: Bytes) -> Self {
        Self { last: Some(last), ..self }
    }

    /// As the key at which the range before it is over.
    pub fn end(self) -> Self {
        Self { is_end: true, ..self }
    }

    /// As one of a list of elements.
    pub fn write(&self, list: &mut Writer) {
        list.nest(NFTA_LIST_ELEM, |element| {
            if self.is_end {
                element.put_u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            }
            write_value(element, NFTA_SET_ELEM_KEY, &self.key);
            if let Some(last) = &self.last {
                write_value(element, NFTA_SET_ELEM_KEY_END, last);
            }
            match &self.data {
                None => {}
                Some(Data::Value(value)) => write_value(element, NFTA_SET_ELEM_DATA, value),
                Some(Data::Verdict(verdict)) => verdict.write(element, NFTA_SET_ELEM_DATA),
            }
            if !self.comment.is_empty() {
                write_comment(element, NFTA_SET_ELEM_USERDATA, COMMENT, &self.comment);
            }
        });
    }

    /// Reads one of a list.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut element = Self::new(Bytes::EMPTY);
        for (kind, value) in attributes(bytes) {
            match kind {
                NFTA_SET_ELEM_KEY => element.key = Bytes::new(read_value(value)?),
                NFTA_SET_ELEM_KEY_END => element.last = Some(Bytes::new(read_value(value)?)),
                NFTA_SET_ELEM_FLAGS => element.is_end = read_u32(value)? & NFT_SET_ELEM_INTERVAL_END > 0,
                NFTA_SET_ELEM_DATA => {
                    element.data = Some(match read_data(value)? {
                        Read::Value(value) => Data::Value(Bytes::new(value)),
                        Read::Verdict(verdict) => Data::Verdict(verdict),
                    });
                }
                NFTA_SET_ELEM_USERDATA => {
                    element.comment = read_comment(value, COMMENT).unwrap_or_default().into();
                }
                NFTA_SET_ELEM_EXPR => element.packets = packets(value),
                NFTA_SET_ELEM_EXPRESSIONS => {
                    element.packets = attributes(value).find_map(|(_, expression)| packets(expression));
                }
                _ => {}
            }
        }
        (!element.key.is_empty()).then_some(element)
    }
}

/// Which table and set a message's elements are of.
pub(crate) fn write_set(writer: &mut Writer, table: &str, set: &str) {
    writer.put_text(NFTA_SET_ELEM_LIST_TABLE, table);
    writer.put_text(NFTA_SET_ELEM_LIST_SET, set);
}

/// The elements in a message.
pub(crate) fn read_elements(bytes: &[u8]) -> impl Iterator<Item = Option<Element>> {
    let lists = attributes(bytes).filter(|(kind, _)| *kind == NFTA_SET_ELEM_LIST_ELEMENTS);
    lists.flat_map(|(_, list)| attributes(list)).map(|(_, element)| Element::read(element))
}
