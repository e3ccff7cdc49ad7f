//! `backup`: every object at one revision, into a file.

use std::path::Path;

use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{Kind, Object, ResumeToken, WatchEvent, WatchRequest};

use super::{Client, Error, Output};
use crate::backup::{self, Backup};
use crate::store::Record;

/// Writes a backup of a running control plane.
pub async fn backup(client: &mut Client, file: &Path, output: &mut Output<'_>) -> Result<bool, Error> {
    let backup = collect(client).await?;
    backup::write(&backup, file)?;
    let Backup { store_id, revision, records } = &backup;
    writeln!(
        output.results,
        "{} objects of store {store_id} at revision {revision} are in {}",
        records.len(),
        file.display()
    )?;
    Ok(true)
}

/// The beginning of a watch of all kinds: lists of one kind each would be at revisions of their own.
async fn collect(client: &mut Client) -> Result<Backup, Error> {
    let attempt = "read all objects";
    let request = WatchRequest {
        kinds: Kind::ALL.into_iter().map(i32::from).collect(),
        resume: None,
        client: format!("tollgate-controlplane backup, process {}", std::process::id()),
    };
    let mut events = client.watch(request).await.map_err(Error::call(attempt))?.into_inner();
    let mut records = Vec::new();
    loop {
        let event = events.message().await.map_err(Error::call(attempt))?;
        match event {
            Some(WatchEvent { event: Some(Event::Apply(object)) }) => records.push(record(object)?),
            Some(WatchEvent { event: Some(Event::InitDone(done)) }) => {
                let ResumeToken { store_id, revision } = done.at.ok_or(Error::Incomplete { what: "token" })?;
                return Ok(Backup { store_id: store_id.into(), revision, records });
            }
            Some(_) => {}
            None => return Err(Error::Incomplete { what: "end of the list" }),
        }
    }
}

fn record(object: Object) -> Result<Record, Error> {
    let key = object.key.ok_or(Error::Incomplete { what: "key" })?;
    Ok(Record { key, revision: object.revision, json: object.json.into() })
}
