//! A backup into its file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Backup, Error, FORMAT_VERSION, Header, Line, Trailer, hex};
use crate::store::path_of;

/// Writes a backup. An earlier file of that name is replaced once the new one is on disk; after an error it is as it was.
pub fn write(backup: &Backup, path: &Path) -> Result<(), Error> {
    // Beside the file, because only within one file system a rename is a single step.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    let part = PathBuf::from(name);
    let written = write_part(backup, path, &part);
    if written.is_err() {
        // It may not even have been made.
        let _ = fs::remove_file(&part);
    }
    written
}

fn write_part(backup: &Backup, path: &Path, part: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut file = Summed { inner: BufWriter::new(File::create(part).map_err(failed)?), sum: Sha256::new() };
    let header = Header {
        tollgate_backup: FORMAT_VERSION,
        store_id: backup.store_id.to_string(),
        revision: backup.revision,
        objects: backup.records.len(),
    };
    file.line(&header).map_err(failed)?;
    for record in &backup.records {
        let object_path = path_of(&record.key);
        let object = serde_json::from_slice(&record.json).map_err(|source| Error::Object {
            path: path.to_owned(),
            object: object_path.clone(),
            source,
        })?;
        file.line(&Line { path: object_path, revision: record.revision, object }).map_err(failed)?;
    }
    let trailer = Trailer { sha256: hex(file.sum.clone()) };
    file.line(&trailer).map_err(failed)?;
    let file = file.inner.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    fs::rename(part, path).map_err(failed)?;
    // The name has to survive a power cut as well as what is in the file.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// A file and the checksum of what was written to it.
struct Summed {
    inner: BufWriter<File>,
    sum: Sha256,
}

impl Summed {
    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.sum.update(&line);
        self.inner.write_all(&line)
    }
}
