//! A backup out of its file, or what is wrong with it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Backup, Error, FORMAT_VERSION, Header, Line, Trailer, hex};
use crate::store::{Record, parse_path};

/// Reads a backup; one that is not whole is refused.
pub fn read(path: &Path) -> Result<Backup, Error> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let mut lines = Lines { path, input: BufReader::new(file), line: Vec::new(), number: 0, sum: Sha256::new() };
    let header = lines.header()?;
    let mut records = Vec::new();
    let mut paths = BTreeSet::new();
    for _ in 0..header.objects {
        lines.next()?;
        let Line { path: object_path, revision, object } = lines.parse("object")?;
        let key = parse_path(&object_path);
        let key = key.ok_or_else(|| lines.damaged(&format!("{object_path:?} is no object's path")))?;
        if !(1..=header.revision).contains(&revision) {
            let what = format!("{object_path} is at revision {revision}, the backup at {}", header.revision);
            return Err(lines.damaged(&what));
        }
        records.push(Record { key, revision, json: object.to_string().into_bytes().into() });
        if !paths.insert(object_path) {
            return Err(lines.damaged("the object comes twice"));
        }
    }
    let sum = hex(lines.sum.clone());
    lines.next()?;
    let trailer: Trailer = lines.parse("trailer")?;
    if trailer.sha256 != sum {
        let what = format!("its checksum is {sum}, but was {} when it was written", trailer.sha256);
        return Err(Error::Damaged { path: path.to_owned(), what });
    }
    if lines.advance()? {
        return Err(lines.damaged("there is more after the trailer"));
    }
    Ok(Backup { store_id: header.store_id.into(), revision: header.revision, records })
}

/// The file's lines, one after the other.
struct Lines<'a> {
    path: &'a Path,
    input: BufReader<File>,
    line: Vec<u8>,
    number: usize,
    /// Of the lines up to this one.
    sum: Sha256,
}

impl Lines<'_> {
    /// The first line; where it is none, the file is no backup.
    fn header(&mut self) -> Result<Header, Error> {
        /// What every version has.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            tollgate_backup: u64,
        }
        self.next()?;
        match self.parse("header of a backup")? {
            Version { tollgate_backup: FORMAT_VERSION } => self.parse("header of a backup"),
            Version { tollgate_backup: found } => Err(Error::Version { path: self.path.to_owned(), found }),
        }
    }

    /// Goes on to the next line, which there must be, whole.
    fn next(&mut self) -> Result<(), Error> {
        if self.advance()? && self.line.ends_with(b"\n") {
            return Ok(());
        }
        Err(self.damaged("the file ends here; it has no trailer"))
    }

    /// Whether there is another line.
    fn advance(&mut self) -> Result<bool, Error> {
        self.line.clear();
        self.number += 1;
        let read = self.input.read_until(b'\n', &mut self.line);
        let length = read.map_err(|source| Error::Read { path: self.path.to_owned(), source })?;
        self.sum.update(&self.line);
        Ok(length > 0)
    }

    fn parse<'de, T: Deserialize<'de>>(&'de self, what: &str) -> Result<T, Error> {
        serde_json::from_slice(&self.line).map_err(|error| self.damaged(&format!("is no {what} ({error})")))
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Damaged { path: self.path.to_owned(), what: format!("line {}: {what}", self.number) }
    }
}
