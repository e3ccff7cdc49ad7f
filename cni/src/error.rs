//! What can go wrong, as the runtime is told: a code of the CNI specification and a sentence.

use std::io;
use std::path::PathBuf;

use serde::Serialize;
use thiserror::Error;

use crate::version::SpecVersion;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// A variable of the environment that the verb needs is missing.
    #[error("the environment has no {0}")]
    MissingVariable(&'static str),
    /// A variable of the environment is no good.
    #[error("{variable}={value:?} {problem}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with that.
        problem: String,
    },
    /// The configuration is in a version of the specification that is not spoken, or has none.
    #[error("cniVersion {0}: this plugin speaks {list}", list = SpecVersion::list())]
    Version(String),
    /// The verb is younger than the configuration's version.
    #[error("{verb} needs a configuration of cniVersion {needs} or later, and this one has {found}")]
    VerbTooNew {
        /// The verb.
        verb: &'static str,
        /// The version that brought it.
        needs: SpecVersion,
        /// The configuration's.
        found: SpecVersion,
    },
    /// Standard input is not JSON.
    #[error("the configuration on standard input is no JSON: {0}")]
    Syntax(String),
    /// A field of the configuration is no good.
    #[error("{field}: {problem}")]
    Field {
        /// The field's path.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field of the configuration asks for something that this plugin does not do.
    #[error("{field}={value}: {remedy}")]
    Unsupported {
        /// The field's path.
        field: String,
        /// Its value.
        value: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The container's network namespace is not there.
    #[error("the container's network namespace {path} {problem}", path = .path.display())]
    Netns {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The container has an interface of that name.
    #[error("container {container} has an interface {ifname} already: {found}")]
    Exists {
        /// The container.
        container: String,
        /// The interface.
        ifname: String,
        /// What was found.
        found: String,
    },
    /// Another call for the same container and interface does not end.
    #[error("another call for container {container}, interface {ifname}, has been running for {seconds} s")]
    Busy {
        /// The container.
        container: String,
        /// The interface.
        ifname: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {path}: {cause}", path = .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why that failed.
        cause: io::Error,
    },
    /// A file of the plugin's own is damaged.
    #[error("{path}, line {line}: {problem}; if no container of this network runs, remove the file", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel refused something about links, addresses or routes.
    #[error("cannot {what}: {cause}")]
    Kernel {
        /// What was tried.
        what: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Something of the node is in the way.
    #[error("{0}")]
    Conflict(String),
    /// The kernel refused something about rules.
    #[error("cannot {what} in nftables: {cause}{remedy}")]
    Rules {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: String,
        /// What may help, as a clause of its own.
        remedy: &'static str,
    },
    /// No address can be had.
    #[error("no address for container {container} in network {network}: {problem}")]
    Address {
        /// The container.
        container: String,
        /// The network.
        network: String,
        /// Why not.
        problem: String,
    },
    /// No container could be given an address.
    #[error("network {network}: {problem}")]
    Full {
        /// The network.
        network: String,
        /// Why not.
        problem: String,
    },
    /// The node's pod CIDRs are not known yet.
    #[error("the node's pod CIDRs are not known yet: {0}; they come from tollgate-proxy on this node")]
    PodCidrsUnknown(String),
    /// The IPAM plugin could not be run, or its answer is not understood.
    #[error("IPAM plugin {plugin}, {verb}: {problem}")]
    Delegate {
        /// The plugin's name.
        plugin: String,
        /// The verb.
        verb: &'static str,
        /// What went wrong.
        problem: String,
        /// The code that the plugin gave.
        code: Option<u32>,
    },
    /// What CHECK found.
    #[error("{0}")]
    Check(String),
    /// Cleaning up failed in several places, or after another failure.
    #[error("{first}; besides: {rest}", rest = .rest.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several {
        /// What came first, which gives the code.
        first: Box<Self>,
        /// The others.
        rest: Vec<Self>,
    },
}

/// An error as the specification wants it on standard output.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rendered {
    cni_version: &'static str,
    code: u32,
    msg: String,
}

/// Codes of the specification, section 5 "Error".
const INCOMPATIBLE_VERSION: u32 = 1;
const UNSUPPORTED_FIELD: u32 = 2;
const UNKNOWN_CONTAINER: u32 = 3;
const INVALID_ENVIRONMENT: u32 = 4;
const IO_FAILURE: u32 = 5;
const DECODING_FAILURE: u32 = 6;
const INVALID_CONFIGURATION: u32 = 7;
const TRY_AGAIN_LATER: u32 = 11;
const NOT_AVAILABLE: u32 = 50;
/// Codes of our own, which begin at 100.
const EXISTS: u32 = 100;
const NO_ADDRESS: u32 = 101;
const KERNEL: u32 = 102;
const CONFLICT: u32 = 103;
const DELEGATE: u32 = 104;
const CHECK_FAILED: u32 = 105;

impl Error {
    /// A wrong field.
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }

    /// A file that could not be read or written.
    pub fn file(what: &'static str, path: impl Into<PathBuf>, cause: io::Error) -> Self {
        Self::File { what, path: path.into(), cause }
    }

    /// All of them as one; nothing if there are none.
    pub fn all(errors: impl IntoIterator<Item = Self>) -> Result<(), Self> {
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else { return Ok(()) };
        let rest: Vec<Self> = errors.collect();
        Err(if rest.is_empty() { first } else { Self::Several { first: Box::new(first), rest } })
    }

    /// With what failed besides, while cleaning up.
    #[must_use]
    pub fn besides(self, cleanup: Result<(), Self>) -> Self {
        match cleanup {
            Ok(()) => self,
            Err(error) => Self::Several { first: Box::new(self), rest: vec![error] },
        }
    }

    /// The code that the runtime is given.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) | Self::VerbTooNew { .. } => INCOMPATIBLE_VERSION,
            Self::Unsupported { .. } => UNSUPPORTED_FIELD,
            Self::Netns { .. } => UNKNOWN_CONTAINER,
            Self::MissingVariable(_) | Self::Variable { .. } => INVALID_ENVIRONMENT,
            Self::File { .. } | Self::Damaged { .. } => IO_FAILURE,
            Self::Syntax(_) => DECODING_FAILURE,
            Self::Field { .. } => INVALID_CONFIGURATION,
            Self::Busy { .. } => TRY_AGAIN_LATER,
            Self::PodCidrsUnknown(_) | Self::Full { .. } => NOT_AVAILABLE,
            Self::Exists { .. } => EXISTS,
            Self::Address { .. } => NO_ADDRESS,
            Self::Kernel { .. } | Self::Rules { .. } => KERNEL,
            Self::Conflict(_) => CONFLICT,
            Self::Delegate { code, .. } => code.unwrap_or(DELEGATE),
            Self::Check(_) => CHECK_FAILED,
            Self::Several { first, .. } => first.code(),
        }
    }

    /// As the runtime is told, in its version.
    pub fn render(&self, version: SpecVersion) -> Rendered {
        Rendered { cni_version: version.as_str(), code: self.code(), msg: self.to_string() }
    }
}
