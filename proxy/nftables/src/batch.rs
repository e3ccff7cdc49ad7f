//! A transaction: messages that the kernel takes all together or not at all.
//!
//! What bounds it: the kernel takes a transaction from a single `sendmsg`, which must fit the socket's send buffer
//! (`SO_SNDBUFFORCE` raises that up to 1 GiB); a message's list of elements is an attribute, so at most 64 KiB.
//! 50,000 Services with 10 endpoints each are some 25 MB.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

use crate::Table;
use crate::attribute::{Writer, attributes, read_text};
use crate::chain::{Chain, write_name, write_table};
use crate::element::{self, Element, NFTA_SET_ELEM_LIST_ELEMENTS};
use crate::rule::{Rule, write_flush};
use crate::set::Set;

/// A transaction.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    /// Where each message begins.
    messages: Vec<usize>,
    sets: u32,
}

/// `NFNL_SUBSYS_NFTABLES`, as it stands in a message's type.
const NFTABLES: u16 = 10 << 8;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// `enum nf_tables_msg_types`.
pub(crate) const NFT_MSG_NEWTABLE: u16 = NFTABLES;
pub(crate) const NFT_MSG_GETTABLE: u16 = NFTABLES | 1;
pub(crate) const NFT_MSG_DELTABLE: u16 = NFTABLES | 2;
pub(crate) const NFT_MSG_NEWCHAIN: u16 = NFTABLES | 3;
pub(crate) const NFT_MSG_GETCHAIN: u16 = NFTABLES | 4;
pub(crate) const NFT_MSG_DELCHAIN: u16 = NFTABLES | 5;
pub(crate) const NFT_MSG_NEWRULE: u16 = NFTABLES | 6;
pub(crate) const NFT_MSG_GETRULE: u16 = NFTABLES | 7;
pub(crate) const NFT_MSG_DELRULE: u16 = NFTABLES | 8;
pub(crate) const NFT_MSG_NEWSET: u16 = NFTABLES | 9;
pub(crate) const NFT_MSG_GETSET: u16 = NFTABLES | 10;
pub(crate) const NFT_MSG_DELSET: u16 = NFTABLES | 11;
pub(crate) const NFT_MSG_NEWSETELEM: u16 = NFTABLES | 12;
pub(crate) const NFT_MSG_GETSETELEM: u16 = NFTABLES | 13;
pub(crate) const NFT_MSG_DELSETELEM: u16 = NFTABLES | 14;
pub(crate) const NFT_MSG_GETGEN: u16 = NFTABLES | 16;

/// The length of a message's header and of the family, version and resource after it.
const HEADER: usize = 16 + 4;
/// From here on a list of elements goes on in another message; one more element stays well below 64 KiB.
const LIST: usize = 60_000;

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Without any message yet.
    pub fn new() -> Self {
        let mut batch = Self { writer: Writer::default(), messages: Vec::new(), sets: 0 };
        batch.frame(NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Whether it would do nothing.
    pub fn is_empty(&self) -> bool {
        self.messages.len() == 1
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.writer.len()
    }

    // === what it does ===

    /// Adds a table, if it is not there.
    pub fn add_table(&mut self, table: Table) {
        self.message(NFT_MSG_NEWTABLE, NLM_F_CREATE, table, |it| write_table(it, table.name));
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, table: Table) {
        self.message(NFT_MSG_DELTABLE, 0, table, |it| write_table(it, table.name));
    }

    /// Adds a set or map.
    pub fn add_set(&mut self, table: Table, set: &Set) {
        self.sets += 1;
        let id = self.sets;
        self.message(NFT_MSG_NEWSET, NLM_F_CREATE, table, |it| set.write(it, table.name, id));
    }

    /// Deletes a set or map with its elements.
    pub fn delete_set(&mut self, table: Table, set: &str) {
        // Its name has the number that a chain's handle has; a set's attributes of these kinds are table and name.
        self.message(NFT_MSG_DELSET, 0, table, |it| element::write_set(it, table.name, set));
    }

    /// Adds a chain.
    pub fn add_chain(&mut self, table: Table, chain: &Chain) {
        self.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, table, |it| chain.write(it, table.name));
    }

    /// Deletes a chain, which must be empty.
    pub fn delete_chain(&mut self, table: Table, chain: &str) {
        self.message(NFT_MSG_DELCHAIN, 0, table, |it| write_name(it, table.name, chain));
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, table: Table, chain: &str, rule: &Rule) {
        self.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, table, |it| rule.write(it, table.name, chain));
    }

    /// Deletes the rules of a chain.
    pub fn flush_chain(&mut self, table: Table, chain: &str) {
        self.message(NFT_MSG_DELRULE, 0, table, |it| write_flush(it, table.name, chain));
    }

    /// Adds elements; those that are there already, and the same, are no error.
    pub fn add_elements(&mut self, table: Table, set: &str, elements: impl IntoIterator<Item = Element>) {
        self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, table, set, elements);
    }

    /// Deletes elements, which must be there.
    pub fn delete_elements(&mut self, table: Table, set: &str, elements: impl IntoIterator<Item = Element>) {
        self.elements(NFT_MSG_DELSETELEM, 0, table, set, elements);
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        table: Table,
        set: &str,
        elements: impl IntoIterator<Item = Element>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.message(kind, flags, table, |it| {
                element::write_set(it, table.name, set);
                it.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    let start = list.len();
                    while list.len() - start < LIST
                        && let Some(element) = elements.next()
                    {
                        element.write(list);
                    }
                });
            });
        }
    }

    // === messages ===

    fn message(&mut self, kind: u16, flags: u16, table: Table, write: impl FnOnce(&mut Writer)) {
        let start = self.begin(kind, flags, table.family.number(), 0);
        write(&mut self.writer);
        self.end(start);
    }

    /// One of the two messages that a transaction is between. Their resource is the subsystem.
    fn frame(&mut self, kind: u16) {
        let start = self.begin(kind, 0, 0, NFTABLES >> 8);
        self.end(start);
    }

    fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> usize {
        let start = self.writer.len();
        self.messages.push(start);
        write_header(&mut self.writer, kind, flags, family, resource);
        start
    }

    fn end(&mut self, start: usize) {
        end_message(&mut self.writer, start);
    }

    /// The bytes to send: with numbers from `sequence` on, an acknowledgement asked for the last change alone (one for each
    /// could overflow the receive buffer, and errors come without being asked for), and its end; without that, the kernel
    /// checks everything and applies nothing. Returns the number of the message that is acknowledged.
    pub fn seal(&mut self, sequence: u32, commits: bool) -> (&[u8], u32) {
        if commits {
            self.frame(NFNL_MSG_BATCH_END);
        }
        let last = self.messages.len() - 1 - usize::from(commits);
        for (number, start) in (sequence..).zip(&self.messages) {
            self.writer.patch(start + 8, &number.to_ne_bytes());
        }
        let flags = NLM_F_REQUEST | NLM_F_ACK | self.flags(last);
        self.writer.patch(self.messages[last] + 6, &flags.to_ne_bytes());
        (self.writer.as_slice(), sequence + u32::try_from(last).unwrap_or(u32::MAX))
    }

    /// Takes back what [`seal`](Self::seal) added, so that it may be sent again.
    pub fn unseal(&mut self) {
        if let Some(end) = self.messages.pop_if(|end| read_u16(self.writer.as_slice(), *end + 4) == NFNL_MSG_BATCH_END)
        {
            self.writer.truncate(end);
        }
    }

    /// How many messages it has.
    pub fn messages(&self) -> usize {
        self.messages.len()
    }

    fn flags(&self, message: usize) -> u16 {
        read_u16(self.writer.as_slice(), self.messages[message] + 6)
    }

    /// What a message does, for an error about it.
    pub fn describe(&self, message: usize) -> String {
        let bytes = self.writer.as_slice();
        let Some(start) = self.messages.get(message) else { return "the transaction".to_owned() };
        let end = self.messages.get(message + 1).copied().unwrap_or(bytes.len());
        let name = |kind| {
            let found = attributes(&bytes[start + HEADER..end]).find(|(found, _)| *found == kind);
            found.and_then(|(_, name)| read_text(name)).unwrap_or("?")
        };
        // The first attribute of all is the table's name.
        let table = name(1);
        match read_u16(bytes, start + 4) {
            NFT_MSG_NEWTABLE => format!("to add the table {table}"),
            NFT_MSG_DELTABLE => format!("to delete the table {table}"),
            NFT_MSG_NEWCHAIN => format!("to add the chain {} of {table}", name(3)),
            NFT_MSG_DELCHAIN => format!("to delete the chain {} of {table}", name(3)),
            NFT_MSG_NEWRULE => format!("to add a rule to the chain {} of {table}", name(2)),
            NFT_MSG_DELRULE => format!("to delete the rules of the chain {} of {table}", name(2)),
            NFT_MSG_NEWSET => format!("to add the set {} of {table}", name(2)),
            NFT_MSG_DELSET => format!("to delete the set {} of {table}", name(2)),
            NFT_MSG_NEWSETELEM => format!("to add elements to the set {} of {table}", name(2)),
            NFT_MSG_DELSETELEM => format!("to delete elements of the set {} of {table}", name(2)),
            _ => "the transaction".to_owned(),
        }
    }
}

/// A message's header, whose length is not known yet.
pub(crate) fn write_header(writer: &mut Writer, kind: u16, flags: u16, family: u8, resource: u16) {
    writer.put_raw(&[0; 4]);
    writer.put_raw(&kind.to_ne_bytes());
    writer.put_raw(&(NLM_F_REQUEST | flags).to_ne_bytes());
    writer.put_raw(&[0; 8]);
    writer.put_raw(&[family, 0]);
    writer.put_raw(&resource.to_be_bytes());
}

/// Fills in the length of a message.
pub(crate) fn end_message(writer: &mut Writer, start: usize) {
    let length = u32::try_from(writer.len() - start).unwrap_or(u32::MAX);
    writer.patch(start, &length.to_ne_bytes());
}

fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}
