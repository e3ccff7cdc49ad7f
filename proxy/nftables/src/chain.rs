//! Chains and tables.

use crate::attribute::{Writer, attributes, read_text, read_u32};

/// A chain, without its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: Box<str>,
    /// What calls it, besides rules.
    pub base: Option<Base>,
}

/// What calls a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// `nat` or `filter`.
    pub kind: Box<str>,
    /// Where in a packet's way.
    pub hook: Hook,
    /// In which order with others; the lowest comes first.
    pub priority: i32,
    /// Whether what comes to the end of the chain is accepted, and not dropped.
    pub accepts: bool,
}

/// Where in a packet's way (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// As it comes in, before it is routed.
    Prerouting,
    /// On its way to a process of the node.
    Input,
    /// On its way through the node.
    Forward,
    /// From a process of the node.
    Output,
    /// As it goes out, after it was routed.
    Postrouting,
    /// Some other.
    Other(u32),
}

const NFTA_TABLE_NAME: u16 = 1;

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NF_ACCEPT: u32 = 1;

impl Chain {
    /// A chain that rules call.
    pub fn regular(name: &str) -> Self {
        Self { name: name.into(), base: None }
    }

    /// A chain of that kind (`nat`, `filter`) that packets come to in that hook, and that accepts what comes to its end.
    pub fn base(name: &str, kind: &str, hook: Hook, priority: i32) -> Self {
        Self { name: name.into(), base: Some(Base { kind: kind.into(), hook, priority, accepts: true }) }
    }

    /// The attributes of a message that adds it.
    pub fn write(&self, writer: &mut Writer, table: &str) {
        write_name(writer, table, &self.name);
        let Some(Base { kind, hook, priority, accepts }) = &self.base else { return };
        writer.nest(NFTA_CHAIN_HOOK, |it| {
            it.put_u32(NFTA_HOOK_HOOKNUM, hook.number());
            it.put(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
        });
        writer.put_u32(NFTA_CHAIN_POLICY, u32::from(*accepts));
        writer.put_text(NFTA_CHAIN_TYPE, kind);
    }

    /// Reads one.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (mut name, mut kind, mut at, mut policy) = (None, None, None, NF_ACCEPT);
        for (attribute, value) in attributes(bytes) {
            match attribute {
                NFTA_CHAIN_NAME => name = read_text(value),
                NFTA_CHAIN_TYPE => kind = read_text(value),
                NFTA_CHAIN_POLICY => policy = read_u32(value)?,
                NFTA_CHAIN_HOOK => at = Some(read_hook(value)?),
                _ => {}
            }
        }
        let base = match (kind, at) {
            (Some(kind), Some((hook, priority))) => {
                Some(Base { kind: kind.into(), hook, priority, accepts: policy == NF_ACCEPT })
            }
            _ => None,
        };
        Some(Self { name: name?.into(), base })
    }
}

fn read_hook(value: &[u8]) -> Option<(Hook, i32)> {
    let (mut hook, mut priority) = (None, None);
    for (kind, value) in attributes(value) {
        match kind {
            NFTA_HOOK_HOOKNUM => hook = Some(Hook::numbered(read_u32(value)?)),
            NFTA_HOOK_PRIORITY => priority = Some(i32::from_be_bytes(value.try_into().ok()?)),
            _ => {}
        }
    }
    hook.zip(priority)
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Other(number) => number,
        }
    }

    fn numbered(number: u32) -> Self {
        let known = [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];
        known.into_iter().find(|hook| hook.number() == number).unwrap_or(Self::Other(number))
    }
}

/// The names of a chain's table and of itself.
pub(crate) fn write_name(writer: &mut Writer, table: &str, chain: &str) {
    writer.put_text(NFTA_CHAIN_TABLE, table);
    writer.put_text(NFTA_CHAIN_NAME, chain);
}

/// The name of a table.
pub(crate) fn write_table(writer: &mut Writer, table: &str) {
    writer.put_text(NFTA_TABLE_NAME, table);
}
