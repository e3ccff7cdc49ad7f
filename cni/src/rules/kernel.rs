//! Transactions with nf_tables, and what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::errno::Errno;
use tollgate_nftables::IpFamily;
use tollgate_nftables::attribute::Bytes;
use tollgate_nftables::batch::Batch;
use tollgate_nftables::element::Element;
use tollgate_nftables::socket::{Failure, Socket};

use super::element::{self, Placed};
use super::exception::Exceptions;
use super::layout::{self, Layout, MARKER};
use super::{BRIDGE, table};
use crate::error::Error;
use crate::state::record::Record;

/// How often elements are read anew that others took away meanwhile.
const SWEEPS: u32 = 10;

/// The node's rules.
pub struct Rules {
    socket: Socket,
}

impl Rules {
    /// Those of the network namespace that the plugin is in.
    pub fn open() -> Result<Self, Error> {
        let failed =
            |error: std::io::Error| Error::Rules { what: "open a socket", cause: error.to_string(), remedy: "" };
        Ok(Self { socket: Socket::open().map_err(failed)? })
    }

    /// Adds what an attachment needs: first whatever its rules lack, and then its elements. All of it or nothing.
    ///
    /// # Errors
    /// [`Error::Conflict`] if another pod has one of its host ports.
    pub fn add(&mut self, record: &Record, exceptions: &[(IpFamily, Exceptions)]) -> Result<(), Error> {
        let elements = element::elements(record, exceptions);
        if elements.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for layout in self.missing_layouts(&elements)? {
            layout.write(&mut batch);
        }
        for (family, exceptions) in exceptions {
            if !self.has_chain(table(*family), &exceptions.chain_name())? {
                let layout = layout::masquerade(*family, exceptions);
                layout.write(&mut batch);
                batch.add_elements(layout.table, &exceptions.set_name(), exceptions.elements());
            }
        }
        for Placed { table, set, element } in element::bridges(record).into_iter().chain(elements.clone()) {
            batch.add_elements(table, set, [element]);
        }
        match self.socket.commit(&mut batch) {
            Err(Failure::Refused { errno: Errno::EEXIST | Errno::EBUSY, what, message }) => {
                match self.holder(&elements)? {
                    Some(conflict) => Err(Error::Conflict(conflict)),
                    None => Err(failed("add", Failure::Refused { errno: Errno::EEXIST, what, message })),
                }
            }
            outcome => outcome.map_err(|failure| failed("add", failure)),
        }
    }

    /// The socket. Its last close waits until what was deleted through it is freed.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The layouts that these elements need and that are not there.
    fn missing_layouts(&mut self, elements: &[Placed]) -> Result<Vec<Layout>, Error> {
        let mut missing = Vec::new();
        let all: [(_, fn() -> Layout); 3] = [
            (BRIDGE, layout::bridge),
            (table(IpFamily::V4), || layout::ip(IpFamily::V4)),
            (table(IpFamily::V6), || layout::ip(IpFamily::V6)),
        ];
        for (table, layout) in all {
            if elements.iter().any(|placed| placed.table == table) && !self.has_chain(table, MARKER)? {
                missing.push(layout());
            }
        }
        Ok(missing)
    }

    fn has_chain(&mut self, table: tollgate_nftables::Table, chain: &str) -> Result<bool, Error> {
        self.socket.has_chain(table, chain).map_err(|failure| failed("look for", failure))
    }

    /// Who has one of these elements' keys with another value, as a sentence.
    fn holder(&mut self, elements: &[Placed]) -> Result<Option<String>, Error> {
        for placed in elements {
            let found = self.find(placed)?;
            let Some(port) = element::host_port(placed) else { continue };
            if let Some(other) = found.filter(|found| found.data != placed.element.data) {
                let whose = other.comment.split_once(' ').map_or("another pod", |(_, whose)| whose);
                return Ok(Some(format!("host port {port} leads to another pod of this node already ({whose})")));
            }
        }
        Ok(None)
    }

    /// The element that has the same key.
    fn find(&mut self, placed: &Placed) -> Result<Option<Element>, Error> {
        let all = self.elements(placed.table, placed.set)?;
        Ok(all.into_iter().find(|element| element.key == placed.element.key))
    }

    fn elements(&mut self, table: tollgate_nftables::Table, set: &str) -> Result<Vec<Element>, Error> {
        let each = |all: &mut BTreeMap<Bytes, Element>, element: Element| all.insert(element.key, element).is_none();
        let all = self.socket.elements(table, set, each).map_err(|failure| failed("read", failure))?;
        Ok(all.into_values().collect())
    }

    /// Takes away an attachment's elements, all of which are expected to be there.
    ///
    /// Returns whether that was so; if not, nothing has changed, and [`sweep`](Self::sweep) does it.
    pub fn remove(&mut self, record: &Record) -> Result<bool, Error> {
        let mut batch = Batch::new();
        for Placed { table, set, element } in element::elements(record, &[]) {
            batch.delete_elements(table, set, [Element::new(element.key)]);
        }
        match self.socket.commit(&mut batch) {
            Ok(()) => Ok(true),
            Err(Failure::Refused { errno: Errno::ENOENT, .. }) => Ok(false),
            Err(failure) => Err(failed("take away a pod's elements", failure)),
        }
    }

    /// The names of all pairs that elements are of.
    pub fn owners(&mut self) -> Result<BTreeSet<String>, Error> {
        let mut owners = BTreeSet::new();
        for (table, set) in element::sets() {
            owners.extend(self.elements(table, set)?.iter().map(|element| element::owner(element).to_owned()));
        }
        Ok(owners)
    }

    /// Takes away whatever elements these pairs have.
    pub fn sweep(&mut self, owners: &BTreeSet<String>) -> Result<(), Error> {
        for _ in 0..SWEEPS {
            let mut batch = Batch::new();
            for (table, set) in element::sets() {
                let elements = self.elements(table, set)?;
                let gone = elements.into_iter().filter(|element| owners.contains(element::owner(element)));
                batch.delete_elements(table, set, gone.map(|element| Element::new(element.key)));
            }
            match self.socket.commit(&mut batch) {
                // Somebody else was quicker with one of them.
                Err(Failure::Refused { errno: Errno::ENOENT, .. }) => {}
                outcome => return outcome.map_err(|failure| failed("take away elements", failure)),
            }
        }
        Err(Error::Rules { what: "take away elements", cause: "they change all the time".into(), remedy: "" })
    }

    /// What of an attachment's rules is not there, in words.
    pub fn missing(&mut self, record: &Record, exceptions: &[(IpFamily, Exceptions)]) -> Result<Vec<String>, Error> {
        let elements = element::elements(record, exceptions);
        let mut missing: Vec<String> = self
            .missing_layouts(&elements)?
            .iter()
            .map(|layout| format!("the rules of the table {}", layout.table))
            .collect();
        for placed in &elements {
            if self.find(placed)?.is_none_or(|found| found.data != placed.element.data) {
                missing.push(format!("its element of {} in the table {}", placed.set, placed.table));
            }
        }
        Ok(missing)
    }
}

fn failed(what: &'static str, failure: Failure) -> Error {
    let (cause, errno) = match failure {
        Failure::Send(error) | Failure::Receive(error) => (error.to_string(), None),
        Failure::Refused { what, errno, message } => {
            (format!("{what}: {}", message.unwrap_or_else(|| errno.desc().into())), Some(errno))
        }
    };
    let is_lacking = matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT));
    let remedy = if is_lacking {
        "; the kernel needs nf_tables for bridges, ip and ip6 (macspoofchk: false does without the bridge's)"
    } else {
        ""
    };
    Error::Rules { what, cause, remedy }
}
