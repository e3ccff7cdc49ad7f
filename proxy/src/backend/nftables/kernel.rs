//! The only place that speaks to the kernel: the `nft` command, one process for each transaction or listing.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tollgate_model::name::IpFamily;

use super::chain::table;
use super::readback::{self, Listed};

/// Where `nft` is looked for besides `PATH`, which often lacks these for users that are not root.
const DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// How nft, in the locale C, says that a table is missing.
const NOT_THERE: &str = "No such file or directory";
/// How many lines of what nft says go into an error.
const LINES: usize = 4;

/// The kernel's tables of the network namespace that the calling thread is in.
#[derive(Debug)]
pub(crate) struct Kernel {
    nft: PathBuf,
}

/// Why nft did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("the nft command is not there (looked in PATH, /usr/sbin and /sbin); the Debian package nftables has it")]
    Missing,
    /// It could not be started or spoken to.
    #[error("cannot run {}", nft.display())]
    Run {
        /// The command.
        nft: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("nft refused {what}: {cause}")]
    Refused {
        /// What was tried.
        what: String,
        /// What nft says.
        cause: String,
    },
    /// It said something that is not understood.
    #[error("cannot understand how nft lists the table {table}")]
    Listing {
        /// The table.
        table: &'static str,
        /// Where it stops being understood.
        #[source]
        source: serde_json::Error,
    },
}

impl Kernel {
    /// Finds the command.
    pub(crate) fn open() -> Result<Self, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::env::split_paths(&path).chain(DIRECTORIES.map(PathBuf::from));
        let nft = directories.map(|directory| directory.join("nft")).find(|nft| nft.is_file());
        Ok(Self { nft: nft.ok_or(Error::Missing)? })
    }

    /// One transaction: all of the text or nothing.
    pub(crate) fn commit(&self, text: &str) -> Result<(), Error> {
        self.run(&["-f", "-"], text, "a transaction").map(drop)
    }

    /// Whether the kernel would take that transaction.
    pub(crate) fn check(&self, text: &str, what: &str) -> Result<(), Error> {
        self.run(&["-c", "-f", "-"], text, what).map(drop)
    }

    /// Reads a family's table; `None` where there is none.
    pub(crate) fn list(&self, family: IpFamily) -> Result<Option<Listed>, Error> {
        let table = table(family);
        // Not `list tables` first: nft 1.0.6 reads every element of every table to list their names.
        let json = match self.run(&["-j", &format!("list table {table}")], "", &format!("to list the table {table}")) {
            Ok(json) => json,
            Err(Error::Refused { cause, .. }) if cause.contains(NOT_THERE) => return Ok(None),
            Err(error) => return Err(error),
        };
        readback::parse(&json).map(Some).map_err(|source| Error::Listing { table, source })
    }

    /// Deletes a family's table with all that is in it, if there is one.
    pub(crate) fn delete(&self, family: IpFamily) -> Result<(), Error> {
        let table = table(family);
        // Deleting one that is not there is an error, adding one that is there is none.
        let text = format!("add table {table}\ndelete table {table}\n");
        self.run(&["-f", "-"], &text, &format!("to delete the table {table}")).map(drop)
    }

    fn run(&self, arguments: &[&str], input: &str, what: &str) -> Result<Vec<u8>, Error> {
        let output =
            talk(&self.nft, arguments, input).map_err(|source| Error::Run { nft: self.nft.clone(), source })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(Error::Refused { what: what.to_owned(), cause: cause(&output) })
    }
}

/// The input is a file in memory that is whole before the command starts: through a pipe, a proxy that is killed while it
/// writes would leave nft with the first half of a transaction, which it takes for all of it.
fn talk(nft: &Path, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut file = File::from(memfd_create(c"nft-input", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Command::new(nft).args(arguments).env("LC_ALL", "C").stdin(file).output()
}

/// The first errors that nft prints, on one line and without pictures of where in the line they are.
fn cause(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = said.lines().filter_map(|line| {
        let (_, error) = line.split_once("Error: ")?;
        Some(error.trim())
    });
    let causes: Vec<_> = lines.take(LINES).collect();
    match (causes.is_empty(), said.trim().is_empty()) {
        (false, _) => causes.join("; "),
        (true, false) => said.lines().take(LINES).collect::<Vec<_>>().join("; "),
        (true, true) => output.status.to_string(),
    }
}
