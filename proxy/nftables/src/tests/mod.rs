//! What is written here is what nft writes for the same words, as the kernel dumps it and as nft lists it.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::attribute::Bytes;
use crate::batch::Batch;
use crate::chain::{Chain, Hook};
use crate::element::Element;
use crate::expression::{Expression, Register, Verdict};
use crate::rule::Rule;
use crate::set::{DataType, Declaration, Fields, Set};
use crate::socket::{Failure, Socket};
use crate::term::{
    ADDRESS_LOCAL, CT_STATE_INVALID, CT_STATUS_DNAT, Ct, Field, Meta, Term, map, random, source_address_type, value,
};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

mod parity;
mod transaction;

const AFFINITY_SIZE: u32 = 1 << 20;

fn table(family: IpFamily) -> Table {
    Table { family: family.into(), name: "tollgate" }
}

fn table_text(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip tollgate",
        IpFamily::V6 => "ip6 tollgate",
    }
}

/// Runs a test on a thread that has a network namespace of its own; what it starts inherits that.
fn isolated<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
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
fn nft(arguments: &[&str], input: &str) -> String {
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
