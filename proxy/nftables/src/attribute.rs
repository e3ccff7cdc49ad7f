//! Netlink attributes: written into one growing buffer, and read where they lie.
//!
//! netlink-packet-core's `Nla` wants a value of its own for each attribute, which is an allocation or more for each of a
//! map's hundred thousand elements; what is written here is copied once, into the buffer that goes to the kernel.

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE, NlasIterator};

/// A value as the kernel's registers hold it, at most `NFT_DATA_VALUE_MAXLEN` bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes {
    length: u8,
    bytes: [u8; Bytes::MAX],
}

/// Collects attributes.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Bytes {
    /// The longest value.
    pub const MAX: usize = 64;
    /// No bytes.
    pub const EMPTY: Self = Self { length: 0, bytes: [0; Self::MAX] };

    /// These bytes; what is beyond [`MAX`](Self::MAX) is cut off.
    pub fn new(bytes: &[u8]) -> Self {
        let mut made = Self::EMPTY;
        made.push(bytes);
        made
    }

    /// Appends bytes as they are.
    pub fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.length);
        let room = &mut self.bytes[start..];
        let count = bytes.len().min(room.len());
        debug_assert_eq!(count, bytes.len(), "no value of nftables is longer than {} bytes", Self::MAX);
        room[..count].copy_from_slice(&bytes[..count]);
        self.length += u8::try_from(count).unwrap_or_default();
    }

    /// Appends a part of a concatenation, each of which fills whole 32-bit registers.
    pub fn push_part(&mut self, bytes: &[u8]) {
        self.push(bytes);
        self.push(&[0; 3][..bytes.len().next_multiple_of(4) - bytes.len()]);
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// In the machine's byte order, as marks and priorities are.
impl From<u32> for Bytes {
    fn from(value: u32) -> Self {
        Self::new(&value.to_ne_bytes())
    }
}

impl Writer {
    /// What was collected.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes that is.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets what comes after the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// Bytes that are no attribute.
    pub fn put_raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Overwrites bytes that were collected before.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// An attribute.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value);
        self.end(start);
    }

    /// A number. nf_tables has them all in network byte order.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A longer number.
    pub fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A text, ended by a zero.
    pub fn put_text(&mut self, kind: u16, value: &str) {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.end(start);
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, parts: impl FnOnce(&mut Self)) {
        let start = self.begin(kind | NLA_F_NESTED);
        parts(self);
        self.end(start);
    }

    /// Begins an attribute whose value is written next. Returns where it begins, for [`end`](Self::end).
    pub fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// Ends an attribute.
    pub fn end(&mut self, start: usize) {
        // No caller makes one that is longer: names and comments are short, and lists of elements are cut in time.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.patch(start, &length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes in these bytes: their kinds and values. Stops where they stop making sense; what is missing then is
/// noticed by whoever needs it.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        (kind, &attribute.into_inner()[NLA_HEADER_SIZE..length])
    })
}

/// A number that was written by [`Writer::put_u32`].
pub fn read_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A number that was written by [`Writer::put_u64`].
pub fn read_u64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// A text up to its zero.
pub fn read_text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
}
