//! What is written here is what nft writes for the same words, as the kernel dumps it and as nft lists it.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use tollgate_model::name::{IpFamily, Protocol};

use super::attribute::Bytes;
use super::batch::Batch;
use super::chain::{Base, Chain, Hook};
use super::element::{Data, Element};
use super::expression::{Expression, Register, Verdict};
use super::rule::Rule;
use super::set::{DataType, Declaration, Fields, Set};
use super::socket::{Failure, Socket};
use super::term::{
    ADDRESS_LOCAL, CT_STATE_INVALID, CT_STATUS_DNAT, Ct, Field, Meta, Term, map, random, source_address_type, value,
};
use super::*;

mod parity;
mod transaction;

impl Chain {
    fn regular(name: &str) -> Self {
        Self { name: name.into(), base: None }
    }

    fn base(name: &str, kind: &str, hook: Hook, priority: i32) -> Self {
        Self { name: name.into(), base: Some(Base { kind: kind.into(), hook, priority, accepts: true }) }
    }
}

impl Element {
    fn value(self, value: Bytes) -> Self {
        Self { data: Some(Data::Value(value)), ..self }
    }

    fn verdict(self, verdict: Verdict) -> Self {
        Self { data: Some(Data::Verdict(verdict)), ..self }
    }

    fn comment(self, comment: &str) -> Self {
        Self { comment: comment.into(), ..self }
    }
}

const AFFINITY_SIZE: u32 = 1 << 20;

fn table(family: IpFamily) -> Table {
    Table { family, name: "tollgate" }
}

fn table_text(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip tollgate",
        IpFamily::V6 => "ip6 tollgate",
    }
}

/// Runs a test on a thread that has a network namespace of its own; what it starts inherits that.
pub(crate) fn isolated<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root, or under `unshare -rn`");
        test()
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[track_caller]
pub(crate) fn nft(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("nft");
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut nft = command.spawn().unwrap();
    nft.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = nft.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that a table has, as it is dumped.
#[derive(Debug, PartialEq)]
struct Dumped {
    sets: Vec<Set>,
    chains: Vec<Chain>,
    rules: Vec<(Box<str>, Rule)>,
    elements: Vec<(Box<str>, Vec<Element>)>,
}

fn dump(family: IpFamily) -> Dumped {
    let mut socket = Socket::open().unwrap();
    let table = table(family);
    let sets = socket.sets(table).unwrap();
    let elements = sets.iter().map(|set| {
        let push = |elements: &mut Vec<_>, element| {
            elements.push(element);
            true
        };
        let mut elements: Vec<Element> = socket.elements(table, &set.name, push).unwrap();
        elements.sort_by_key(|element| (element.key, element.is_end));
        (set.name.clone(), elements)
    });
    let elements = elements.collect();
    let chains = socket.chains(table).unwrap();
    let rules = socket.rules(table).unwrap();
    Dumped { sets, chains, rules, elements }
}

fn address(ip: &str) -> Bytes {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => Bytes::new(&ip.octets()),
        IpAddr::V6(ip) => Bytes::new(&ip.octets()),
    }
}

/// A concatenation.
fn concat(parts: &[&[u8]]) -> Bytes {
    let mut bytes = Bytes::EMPTY;
    parts.iter().for_each(|part| bytes.push_part(part));
    bytes
}
