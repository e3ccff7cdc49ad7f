//! The only place that speaks to the kernel: one nfnetlink socket.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;

use nix::errno::Errno;
use tollgate_model::name::IpFamily;

use super::chain::{Style, table};
use super::encode::encode;
use super::object::Changes;
use super::readback::{self, Listed};
use super::transaction::TableChanges;
use tollgate_nftables::Table;
use tollgate_nftables::batch::Batch;
use tollgate_nftables::socket::{Failure, Socket};

/// How often `observe` reads the tables anew because they changed meanwhile.
const READS: u32 = 3;

/// The kernel's tables of the network namespace that the thread was in that opened it.
pub(crate) struct Kernel {
    /// Reading takes turns of questions and answers as writing does, and happens through shared references.
    socket: RefCell<Socket>,
    /// How often a table was read.
    reads: Cell<u64>,
}

/// The number of the last change to any table of the network namespace, whosever it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    /// The number after one more transaction that changes something: zero is left out (`nf_tables_commit` in the kernel's
    /// net/netfilter/nf_tables_api.c).
    pub(crate) fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(1))
    }
}

/// Why the kernel did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error("cannot open a netlink socket to nf_tables (the kernel module nf_tables is needed)")]
    Open(#[source] io::Error),
    /// It could not be spoken to, or has no memory.
    #[error("cannot {what} over netlink")]
    Talk {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// This process may not.
    #[error("not permitted {what}: CAP_NET_ADMIN is needed")]
    Denied {
        /// What was tried.
        what: String,
    },
    /// It refused, and nothing has changed.
    #[error("the kernel refused {what}: {cause}")]
    Refused {
        /// What was tried.
        what: String,
        /// What it says.
        cause: String,
    },
}

impl Kernel {
    /// Opens the socket, in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self { socket: RefCell::new(Socket::open().map_err(Error::Open)?), reads: Cell::new(0) })
    }

    /// One transaction: all of it or nothing.
    pub(crate) fn commit(&self, tables: &[TableChanges]) -> Result<(), Error> {
        let mut batch = Batch::new();
        for TableChanges { style, changes } in tables {
            encode(&mut batch, style.table(), style, changes);
        }
        self.socket.borrow_mut().commit(&mut batch).map_err(|failure| error(failure, "commit a transaction"))
    }

    /// Whether the kernel would take these changes, in a table of another name: the table may be there, as another version
    /// made it.
    pub(crate) fn check(&self, style: &Style, changes: &Changes) -> Result<(), Error> {
        let mut batch = Batch::new();
        encode(&mut batch, Table { name: "tollgate-probe", ..style.table() }, style, changes);
        self.socket.borrow_mut().check(&mut batch).map_err(|failure| error(failure, "check the rules"))
    }

    /// Where the tables of the network namespace stand.
    pub(crate) fn generation(&self) -> Result<Generation, Error> {
        let generation = self.socket.borrow_mut().generation();
        generation.map(Generation).map_err(|failure| error(failure, "ask for the generation of the rules"))
    }

    /// How often a table was read.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// Reads a family's table; `None` where there is none.
    pub(crate) fn list(&self, family: IpFamily) -> Result<Option<Listed>, Error> {
        self.reads.set(self.reads.get() + 1);
        readback::read(&mut self.socket.borrow_mut(), table(family)).map_err(|failure| error(failure, "read a table"))
    }

    /// Reads a family's table as it was at one moment, unless somebody changes rules all the time.
    pub(crate) fn observe(&self, family: IpFamily) -> Result<Option<Listed>, Error> {
        let mut before = self.generation()?;
        for _ in 1..READS {
            let listed = self.list(family)?;
            let after = self.generation()?;
            if before == after {
                return Ok(listed);
            }
            before = after;
        }
        self.list(family)
    }

    /// Deletes a family's table with all that is in it, if there is one.
    pub(crate) fn delete(&self, family: IpFamily) -> Result<(), Error> {
        match self.socket.borrow_mut().has_table(table(family)) {
            Ok(true) => {}
            // A kernel without nf_tables has none: it knows no such request (`nfnetlink_rcv_msg`).
            Ok(false) | Err(Failure::Refused { errno: Errno::EINVAL | Errno::EOPNOTSUPP, .. }) => return Ok(()),
            Err(failure) => return Err(error(failure, "look for a table")),
        }
        let mut batch = Batch::new();
        // Deleting one that is not there is an error, adding one that is there is none.
        batch.add_table(table(family));
        batch.delete_table(table(family));
        self.socket.borrow_mut().commit(&mut batch).map_err(|failure| error(failure, "delete a table"))
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

fn error(failure: Failure, what: &str) -> Error {
    match failure {
        Failure::Send(source) | Failure::Receive(source) => Error::Talk { what: what.to_owned(), source },
        Failure::Refused { what, errno: Errno::EPERM, .. } => Error::Denied { what },
        // It is not about what was asked for, so that asking for a part of it helps nobody.
        failure @ Failure::Refused { errno, .. } if failure.is_passing() => {
            Error::Talk { what: what.to_owned(), source: errno.into() }
        }
        Failure::Refused { what, errno, message } => {
            let cause = match message {
                Some(message) => format!("{} ({message})", errno.desc()),
                None => errno.desc().to_owned(),
            };
            Error::Refused { what, cause }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_never_zero() {
        assert_eq!(Generation(7).next(), Generation(8));
        assert_eq!(Generation(u32::MAX).next(), Generation(1));
    }

    fn refused(errno: Errno) -> Error {
        error(Failure::Refused { what: "to do it".to_owned(), errno, message: None }, "do it")
    }

    /// Only what is about the content is worth trying in parts.
    #[test]
    fn refusals_are_told_from_what_will_pass_and_from_what_may_not_be() {
        for errno in [Errno::ENOENT, Errno::EEXIST, Errno::EINVAL, Errno::EBUSY, Errno::EOPNOTSUPP] {
            assert!(matches!(refused(errno), Error::Refused { .. }), "{errno}");
        }
        for errno in [Errno::ENOMEM, Errno::ENOBUFS, Errno::EAGAIN] {
            assert!(matches!(refused(errno), Error::Talk { .. }), "{errno}");
        }
        assert_eq!(refused(Errno::EPERM).to_string(), "not permitted to do it: CAP_NET_ADMIN is needed");
        let busy = "the kernel refused to do it: Device or resource busy";
        assert_eq!(refused(Errno::EBUSY).to_string(), busy);
    }
}
