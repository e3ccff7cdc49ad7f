//! The verbs of the command line: what kubectl users expect, over the gRPC contract.
//!
//! Each verb writes its results to the output that it is given and its complaints to the other one, so that results can
//! be piped on. A verb returns whether everything that was asked for was done.

mod apply;
mod backup;
mod columns;
mod delete;
mod documents;
mod get;
mod table;
mod watch;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use tollgate_api::connect;
use tollgate_api::v1::{Key, Kind};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

pub use apply::apply;
pub use backup::backup;
pub use delete::{delete_files, delete_named};
pub use get::{Format, Selection, get};
pub use tollgate_api::connect::{Access, Client};
pub use watch::{WatchOptions, watch};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between the client's signs of life, so that a server that vanished is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Where a verb writes.
pub struct Output<'a> {
    /// Results.
    pub results: &'a mut dyn Write,
    /// What went wrong with some of what was asked for.
    pub complaints: &'a mut dyn Write,
}

/// Why a verb could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server's address is none.
    #[error("{server:?} is not the address of a server; give one such as http://127.0.0.1:7440")]
    Address {
        /// As given.
        server: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// Nobody answers.
    #[error(
        "cannot connect to {server}: is `tollgate-controlplane serve` running there? \
         (--server or TOLLGATE_SERVER chooses another)"
    )]
    Connect {
        /// The server's address.
        server: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// There is no safe way to the server.
    #[error(transparent)]
    Access(connect::Error),
    /// The server refused, or the connection broke.
    #[error("cannot {attempt}: {}", reason_of(.status))]
    Call {
        /// What was attempted: `get service default/web`.
        attempt: String,
        /// The answer.
        status: Box<Status>,
    },
    /// A file can't be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is nothing to read.
    #[error("{} has no *.yaml, *.yml or *.json file", .path.display())]
    EmptyDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The server sent something that is no Kubernetes object.
    #[error("cannot read {key} as the server sent it")]
    Object {
        /// The object.
        key: Key,
        /// Why not.
        source: serde_json::Error,
    },
    /// An object can't be written as YAML.
    #[error("cannot write YAML")]
    Yaml(#[source] serde_saphyr::SerializeError),
    /// The server sent a message without what it must have.
    #[error("the server sent no {what}; it may be of another version")]
    Incomplete {
        /// What is missing.
        what: &'static str,
    },
    /// The watch can't go on from where it was.
    #[error("the watch can't be resumed: {message}; watch again without --resume")]
    Relist {
        /// The server's reason.
        message: String,
    },
    /// A backup can't be written.
    #[error(transparent)]
    Backup(#[from] crate::backup::Error),
    /// The words of a command do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The output is closed or full.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl Error {
    fn call(attempt: impl Into<String>) -> impl FnOnce(Status) -> Error {
        move |status| Error::Call { attempt: attempt.into(), status: Box::new(status) }
    }

    /// Whether nobody reads the output any more, as with `| head`: no reason to complain.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Error::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Connects to the control plane at an `http://` or `https://` address.
pub async fn connect(server: &str, access: &Access) -> Result<Client, Error> {
    let endpoint = Endpoint::from_shared(server.to_owned())
        .map_err(|source| Error::Address { server: server.to_owned(), source })?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL);
    let client = connect::connect(&endpoint, access).await.map_err(|error| match error {
        connect::Error::Unreachable { source, .. } => Error::Connect { server: server.to_owned(), source },
        error => Error::Access(error),
    })?;
    // A list of everything is one message.
    Ok(client.max_decoding_message_size(usize::MAX))
}

/// `service/web`, as output names objects.
fn slashed(key: &Key) -> String {
    format!("{}/{}", key.kind(), key.name)
}

/// The kind and names in the words of a command: `svc web other` or `svc/web`.
fn parse_target(kind: &str, names: &[String]) -> Result<(Kind, Vec<String>), Error> {
    let (kind, names) = match kind.split_once('/') {
        Some((kind, name)) if names.is_empty() && !name.is_empty() => (kind, vec![name.to_owned()]),
        Some(_) => return Err(Error::Usage(format!("give either KIND/NAME or KIND NAME, not {kind} and more"))),
        None => (kind, names.to_vec()),
    };
    Ok((kind.parse().map_err(|error: tollgate_api::UnknownKind| Error::Usage(error.to_string()))?, names))
}

/// What the server said; a broken connection has its reason in the causes.
fn reason_of(status: &Status) -> String {
    let mut reason = status.message().to_owned();
    if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal) {
        reason = crate::told_with_causes(reason, std::error::Error::source(status));
    }
    if reason.is_empty() { format!("{:?}", status.code()) } else { reason }
}
