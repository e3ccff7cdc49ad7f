//! Backups: every object at one revision, in a file that tells whether it is whole.
//!
//! The file is JSON, one value a line, in UTF-8:
//!
//! ```text
//! {"tollgateBackup":1,"storeId":"5f0c...","revision":42,"objects":2}           the header
//! {"path":"/registry/namespaces/default","revision":1,"object":{...}}          so many objects
//! {"path":"/registry/services/specs/default/web","revision":42,"object":{...}}
//! {"sha256":"9b74..."}                                                         the trailer
//! ```
//! The checksum is that of all lines before the trailer, their line ends included. A file gets its name once it is whole
//! and on disk.

mod read;
mod restore;
mod write;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::store::{self, Record};

pub use read::read;
pub use restore::{REVISION_GAP, Restored, restore};
pub use write::write;

/// Raised when a newer version writes what an older one would misread.
const FORMAT_VERSION: u64 = 1;

/// Every object of a store at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The store that they are of.
    pub store_id: Arc<str>,
    /// The revision at which they stand.
    pub revision: u64,
    /// The objects.
    pub records: Vec<Record>,
}

/// Why a backup can't be written, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be written.
    #[error("cannot write the backup {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An object of the backup is no JSON.
    #[error("cannot write the backup {}: {object} is no JSON", .path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// The object's path.
        object: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// The file can't be read.
    #[error("cannot read the backup {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what was written, or no backup at all.
    #[error("the backup {} is damaged: {what}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The file is of another version of this program.
    #[error("the backup {} has format {found}, this version reads format {FORMAT_VERSION}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The store can't be made.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    tollgate_backup: u64,
    store_id: String,
    revision: u64,
    objects: usize,
}

/// A line for every object.
#[derive(Serialize, Deserialize)]
struct Line {
    path: String,
    revision: u64,
    object: Value,
}

/// The last line.
#[derive(Serialize, Deserialize)]
struct Trailer {
    sha256: String,
}

/// A checksum as it is written.
fn hex(sum: Sha256) -> String {
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
