//! Rules, put together so that they read like nft's text, into the expressions that nft would make of it.
//!
//! `ip saddr != @local_pods meta mark set meta mark | 0x4000` is
//! `Rule::new().outside([saddr], "local_pods").set(Meta::Mark, Term::from(Meta::Mark) | 0x4000)`.
//!
//! Registers are nft's too, or its listing would not find the rule's words again: a statement's key begins at the first
//! register, its parts follow each other in whole registers of 32 bits, and each statement begins anew.

use std::time::Duration;

use crate::attribute::{Bytes, Writer, attributes, read_text};
use crate::expression::{
    DELETE, EQUAL, Expression, Found, ICMP_UNREACHABLE, Register, TCP_RESET, UNEQUAL, UPDATE, Verdict, read_list,
    write_list,
};

use crate::term::{Meta, Term, load_all, map};
use crate::{Family, IpFamily, Protocol};

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub expressions: Vec<Expression>,
    /// What it is for.
    pub comment: String,
}

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: any port, as `fully-random` has it.
const FULLY_RANDOM: u32 = 1 << 4;
/// The ICMP and ICMPv6 codes of "port unreachable".
const ICMP_PORT_UNREACHABLE: u8 = 3;
const ICMPV6_PORT_UNREACHABLE: u8 = 4;

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
/// The only part of a rule's user data.
const COMMENT: u8 = 0;

impl Rule {
    /// A rule that does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a comment, of which nft shows up to 128 bytes.
    pub fn comment(mut self, comment: &str) -> Self {
        comment.clone_into(&mut self.comment);
        self
    }

    fn push(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    fn load(mut self, key: &[Term]) -> Self {
        load_all(key, &mut self.expressions);
        self
    }

    // === matches ===

    /// `term == value`.
    pub fn equal(self, term: impl Into<Term>, value: impl Into<Bytes>) -> Self {
        self.compare(term.into(), EQUAL, value.into())
    }

    /// `term != value`.
    pub fn unequal(self, term: impl Into<Term>, value: impl Into<Bytes>) -> Self {
        self.compare(term.into(), UNEQUAL, value.into())
    }

    fn compare(self, term: Term, operator: u32, value: Bytes) -> Self {
        let register = Register::after(0);
        self.load(&[term]).push(Expression::Compare { register, operator, value })
    }

    /// `meta l4proto tcp` and the like.
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.equal(Meta::L4proto, Bytes::new(&[protocol.number()]))
    }

    /// `key @set`.
    pub fn within(self, key: impl Into<Vec<Term>>, set: &str) -> Self {
        self.lookup(key.into(), set, Found::Present)
    }

    /// `key != @set`.
    pub fn outside(self, key: impl Into<Vec<Term>>, set: &str) -> Self {
        self.lookup(key.into(), set, Found::Absent)
    }

    fn lookup(self, key: Vec<Term>, set: &str, found: Found) -> Self {
        self.load(&key).push(Expression::Lookup { set: set.into(), key: Register::after(0), found })
    }

    // === changes ===

    /// `meta key set term`.
    pub fn set(self, key: Meta, term: impl Into<Term>) -> Self {
        self.load(&[term.into()]).push(Expression::SetMeta { key: key.key(), from: Register::after(0) })
    }

    /// `update @set { key timeout T : data }`.
    pub fn update(self, set: &str, key: impl Into<Vec<Term>>, timeout: Duration, data: impl Into<Term>) -> Self {
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.dynset(set, UPDATE, &key.into(), milliseconds, &data.into())
    }

    /// `delete @set { key : data }`.
    pub fn delete(self, set: &str, key: impl Into<Vec<Term>>, data: impl Into<Term>) -> Self {
        self.dynset(set, DELETE, &key.into(), 0, &data.into())
    }

    fn dynset(self, set: &str, operation: u32, key: &[Term], milliseconds: u64, data: &Term) -> Self {
        let words: usize = key.iter().map(Term::words).sum();
        // nft 1.0.6 has it in the second of the old 128-bit registers even where the key reaches into that.
        let after_key = Register::after(words.next_multiple_of(4));
        let mut rule = self.load(key);
        data.load(after_key, &mut rule.expressions);
        let key = Register::after(0);
        rule.push(Expression::Dynset { set: set.into(), operation, key, data: Some(after_key), milliseconds })
    }

    // === ends ===

    /// `key vmap @map`.
    pub fn vmap(self, key: impl Into<Vec<Term>>, map: &str) -> Self {
        self.lookup(key.into(), map, Found::Verdict)
    }

    /// `dnat ip to key map @map`, of a map to address and port.
    pub fn dnat(self, family: IpFamily, key: impl Into<Vec<Term>>, name: &str) -> Self {
        let port = Register::after(match family {
            IpFamily::V4 => 1,
            IpFamily::V6 => 4,
        });
        let address = Register::after(0);
        let family = u32::from(Family::from(family).number());
        self.load(&[map(key, name)]).push(Expression::Dnat { family, address, port: Some(port), flags: 0 })
    }

    /// `masquerade fully-random`.
    pub fn masquerade(self) -> Self {
        self.push(Expression::Masquerade { flags: FULLY_RANDOM })
    }

    /// `reject with tcp reset`.
    pub fn reset(self) -> Self {
        self.push(Expression::Reject { kind: TCP_RESET, code: 0 })
    }

    /// `reject`: port unreachable.
    pub fn reject(self, family: IpFamily) -> Self {
        let code = match family {
            IpFamily::V4 => ICMP_PORT_UNREACHABLE,
            IpFamily::V6 => ICMPV6_PORT_UNREACHABLE,
        };
        self.push(Expression::Reject { kind: ICMP_UNREACHABLE, code })
    }

    /// `counter`.
    pub fn counter(self) -> Self {
        self.push(Expression::Counter)
    }

    /// `drop`.
    pub fn drop(self) -> Self {
        self.push(Expression::Verdict(Verdict::Drop))
    }

    /// `jump chain`.
    pub fn jump(self, chain: &str) -> Self {
        self.push(Expression::Verdict(Verdict::Jump(chain.into())))
    }

    /// `goto chain`.
    pub fn goto(self, chain: &str) -> Self {
        self.push(Expression::Verdict(Verdict::Goto(chain.into())))
    }

    /// `return`.
    pub fn ret(self) -> Self {
        self.push(Expression::Verdict(Verdict::Return))
    }

    // === on the wire ===

    /// The attributes of a message that adds it.
    pub fn write(&self, writer: &mut Writer, table: &str, chain: &str) {
        writer.put_text(NFTA_RULE_TABLE, table);
        writer.put_text(NFTA_RULE_CHAIN, chain);
        write_list(writer, NFTA_RULE_EXPRESSIONS, &self.expressions);
        if !self.comment.is_empty() {
            write_comment(writer, NFTA_RULE_USERDATA, COMMENT, &self.comment);
        }
    }

    /// Reads one, and the chain that it is in.
    pub fn read(bytes: &[u8]) -> Option<(&str, Self)> {
        let (mut chain, mut rule) = (None, Self::default());
        for (kind, value) in attributes(bytes) {
            match kind {
                NFTA_RULE_CHAIN => chain = read_text(value),
                NFTA_RULE_EXPRESSIONS => rule.expressions = read_list(value),
                NFTA_RULE_USERDATA => rule.comment = read_comment(value, COMMENT).unwrap_or_default().to_owned(),
                _ => {}
            }
        }
        Some((chain?, rule))
    }
}

/// The names of a chain's table and of itself: all that a message needs that deletes its rules.
pub(crate) fn write_flush(writer: &mut Writer, table: &str, chain: &str) {
    writer.put_text(NFTA_RULE_TABLE, table);
    writer.put_text(NFTA_RULE_CHAIN, chain);
}

/// User data with nothing but a comment: a kind, a length, and a text ended by a zero.
pub(crate) fn write_comment(writer: &mut Writer, attribute: u16, kind: u8, comment: &str) {
    let start = writer.begin(attribute);
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    writer.put_raw(&[kind, length]);
    writer.put_raw(&comment.as_bytes()[..usize::from(length) - 1]);
    writer.put_raw(&[0]);
    writer.end(start);
}

/// The comment among user data.
pub(crate) fn read_comment(mut userdata: &[u8], kind: u8) -> Option<&str> {
    while let [found, length, rest @ ..] = userdata {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *found == kind {
            return read_text(value);
        }
        userdata = rest;
    }
    None
}
